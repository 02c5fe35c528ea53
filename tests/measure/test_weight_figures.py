"""Densities and magnitudes of weights, and norms of sampled vectors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pared.errors import ConfigError
from pared.measure.weights import sampled_norms, weight_figures
from pared.nn import SparseLinear
from pared.penalties import DynamicPrior, Sampling

ROWS = st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=5)


@given(st.lists(ROWS, min_size=1, max_size=3), st.floats(0.0, 0.5))
def test_figures_are_counts_and_norms_over_all_weights(tables: list[list[list[float]]], threshold: float) -> None:
    tensors = [torch.tensor(rows, dtype=torch.float64) for rows in tables]
    values = [v for rows in tables for row in rows for v in row]
    figures = weight_figures(tensors, threshold)
    assert figures["density"] == sum(abs(v) > threshold for v in values) / len(values)
    assert figures["density_printed"] == sum(v > threshold for v in values) / len(values)
    assert figures["magnitude"] == pytest.approx(math.sqrt(sum(v * v for v in values)))
    assert figures["mean_magnitude"] == pytest.approx(sum(map(abs, values)) / len(values))


def test_figures_leave_biases_out_and_refuse_what_is_no_threshold() -> None:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, -1.0)
    nn.init.constant_(model.bias, 5.0)
    figures = weight_figures(model)
    assert (figures["density"], figures["density_printed"]) == (1.0, 0.0)
    assert figures["magnitude"] == pytest.approx(6**0.5)
    assert weight_figures(model, vectors=True)["density_printed"] == 0.25
    assert weight_figures(model.requires_grad_(False)) == figures
    with pytest.raises(ConfigError, match="threshold"):
        weight_figures(model, -0.1)


def test_norms_of_sampled_vectors_are_those_that_the_penalty_adds_up() -> None:
    weight = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    norms = sampled_norms([weight], 6, Sampling(0.05), seed=3)
    assert norms.shape == (6,)
    torch.testing.assert_close(norms.sum(), DynamicPrior([weight], 1.0, 0.05, 6, seed=3)())
    few, uniform = sampled_norms([weight], 6), sampled_norms([weight], 6, Sampling(0.05, prior="uniform"))
    assert bool((norms > uniform).all())
    assert bool((norms > few).all())
    with pytest.raises(ConfigError, match="draws"):
        sampled_norms([weight], 0)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e22])
def test_norms_of_sampled_vectors_keep_their_digits(scale: float) -> None:
    (found,) = sampled_norms([torch.full((2000, 2000), 0.1 * scale)], 1, Sampling(1.0))
    assert float(found) == pytest.approx(200.0 * scale, rel=1e-6)


def test_what_a_sparse_layer_does_not_store_counts_as_zero() -> None:
    layer = SparseLinear(20, 10, density=0.2)
    nn.init.constant_(layer.values, 0.5)
    figures = weight_figures(nn.Sequential(layer))
    assert figures["density"] == pytest.approx(0.2)
    assert figures["mean_magnitude"] == pytest.approx(0.1)
    assert figures["magnitude"] == pytest.approx(0.5 * 40**0.5)
