"""Scaling towards sums of 1: where it converges, what it keeps, and where it divides by nothing."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pared.errors import ConfigError
from pared.ops import sinkhorn
from pared.ops.lines import DENSE_FROM, Lines

SCALINGS = ["sinkhorn", "balanced"]
seeds = st.integers(0, 10_000)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive(n: int, seed: int) -> Tensor:
    return torch.rand(n, n, generator=drawn(seed), dtype=torch.float64) + 0.1


def supported(n: int, seed: int) -> Tensor:
    """A sum of permutation matrices, each entry times a number: total support, by Birkhoff."""
    generator = drawn(seed)
    total = sum(torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=generator)] for _ in range(3))
    return torch.as_tensor(total) * (torch.rand(n, n, generator=generator, dtype=torch.float64) + 0.5)


@given(n=st.integers(1, 8), seed=seeds, scaling=st.sampled_from(SCALINGS))
def test_positive_matrices_add_up_to_one_in_both_directions(n: int, seed: int, scaling: Any) -> None:
    scaled = sinkhorn(positive(n, seed), 20 if scaling == "sinkhorn" else 40, scaling)
    torch.testing.assert_close(scaled.sum(0), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.sum(1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-4)


@settings(max_examples=20)
@given(n=st.integers(2, 6), seed=seeds, scaling=st.sampled_from(SCALINGS))
def test_sparse_ones_with_total_support_do_too_and_zeros_stay(n: int, seed: int, scaling: Any) -> None:
    before = supported(n, seed)
    scaled = sinkhorn(before, 1000, scaling)
    for dim in (0, 1):
        torch.testing.assert_close(scaled.sum(dim), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-4)
    assert torch.equal(scaled == 0, before == 0)


@given(n=st.integers(1, 7), seed=seeds, iterations=st.integers(0, 5), scaling=st.sampled_from(SCALINGS))
def test_a_pattern_is_scaled_as_its_matrix(n: int, seed: int, iterations: int, scaling: Any) -> None:
    matrix = supported(n, seed)
    row, col = matrix.nonzero(as_tuple=True)
    values = sinkhorn(matrix[row, col], iterations, scaling, row=row, col=col, size=n)
    torch.testing.assert_close(values, sinkhorn(matrix, iterations, scaling)[row, col])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_derivatives(scaling: Any) -> None:
    matrix = supported(4, 1)
    row, col = matrix.nonzero(as_tuple=True)
    values = matrix[row, col].requires_grad_()
    assert torch.autograd.gradcheck(lambda v: sinkhorn(v, 3, scaling, row=row, col=col, size=4), values)
    assert torch.autograd.gradcheck(lambda m: sinkhorn(m, 3, scaling), positive(4, 2).requires_grad_())


@given(n=st.integers(2, 6), seed=seeds, scaling=st.sampled_from(SCALINGS))
def test_rows_and_columns_of_zeros_stay_so_with_finite_derivatives(n: int, seed: int, scaling: Any) -> None:
    matrix = positive(n, seed)
    matrix[0] = 0.0
    matrix[:, -1] = 0.0
    matrix.requires_grad_()
    scaled = sinkhorn(matrix, 20, scaling)
    scaled.square().sum().backward()
    assert not scaled[0].any()
    assert not scaled[:, -1].any()
    assert bool(scaled.isfinite().all())
    assert matrix.grad is not None
    assert bool(matrix.grad.isfinite().all())


@given(n=st.integers(2, 7), seed=seeds, iterations=st.integers(0, 30))
def test_balanced_scaling_keeps_symmetry(n: int, seed: int, iterations: int) -> None:
    matrix = supported(n, seed)
    scaled = sinkhorn(matrix + matrix.t(), iterations, "balanced")
    torch.testing.assert_close(scaled, scaled.t(), rtol=1e-13, atol=0)


def test_sinkhorn_loses_symmetry_on_the_way() -> None:
    matrix = positive(4, 3)
    once = sinkhorn(matrix + matrix.t(), 1)
    assert float((once - once.t()).abs().max()) > 1e-3


def test_without_total_support_columns_add_up_and_nothing_breaks() -> None:
    scaled = sinkhorn(torch.ones(5, 5).triu(), 200)
    torch.testing.assert_close(scaled.sum(0), torch.ones(5))
    assert float((scaled.sum(1) - 1).abs().max()) > 1e-4
    assert not scaled.tril(-1).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"A": torch.ones(2, 3)}, "expected a square matrix"),
        ({"A": torch.ones(2, 2), "scaling": "rows"}, "scaling must be one of sinkhorn, balanced"),
        ({"A": torch.ones(2, 2), "iterations": -1}, "iterations at least 0"),
        ({"A": torch.ones(2), "row": torch.zeros(2, dtype=torch.long)}, "needs row, col and size"),
        ({"A": torch.ones(2), "row": torch.arange(2), "col": torch.arange(2)}, "needs row, col and size"),
        ({"A": torch.ones(3), "row": torch.arange(2), "col": torch.arange(2), "size": 2}, "of one length"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sinkhorn(**arguments)


@pytest.mark.parametrize("entries", [3, 40, 400])
def test_products_over_patterns_are_those_of_the_matrix(entries: int) -> None:
    assert 3 < DENSE_FROM * 20**2 < 40  # both ways are taken
    place = torch.randperm(400, generator=drawn(0))[:entries]
    lines = Lines(20, place // 20, place % 20)
    x = torch.rand(entries, generator=drawn(1), dtype=torch.float64)
    h = torch.randn(2, 3, 20, 4, generator=drawn(2), dtype=torch.float64)
    torch.testing.assert_close(lines.product(x, h), lines.matrix(x) @ h)
    with pytest.raises(ValueError, match="expected features of 20 nodes"):
        lines.product(x, h[..., :19, :])
