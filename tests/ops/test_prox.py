"""Proximal operators minimise what they say, which is checked at random points beside the answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pared.ops import group_soft_threshold, soft_threshold
from pared.penalties import group_lasso, l1


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 999), st.floats(0.0, 3.0), st.sampled_from(["l1", 0, 1, (0, 1)]))
def test_no_other_point_is_better(seed: int, threshold: float, groups: str | int | tuple[int, int]) -> None:
    x = draw(seed, 3, 4)

    def objective(z: Tensor) -> float:
        norm = l1([z]) if isinstance(groups, str) else group_lasso([z], groups)
        return float(0.5 * (z - x).square().sum() + threshold * norm)

    answer = soft_threshold(x, threshold) if isinstance(groups, str) else group_soft_threshold(x, threshold, groups)
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
