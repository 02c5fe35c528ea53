import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call

from pared.errors import ConfigError
from pared.nn import Select, Switch

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "switch": lambda: Switch(5, init="uniform", generator=torch.Generator().manual_seed(0)),
    "grouped": lambda: Switch(5, sizes=[2, 1, 2]),
    "select": lambda: Select(5),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
class TestEveryLayer:
    def test_state_dict_deepcopy_and_pickle_round_trips(self, make: Callable[[], nn.Module]) -> None:
        layer, x = make(), torch.randn(3, 5)
        other = make()
        other.load_state_dict(layer.state_dict())
        for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)

    def test_exports_and_calls_functionally(self, make: Callable[[], nn.Module]) -> None:
        layer, x = make(), torch.randn(3, 5)
        state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        torch.testing.assert_close(functional_call(layer, state, (x,)), layer(x))
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))

    def test_says_what_it_is(self, make: Callable[[], nn.Module]) -> None:
        assert "5" in repr(make())


def test_switch_gradients_in_float64() -> None:
    for layer in (Switch(4, dtype=torch.float64), Switch(4, sizes=[1, 3], dtype=torch.float64)):
        x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda a, t, layer=layer: functional_call(layer, {"theta": t}, (a,)), (x, layer.theta)
        )


def test_switch_over_channels_of_an_image() -> None:
    layer = Switch(3, dim=1, init="uniform", generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(layer(x), x * layer.theta.view(1, 3, 1, 1))


def test_grouped_switch_scales_neighbours_alike() -> None:
    layer = Switch(5, sizes=[2, 3])
    with torch.no_grad():
        layer.theta.copy_(torch.tensor([2.0, 0.0]))
        layer.alive[1] = False
    torch.testing.assert_close(layer(torch.ones(1, 5)), torch.tensor([[2.0, 2.0, 0.0, 0.0, 0.0]]))
    assert layer.live_channels().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("init", "low", "high"), [("ones", 1, 1), ("uniform", -1, 1), ("normal", -9, 9), ("positive", 0, 1)]
)
def test_switch_starts_in_its_range(init: str, low: float, high: float) -> None:
    theta = Switch(500, init=init, generator=torch.Generator().manual_seed(0)).theta  # pyright: ignore[reportArgumentType]
    assert low <= theta.min() <= theta.max() <= high
    assert init != "positive" or theta.min() > 0
    assert init != "uniform" or theta.min() < -0.5


@pytest.mark.parametrize(
    "bad",
    [{"channels": 0}, {"channels": 3, "sizes": [1, 1]}, {"channels": 3, "sizes": [0, 3]}, {"channels": 3, "init": "x"}],
)
def test_switch_refuses(bad: dict) -> None:
    with pytest.raises(ConfigError):
        Switch(**bad)


def test_devices_and_dtypes_are_passed_on() -> None:
    assert Switch(3, device="meta", dtype=torch.float64).theta.dtype == torch.float64
    assert Select(3, device="meta").index.is_meta


def test_select_takes_whole_or_narrowed_rows() -> None:
    layer = Select(5)
    layer.index = torch.tensor([0, 3])
    x = torch.arange(5.0)[None]
    assert layer(x).tolist() == [[0.0, 3.0]]
    assert layer(layer(x)).tolist() == [[0.0, 3.0]]
    with pytest.raises(ValueError, match="expected 5 features"):
        layer(torch.ones(1, 4))
