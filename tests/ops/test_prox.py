"""Proximal operators minimise what they say, which is checked at random points beside the answer."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from pared.ops import exclusive_soft_threshold, group_soft_threshold, soft_threshold
from pared.penalties import exclusive_lasso, group_lasso, l1

Axes = int | tuple[int, ...]
#: A penalty, and its proximal operator.
PAIRS: dict[str, tuple[Callable[[Tensor, Axes], Tensor], Callable[[Tensor, float, Axes], Tensor]]] = {
    "l1": (lambda x, _: l1([x]), lambda x, t, _: soft_threshold(x, t)),
    "group lasso": (lambda x, dim: group_lasso([x], dim), group_soft_threshold),
    "exclusive lasso": (lambda x, dim: exclusive_lasso([x], dim), exclusive_soft_threshold),
}
AXES = st.sampled_from([0, 1, -1, (0, 1), (1, 0)])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 999), st.floats(0.0, 3.0), st.sampled_from(list(PAIRS)), AXES)
def test_no_other_point_is_better(seed: int, threshold: float, name: str, dim: Axes) -> None:
    x = draw(seed, 3, 4)
    penalty, prox = PAIRS[name]

    def objective(z: Tensor) -> float:
        return float(0.5 * (z - x).square().sum() + threshold * penalty(z, dim))

    answer = prox(x, threshold, dim)
    best = objective(answer)
    for scale in (1e-3, 1e-1, 1.0):
        assert objective(answer + scale * draw(seed + 1, 3, 4)) >= best - 1e-12
    assert objective(torch.zeros_like(x)) >= best - 1e-12
    assert objective(x) >= best - 1e-12


def test_small_groups_become_exactly_zero_and_zero_stays() -> None:
    x = torch.tensor([[3.0, 0.1, 0.0], [4.0, -0.1, 0.0]])
    shrunk = group_soft_threshold(x, 1.0, 0)
    assert torch.equal(shrunk[:, 1:], torch.zeros(2, 2))
    torch.testing.assert_close(shrunk[:, 0], torch.tensor([2.4, 3.2]))
    assert torch.equal(group_soft_threshold(x, 0.0, 0), x)


def test_the_group_lasso_sums_norms_and_has_no_gradient_at_zero() -> None:
    weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]], requires_grad=True)
    value = group_lasso([weight, torch.ones(2, 2)], 0)
    assert value.item() == pytest.approx(5.0 + 2.0 * 2.0**0.5)
    value.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[0.6, 0.0], [0.8, 0.0]]))
    filters = draw(0, 4, 2, 3, 3)
    assert group_lasso([filters], (1, 2, 3)).item() == pytest.approx(filters.flatten(1).norm(dim=1).sum().item())


def by_least_squares(x: Tensor, threshold: float) -> Tensor:
    """The exclusive lasso's proximal operator of one group: sizes u >= 0 of least ‖u - |x|‖² + threshold · (sum u)²."""
    rows = np.vstack([np.eye(len(x)), np.full((1, len(x)), threshold**0.5)])
    sizes, _ = nnls(rows, np.append(x.abs().numpy(), 0.0))
    return torch.from_numpy(sizes) * x.sign()


@given(
    st.lists(st.floats(-5.0, 5.0).map(lambda v: round(v, 2)), min_size=1, max_size=12),
    st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0, 7.0]),
)
def test_the_exclusive_lasso_agrees_with_a_solver(entries: list[float], threshold: float) -> None:
    x = torch.tensor(entries, dtype=torch.float64)
    answer = exclusive_soft_threshold(x, threshold, 0)
    torch.testing.assert_close(answer, by_least_squares(x, threshold), rtol=0, atol=1e-9)
    # The condition of optimality, in which the norm is that of the answer.
    torch.testing.assert_close(answer, soft_threshold(x, threshold * answer.abs().sum()), rtol=0, atol=1e-12)
    largest = x.abs() == x.abs().max()
    assert bool((answer != 0)[largest & (x != 0)].all())


