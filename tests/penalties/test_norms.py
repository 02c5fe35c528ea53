"""Penalties of a fixed form are their formulas, with finite gradients at 0 and one interface."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.penalties import L1, L2, DynamicPrior, ElasticNet, HoyerSquare, Penalty

SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=4), min_size=1, max_size=3)
KINDS: dict[str, Any] = {
    "L1": L1,
    "L2": L2,
    "norm": lambda p, s, **o: L2(p, s, norm="l2", **o),
    "elastic": lambda p, s, **o: ElasticNet(p, s, share=0.3, **o),
    "Hoyer": HoyerSquare,
    "Hoyer global": lambda p, s, **o: HoyerSquare(p, s, scope="global", **o),
    "dynamic": DynamicPrior,
}


def plain(kind: str, weights: list[Tensor]) -> Tensor:
    every = torch.cat([w.flatten() for w in weights])
    return {
        "L1": lambda: every.abs().sum(),
        "L2": lambda: every.square().sum(),
        "norm": lambda: every.square().sum().sqrt(),
        "elastic": lambda: 0.3 * every.abs().sum() + 0.35 * every.square().sum(),
        "Hoyer": lambda: torch.stack([w.abs().sum() ** 2 / w.square().sum() for w in weights]).sum(),
        "Hoyer global": lambda: every.abs().sum() ** 2 / every.square().sum(),
    }[kind]()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dynamic"])
@given(SHAPES, st.integers(0, 99))
@example([[3, 4], [2, 2, 3]], 0)
@settings(max_examples=20)
def test_they_are_their_formulas(kind: str, shapes: list[list[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(*s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    value = KINDS[kind](weights, 0.5)()
    twin = 0.5 * plain(kind, weights)
    torch.testing.assert_close(value, twin)
    for ours, theirs in zip(torch.autograd.grad(value, weights), torch.autograd.grad(twin, weights), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_free_and_at_rest(kind: str, dtype: torch.dtype) -> None:
    weights = [torch.zeros(3, 4, dtype=dtype, requires_grad=True) for _ in range(2)]
    value = KINDS[kind](weights, 1.0)()
    value.backward()
    assert value.item() == 0.0
    assert all(w.grad is not None and not w.grad.any() for w in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_they_share_one_interface(kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    penalty = KINDS[kind](model, 0.1)
    assert isinstance(penalty, Penalty)
    assert list(penalty.weights()) == ["0.weight", "2.weight"]
    assert len(KINDS[kind](model, 0.1, vectors=True).weights()) == 6
    assert penalty().requires_grad
    penalty.strength = 0.7
    other = KINDS[kind](copy.deepcopy(model), 0.1)
    other.load_state_dict(penalty.state_dict())
    assert torch.equal(other(), penalty())
    model[0] = nn.Linear(4, 9)
    assert penalty.weights()["0.weight"].shape == (9, 4)
    for strength in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="strength"):
            KINDS[kind](model, strength)
        with pytest.raises(ConfigError, match="strength"):
            penalty.strength = strength
    assert penalty.strength == 0.7


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e15, 1e25])
def test_quotients_and_norms_hold_at_the_ends_of_float32(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(4, 6, dtype=torch.float64, generator=generator) * part for part in (1.0, 0.1)]
    made: list[tuple[Any, dict[str, Any], float]] = [
        (HoyerSquare, {"scope": "tensor"}, 0.0),
        (HoyerSquare, {"scope": "global"}, 0.0),
        (L2, {"norm": "l2"}, 1.0),
    ]
    for kind, options, degree in made:
        double, single = (
            [w.clone().requires_grad_() for w in exact],
            [(w * scale).float().requires_grad_() for w in exact],
        )
        value, found = (kind(weights, 1.0, **options)() for weights in (double, single))
        torch.testing.assert_close(found.detach().double() / scale**degree, value.detach(), rtol=1e-5, atol=0)
        value.backward()
        found.backward()
        for one, other in zip(single, double, strict=True):
            assert one.grad is not None
            assert other.grad is not None
            torch.testing.assert_close(one.grad.double() * scale ** (1 - degree), other.grad, rtol=1e-4, atol=1e-6)


def test_options_out_of_range_are_refused() -> None:
    weights = [torch.ones(2, 2)]
    with pytest.raises(ConfigError, match="l2, l2_squared; got 'l1'"):
        L2(weights, 1.0, norm="l1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="share"):
        ElasticNet(weights, 1.0, share=1.5)
    with pytest.raises(ConfigError, match="scope"):
        HoyerSquare(weights, 1.0, scope="row")  # pyright: ignore[reportArgumentType]


def test_hoyers_square_is_least_with_one_weight_and_free_of_scale() -> None:
    one, equal = torch.tensor([[0.0, 3.0, 0.0]]), torch.ones(1, 3)
    assert HoyerSquare([one], 1.0)().item() == pytest.approx(1.0)
    assert HoyerSquare([equal], 1.0)().item() == pytest.approx(3.0)
    assert HoyerSquare([1e-15 * equal], 1.0)().item() == pytest.approx(3.0)
