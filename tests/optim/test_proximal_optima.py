"""Proximal gradient descent comes to optima that are known."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso, MultiTaskLasso
from torch import Tensor, nn
from torch.optim import SGD

from pared.ops import exclusive_soft_threshold
from pared.optim import Proximal


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    """Nothing here has kernels of its own, so once is enough."""


def regression(seed: int, outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 8, dtype=torch.float64, generator=generator)
    truth = torch.randn(8, outputs, dtype=torch.float64, generator=generator)
    truth[3:] = 0.0
    noise = torch.randn(60, outputs, dtype=torch.float64, generator=generator)
    return x, x @ truth + 0.5 * noise


def minimise(
    x: Tensor, y: Tensor, prox: Any, strength: float, dim: int | None = None, *, steps: int = 500, **options: Any
) -> Tensor:
    """The weights (outputs, inputs) at which proximal gradient descent on half the mean squared error comes to rest."""
    weight = nn.Parameter(torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype))
    bound = float(torch.linalg.matrix_norm(x.T @ x / len(x), 2))
    optimizer = Proximal(SGD([weight], lr=1.0 / bound, **options), prox, strength, dim=dim)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (x @ weight.T - y).square().sum() / len(x)).backward()
        optimizer.step()
    return weight.detach()


def gradient(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return (x @ weight.T - y).T @ x / len(x)


@pytest.mark.parametrize("strength", [0.02, 0.1, 0.5])
def test_l1_comes_to_the_lasso(strength: float) -> None:
    x, y = regression(0)
    known = Lasso(alpha=strength, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x.numpy(), y.numpy())
    found = minimise(x, y, "l1", strength)
    torch.testing.assert_close(found[0], torch.from_numpy(known.coef_), rtol=0, atol=1e-6)
    assert torch.equal(found[0] == 0, torch.from_numpy(known.coef_ == 0))
    assert bool((found == 0).any())


def test_with_momentum_the_penalty_counts_less() -> None:
    x, y = regression(0)
    known = Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x.numpy(), y.numpy())
    for nesterov in (False, True):
        found = minimise(x, y, "l1", 0.1 / 0.25, momentum=0.75, nesterov=nesterov)
        torch.testing.assert_close(found[0], torch.from_numpy(known.coef_), rtol=0, atol=1e-6)
    found = minimise(x, y, "l1", 0.1, momentum=0.75, dampening=0.75)
    torch.testing.assert_close(found[0], torch.from_numpy(known.coef_), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [0.05, 0.2])
def test_the_group_lasso_comes_to_that_of_several_tasks(strength: float) -> None:
    x, y = regression(1, 3)
    known = MultiTaskLasso(alpha=strength, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x.numpy(), y.numpy())
    found = minimise(x, y, "group_lasso", strength, 0)
    torch.testing.assert_close(found, torch.from_numpy(known.coef_), rtol=0, atol=1e-6)
    assert bool((found == 0).all(0).any())
    assert not bool(((found == 0).any(0) & (found != 0).any(0)).any())


@settings(max_examples=12)
@given(st.integers(0, 99), st.sampled_from([0.02, 0.1, 0.5]), st.sampled_from([0, 1]))
def test_the_exclusive_lasso_comes_to_where_nothing_pulls(seed: int, strength: float, dim: int) -> None:
    x, y = regression(seed, 3)
    found = minimise(x, y, "exclusive_lasso", strength, dim)
    pull, press = gradient(x, y, found), strength * found.abs().sum(dim, keepdim=True).expand_as(found)
    live = found != 0
    torch.testing.assert_close(pull[live], -(press * found.sign())[live], rtol=0, atol=1e-6)
    assert bool((pull.abs() <= press + 1e-9)[~live].all())
    assert bool(live.any(dim).all())


def test_the_printed_form_of_the_exclusive_lasso_comes_to_something_else() -> None:
    x, y = regression(3, 3)
    exact = minimise(x, y, "exclusive_lasso", 0.1, 1)
    printed = minimise(x, y, lambda w, t: exclusive_soft_threshold(w, t, 1, printed=True), 0.1)
    torch.testing.assert_close(exact.sign(), printed.sign())
    assert 1e-4 < float((exact - printed).abs().max()) < 0.1
