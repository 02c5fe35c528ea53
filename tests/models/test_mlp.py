import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pared.errors import ConfigError
from pared.models import conic, mlp

WIDTH = st.integers(1, 6)


@given(WIDTH, WIDTH, st.lists(WIDTH, max_size=3))
def test_widths_and_size_are_those_asked_for(inputs: int, outputs: int, hidden: list[int]) -> None:
    model = mlp(inputs, outputs, hidden, generator=torch.Generator().manual_seed(0))
    widths = [inputs, *hidden, outputs]
    pairs = list(pairwise(widths))
    assert sum(p.numel() for p in model.parameters()) == sum(a * b + b for a, b in pairs)
    assert [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)] == pairs
    assert isinstance(model[-1], nn.Linear)
    assert model(torch.ones(2, inputs)).shape == (2, outputs)


def test_weights_come_from_the_generator_within_their_bound() -> None:
    state = torch.get_rng_state()
    first, again = (mlp(9, 2, (400,), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    weight = first[0].weight
    assert isinstance(weight, torch.Tensor)
    assert weight.abs().max() <= 1 / math.sqrt(9)
    assert weight.std().item() == pytest.approx(1 / math.sqrt(27), rel=0.05)


def test_another_activation_and_bad_widths() -> None:
    assert isinstance(mlp(2, 2, (3,), activation=nn.Tanh)[1], nn.Tanh)
    for bad in ((0, 1, (2,)), (1, 0, (2,)), (1, 1, (2, 0))):
        with pytest.raises(ConfigError, match="every width"):
            mlp(*bad)


@pytest.mark.parametrize(("activation", "gain"), [(nn.ReLU, 2.0), (nn.SELU, 1.0), (nn.Tanh, 1.0)])
def test_normal_weights_have_the_variance_asked_for(activation: type[nn.Module], gain: float) -> None:
    state = torch.get_rng_state()
    first, again = (
        mlp(300, 5, (400,), activation=activation, init="normal", generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(state, torch.get_rng_state())
    for layer, other in zip(first, again, strict=True):
        if isinstance(layer, nn.Linear) and isinstance(other, nn.Linear):
            assert torch.equal(layer.weight, other.weight)
            assert not layer.bias.any()
            draws = layer.weight.detach() * math.sqrt(layer.in_features / gain)
            error = 1 / math.sqrt(draws.numel())
            assert abs(draws.mean().item()) < 4 * error
            assert abs(draws.std().item() - 1) < 4 * error
            assert draws.abs().max() > 3  # uniform ones would end at 1.7


@pytest.mark.parametrize(("activation", "kind"), [(nn.ReLU, nn.Dropout), (nn.SELU, nn.AlphaDropout)])
def test_dropout_stands_behind_every_hidden_activation(activation: type[nn.Module], kind: type[nn.Module]) -> None:
    linear = nn.Linear
    model = mlp(3, 2, (4, 4), activation=activation, dropout=0.05)
    assert [type(m) for m in model] == [linear, activation, kind, linear, activation, kind, linear]
    assert {m.p for m in model if isinstance(m, nn.Dropout | nn.AlphaDropout)} == {0.05}
    assert [type(m) for m in mlp(3, 2, (4,), activation=activation)] == [linear, activation, linear]
    assert [type(m) for m in mlp(3, 2, (), activation=activation, dropout=0.5)] == [linear]


@pytest.mark.parametrize(("layers", "dropout"), [(8, 0.05), (16, 0.0), (16, 0.1)])
def test_selu_networks_keep_mean_and_variance(layers: int, dropout: float) -> None:
    generator = torch.Generator().manual_seed(0)
    model = mlp(64, 3, (256,) * layers, activation=nn.SELU, dropout=dropout, init="normal", generator=generator).train()
    x = torch.randn(512, 64, generator=generator)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for layer in list(model)[:-1]:
            x = layer(x)
            if isinstance(layer, nn.AlphaDropout if dropout else nn.SELU):
                assert abs(x.mean().item()) < 0.1
                assert x.var().item() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_torchs_alpha_dropout_is_the_papers(share: float) -> None:
    keep, dropped = 1 - share, -1.7580993408473766
    a = 1 / math.sqrt(keep * (1 + share * dropped**2))
    b = -a * share * dropped
    x = torch.linspace(2, 3, 4000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = nn.AlphaDropout(share)(x)
    kept = y > 0.5 * (a * 2 + b + a * dropped + b)
    assert kept.float().mean().item() == pytest.approx(keep, abs=0.03)
    torch.testing.assert_close(y[kept], a * x[kept] + b)
    torch.testing.assert_close(y[~kept], torch.full_like(y[~kept], a * dropped + b))


def test_conic_widths_of_the_papers_first_row() -> None:
    assert conic(512, 8, 3) == (512, 269, 142, 75, 39, 21, 11, 6)
    last = conic(512, 8, 3, last=True)
    assert (last[:2], last[-2:]) == ((512, 246), (6, 3))
    assert conic(7, 1, 3, last=True) == conic(7, 1, 3) == (7,)


@given(st.integers(1, 1024), st.integers(1, 32), st.integers(1, 1024), st.booleans())
def test_conic_widths_go_one_way_by_one_factor(start: int, layers: int, outputs: int, last: bool) -> None:
    widths = conic(start, layers, outputs, last=last)
    assert len(widths) == layers
    assert widths[0] == start
    assert all(min(start, outputs) <= width <= max(start, outputs) for width in widths)
    assert list(widths) == sorted(widths, reverse=start > outputs)
    if last and layers > 1:
        assert widths[-1] == outputs
    for one, middle, other in zip(widths, widths[1:], widths[2:], strict=False):  # each rounded by half at most
        assert (one - 0.5) * (other - 0.5) - 1e-6 <= (middle + 0.5) ** 2
        assert (middle - 0.5) ** 2 <= (one + 0.5) * (other + 0.5) + 1e-6


@pytest.mark.parametrize("options", [{"dropout": 1.0}, {"dropout": -0.1}, {"dropout": math.nan}, {"init": "gauss"}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        mlp(2, 2, (3,), **options)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_cones_of_nothing_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        conic(*numbers)