@given(st.integers(0, 99), st.sampled_from([(4, 5), (3, 2, 4), (2, 3, 2, 2)]), st.data())
def test_groups_of_the_exclusive_lasso_run_over_any_axes(
    seed: int, shape: tuple[int, ...], data: st.DataObject
) -> None:
    places = st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1)
    dim = tuple(data.draw(places))
    x, strengths = draw(seed, *shape), draw(seed + 1, *shape).abs().amax(dim, keepdim=True)
    answer = exclusive_soft_threshold(x, strengths, tuple(axis - len(shape) for axis in dim))
    rest = [axis for axis in range(len(shape)) if axis not in dim]
    order = (*rest, *dim)
    groups, found = (t.permute(order).reshape(strengths.numel(), -1) for t in (x, answer))
    for group, one, strength in zip(groups, found, strengths.permute(order).flatten(), strict=True):
        torch.testing.assert_close(one, by_least_squares(group, float(strength)), rtol=0, atol=1e-9)
    if len(dim) == 1:
        assert torch.equal(exclusive_soft_threshold(x, 0.3, dim[0]), exclusive_soft_threshold(x, 0.3, dim))


def test_members_of_a_group_go_where_another_is_large_and_every_group_stays() -> None:
    x = torch.tensor([[3.0, 0.1], [0.5, 0.02], [-0.4, 0.0]])
    shrunk = exclusive_soft_threshold(x, 0.25, 0)
    torch.testing.assert_close(shrunk, torch.tensor([[2.4, 0.08], [0.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(exclusive_soft_threshold(x, 0.0, 0), x)
    assert exclusive_soft_threshold(torch.empty(0, 3), 1.0, 1).shape == (0, 3)
    half = torch.full((40000,), 2.0, dtype=torch.float16)  # whose sum is above the largest of its type
    assert torch.equal(exclusive_soft_threshold(half, 0.001, 0), torch.full_like(half, 2.0 / 41.0))


@given(st.integers(0, 999), st.floats(0.01, 2.0))
def test_the_printed_form_is_a_first_step_and_shrinks_too_much(seed: int, threshold: float) -> None:
    x = draw(seed, 6)
    printed, exact = exclusive_soft_threshold(x, threshold, 0, printed=True), exclusive_soft_threshold(x, threshold, 0)
    torch.testing.assert_close(printed, soft_threshold(x, threshold * x.abs().sum()))
    assert bool((printed.abs() <= exact.abs()).all())
    assert not torch.equal(printed, exact)
    strong = float(x.abs().max() / x.abs().sum()) * 1.001
    assert not exclusive_soft_threshold(x, strong, 0, printed=True).any()


@given(st.integers(0, 999), st.integers(1, 8), st.floats(-6.0, 3.0))
def test_where_entries_are_positive_the_printed_form_is_that_of_a_gate(seed: int, n: int, beta: float) -> None:
    """Equation 3 of differentiable sparsification: max(gamma - sigmoid(beta) · ‖gamma‖₁, 0)."""
    gamma = draw(seed, n).sigmoid()
    share = torch.tensor(beta, dtype=torch.float64).sigmoid()
    raw = torch.relu(gamma - share * gamma.norm(1))
    torch.testing.assert_close(exclusive_soft_threshold(gamma, share, 0, printed=True), raw)
    exact = exclusive_soft_threshold(gamma, share, 0)
    torch.testing.assert_close(exact, torch.relu(gamma - share * exact.norm(1)))


def test_the_exclusive_lasso_is_half_the_squared_sum_of_each_group() -> None:
    weight = torch.tensor([[3.0, 0.0], [-4.0, 1.0]], requires_grad=True)
    value = exclusive_lasso([weight, torch.ones(2, 2)], 0)
    assert value.item() == pytest.approx(0.5 * (49.0 + 1.0 + 4.0 + 4.0))
    value.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[7.0, 0.0], [-7.0, 1.0]]))
    filters = draw(0, 4, 2, 3, 3)
    expected = 0.5 * filters.abs().flatten(1).sum(1).square().sum().item()
    assert exclusive_lasso([filters], (1, 2, 3)).item() == pytest.approx(expected)
