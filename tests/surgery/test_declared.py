"""Ties declared by hand give the plan that a trace gives, where there is a trace to compare with."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pared
from pared.errors import SurgeryError
from pared.nn import Switch
from pared.surgery import make_plan

IMAGE = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, a depthwise one, a concatenation, a flattening; `choose` looks at the data."""

    def __init__(self, choose: bool) -> None:
        super().__init__()
        self.choose = choose
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.deep, self.switch = nn.Conv2d(6, 6, 3, groups=6, padding=1), Switch(6, dim=1)
        self.second = nn.Conv2d(6, 5, 3, padding=1)
        self.head = nn.Linear(5 * 36 + 6 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()
        if self.choose and y.mean() > 100:
            y = y * 0.5
        y = self.switch(self.deep(y)).relu()
        z = self.second(y).relu()
        return self.head(torch.cat([z.flatten(1), y.flatten(1)], 1))


SPACES: dict[str, tuple[list[str], list[str]]] = {
    "one": (["first", "norm", "deep", "switch"], ["second", "head[180:396]"]),
    "two": (["second"], ["head[0:180]"]),
}


def network(choose: bool) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(choose).double().eval()


def test_the_plan_is_that_of_a_trace() -> None:
    net = network(False)
    traced, declared = pared.graph(net, IMAGE), pared.declare(net, SPACES)
    for name, layer in (("one", "first"), ("two", "second")):
        wanted = make_plan(traced, net, {layer: [0, 2, 3]}, living="cut")
        plan = make_plan(declared, net, {name: [0, 2, 3]}, living="cut")
        assert set(plan.gathers) == set(wanted.gathers)
        assert set(plan.resizes) == set(wanted.resizes)


def test_a_network_that_cannot_be_exported_follows() -> None:
    net = network(True)
    with pytest.raises(SurgeryError, match="pared.declare"):
        pared.graph(net, IMAGE)
    graph, optimizer = pared.declare(net, SPACES), torch.optim.AdamW(net.parameters(), weight_decay=0.0)
    with pytest.raises(SurgeryError, match="entry 1 of 'one' is alive"):
        pared.remove(net, {"one": [1]}, graph=graph, optimizer=optimizer)
    for gone, name, columns in (([1, 4], "one", slice(180, 396)), ([0], "two", slice(0, 180))):
        with torch.no_grad():
            net.head.weight[:, columns].unflatten(1, (-1, 36))[:, gone] = 0.0
            if name == "one":
                net.second.weight[:, gone] = 0.0
        before = net(IMAGE)
        pared.remove(net, {name: gone}, graph=graph, optimizer=optimizer)
        torch.testing.assert_close(net(IMAGE), before, rtol=1e-12, atol=1e-12)
    assert (net.first.out_channels, net.deep.groups, net.deep.in_channels, net.switch.channels) == (4, 4, 4, 4)
    assert (net.second.in_channels, net.second.out_channels, net.head.in_features) == (4, 4, 4 * 36 + 4 * 36)
    net.train()(IMAGE).mean().backward()
    optimizer.step()
    assert graph.find("one").size == 4


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"a": (["nowhere"], ["head"])}, "no layer 'nowhere'"),
        ({"a": (["first"], [])}, "at least one layer"),
        ({"a": (["first"], ["norm"])}, "not understood as a reader"),
        ({"a": (["first", "second"], ["head"])}, "are no 6 units"),
        ({"a": (["second"], ["head[0:181]"])}, "no multiple of 5 units"),
        ({"a": (["second"], ["head[0:180]"]), "b": (["first"], ["head[100:316]"])}, "declared twice"),
        ({"a": (["second"], ["head[300:480]"])}, "no multiple"),
    ],
)
def test_what_does_not_fit_is_refused(spaces: Any, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        pared.declare(network(True), spaces)
