"""What dead units still say is found where it is easy to get wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pared import surgery
from pared.errors import SurgeryError

X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def made(run: Callable[[Any, Tensor], Tensor], **sizes: tuple[int, int]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(run, **{name: nn.Linear(*size) for name, size in sizes.items()}).double().eval()


def still(layer: nn.Linear, unit: int, says: float) -> None:
    with torch.no_grad():
        layer.weight[unit], layer.bias[unit] = 0.0, says


def removed(net: nn.Module, entries: dict[str, list[int]]) -> None:
    graph, before = surgery.graph(net, X), net(X)
    surgery.remove(net, entries, graph=graph)
    torch.testing.assert_close(net(X), before, rtol=1e-12, atol=1e-12)


def test_a_zero_meets_only_its_own_row_of_an_outer_product() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.c((net.a(x).unsqueeze(2) * net.b(x).unsqueeze(1)).flatten(1))

    net = made(run, a=(4, 3), b=(4, 5), c=(15, 2))
    still(net.a, 1, 0.0)
    removed(net, {"a": [1]})
    assert net.c.in_features == 10
    with pytest.raises(SurgeryError, match="entry 2 of 'b' is alive"):  # b's own entries are not zero for that
        net = made(run, a=(4, 3), b=(4, 5), c=(15, 2))
        still(net.a, 1, 0.0)
        removed(net, {"a": [1], "b": [2]})


@pytest.mark.parametrize(
    "change", [lambda y: y + 1.0, lambda y: y - 0.5, lambda y: y.relu() + 2, lambda y: y.sigmoid()]
)
def test_a_number_added_to_zero_is_a_constant(change: Callable[[Tensor], Tensor]) -> None:
    net = made(lambda net, x: net.b(change(net.a(x))), a=(4, 5), b=(5, 2))
    still(net.a, 1, 0.0)
    removed(net, {"a": [1]})


def test_a_layer_means_what_its_input_was_before_it_was_written_into() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        y = net.b(h)
        h.add_(1.0)
        return net.c(y) + net.d(h)

    net = made(run, a=(4, 6), b=(6, 5), c=(5, 2), d=(6, 2))
    still(net.a, 2, 0.3)
    with torch.no_grad():
        net.b.weight[1] = 0.0
        net.b.weight[1, 2] = 1.5  # unit 1 of b says what unit 2 of a says, before one was added
    removed(net, {"a": [2], "b": [1]})


def test_constants_go_through_a_product_with_a_raw_weight() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.b((x @ net.w).relu())

    net = made(run, b=(6, 2))
    net.w = nn.Parameter(torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        net.w[:, 3] = 0.0
    removed(net, {surgery.graph(net, X).at("w", 1).name: [3]})
    assert tuple(net.w.shape) == (4, 5)


def test_the_same_layer_read_twice_with_different_constants_is_refused() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        return net.b(y) + net.b(y + 1.0)

    net = made(run, a=(4, 5), b=(5, 2))
    still(net.a, 1, 0.2)
    with pytest.raises(SurgeryError, match="used more than once and gets different constants"):
        removed(net, {"a": [1]})


@pytest.mark.parametrize("says", [0.0, 0.4])
def test_one_dead_unit_does_not_speak_for_the_others(says: float) -> None:
    net = made(lambda net, x: net.b(net.a(x).relu()), a=(4, 5), b=(5, 2))
    still(net.a, 1, says)
    before = net(X)
    with pytest.raises(SurgeryError, match="entry 2 of 'a' is alive"):
        removed(net, {"a": [1, 2]})
    assert torch.equal(net(X), before)
    removed(net, {"a": [1]})


def test_a_constant_met_through_zero_padding_is_none() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: Any = nn.Sequential(
            nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)
        ).double()
    image = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0.0, 0.5
        net[1].weight[2], net[1].weight[:, 1] = 0.0, 0.0
        net[1].weight[2, 1] = 1.0  # the sum over fewer places at the edges of the image
    graph, before = surgery.graph(net, image), net(image)
    with pytest.raises(SurgeryError, match="entry 2 of '1' is alive"):
        surgery.remove(net, {"0": [1], "1": [2]}, graph=graph)
    assert torch.equal(net(image), before)
