"""Switches of any sign fold in any network, exactly, or stay where they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pared
from pared.nn import Switch

IMAGE = torch.randn(3, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def switch(channels: int, dim: int = 1, sign: str = "any") -> Switch:
    made = Switch(channels, dim=dim, init="positive" if sign == "positive" else "uniform")
    return made.to(torch.float64)


class Net(nn.Module):
    """Modules by name, and a function of them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def seq(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*modules)


def conv(i: int, o: int, k: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **more)


def residual(net: Any, x: Tensor) -> Tensor:
    return net.b((x + net.s(net.a(x).relu())).relu())


def both_ways(net: Any, x: Tensor) -> Tensor:
    y = net.s(net.a(x).sigmoid())
    return net.b(y) + net.c(torch.cat([y, x], 1))


def outside(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = net.s(net.a(x).sigmoid())
    return net.b(y), y


def squared(net: Any, x: Tensor) -> Tensor:
    return net.b(net.s(net.a(x).sigmoid()).square())


def maker_read_twice(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(net.s(y)).mean() + y.mean()


def half(net: Any, x: Tensor) -> Tensor:
    first, second = net.s(net.a(x).tanh()).chunk(2, 1)
    return net.b(first) + net.c(second)


def in_place(net: Any, x: Tensor) -> Tensor:
    y = net.s(net.a(x).tanh())
    y += 1.0
    return net.b(y)


def in_place_beside(net: Any, x: Tensor) -> Tensor:
    h = net.a(x).tanh()
    return net.b(net.s(h).relu_()) + net.c(h)


def twice(net: Any, x: Tensor) -> Tensor:
    return net.b(net.s(net.s(net.a(x).tanh())))


def tied(net: Any, x: Tensor) -> Tensor:
    y = F.conv2d(x, net.a.weight)
    return F.conv2d(net.s(y.tanh()), net.a.weight)


def mean(net: Any, x: Tensor) -> Tensor:
    return net.b(net.s(net.a(x).tanh()).mean((2, 3)))


#: What is built, and how many switches have to stay.
CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "behind a convolution": (seq(conv(4, 5), switch(5), nn.ReLU(), conv(5, 2)), 0),
    "behind one in groups": (seq(conv(4, 6, groups=2), switch(6), nn.Tanh(), conv(6, 2)), 0),
    "behind a transposed one": (seq(nn.ConvTranspose2d(4, 6, 3), switch(6), nn.Tanh()), 0),
    "behind a transposed one in groups": (seq(nn.ConvTranspose2d(4, 6, 3, groups=2), switch(6), nn.Tanh()), 1),
    "behind a batch norm": (seq(conv(4, 5), nn.BatchNorm2d(5), switch(5), nn.ReLU(), conv(5, 2)), 0),
    "behind one without weights": (seq(conv(4, 5), nn.BatchNorm2d(5, affine=False), switch(5), nn.ReLU()), 0),
    "behind a group norm": (seq(conv(4, 6), nn.GroupNorm(2, 6), switch(6), nn.ReLU()), 0),
    "behind a layer norm": (seq(nn.Linear(6, 6), nn.LayerNorm(6), switch(6, -1), nn.ReLU()), 0),
    "behind dropout": (seq(conv(4, 5), nn.Dropout2d(), switch(5), nn.ReLU()), 0),
    "before a convolution that pads": (seq(conv(4, 5), nn.Sigmoid(), switch(5), conv(5, 2, padding=1)), 0),
    "before one in groups": (seq(conv(4, 6), nn.Sigmoid(), switch(6), conv(6, 4, groups=2)), 0),
    "before an average and a linear": (
        seq(conv(4, 5), nn.ReLU(), switch(5), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(20, 3)),
        0,
    ),
    "before max-pooling, positive": (
        seq(conv(4, 5), nn.Tanh(), switch(5, sign="positive"), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 3)),
        0,
    ),
    "before max-pooling, any sign": (
        seq(conv(4, 5), nn.Tanh(), switch(5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 3)),
        1,
    ),
    "before a mean": (lambda: Net(mean, a=conv(4, 5), s=switch(5), b=nn.Linear(5, 2)), 0),
    "in a residual": (lambda: Net(residual, a=conv(4, 4, padding=1), s=switch(4), b=conv(4, 2)), 1),
    "read by several": (lambda: Net(both_ways, a=conv(4, 4, padding=1), s=switch(4), b=conv(4, 2), c=conv(8, 2)), 0),
    "read by halves": (lambda: Net(half, a=conv(4, 6), s=switch(6), b=conv(3, 2), c=conv(3, 2)), 0),
    "told to the outside": (lambda: Net(outside, a=conv(4, 4), s=switch(4), b=conv(4, 2)), 1),
    "before a square": (lambda: Net(squared, a=conv(4, 4), s=switch(4), b=conv(4, 2)), 1),
    "its maker read twice": (lambda: Net(maker_read_twice, a=conv(4, 4), s=switch(4), b=conv(4, 2)), 0),
    "written into": (lambda: Net(in_place, a=conv(4, 4), s=switch(4), b=conv(4, 2)), 1),
    "written into, its input read elsewhere": (
        lambda: Net(in_place_beside, a=conv(4, 4), s=switch(4, sign="positive"), b=conv(4, 2), c=conv(4, 2)),
        1,
    ),
    "used twice": (lambda: Net(twice, a=conv(4, 4), s=switch(4), b=conv(4, 2)), 1),
    "between tied weights": (lambda: Net(tied, a=conv(4, 4), s=switch(4)), 1),
    "at the end": (seq(conv(4, 4), nn.Tanh(), switch(4)), 1),
    "at the start": (seq(switch(4), conv(4, 4), nn.Tanh()), 0),
    "two in a row": (seq(conv(4, 4), nn.Tanh(), switch(4), switch(4), conv(4, 2)), 1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_folding_preserves_the_function(name: str, training: bool) -> None:
    make, stays = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = make().to(torch.float64)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean, module.running_var = torch.randn(5).double(), torch.rand(5).double() + 0.5
    wanted, before = model.eval()(IMAGE), {k: v.clone() for k, v in model.state_dict().items()}
    folded = pared.fold(model.train(training), IMAGE)
    assert folded.training is training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    torch.testing.assert_close(folded.eval()(IMAGE), wanted, rtol=1e-10, atol=1e-12)
    assert sum(isinstance(module, Switch) for module in folded.modules()) == stays


def test_a_folded_network_is_smaller_by_its_switches_and_saves() -> None:
    model = nn.Sequential(conv(4, 5), Switch(5, dim=1), nn.ReLU(), conv(5, 2))
    folded = pared.fold(model, IMAGE.float())
    assert [type(m).__name__ for m in folded] == ["Conv2d", "Identity", "ReLU", "Conv2d"]
    assert [k for k in folded.state_dict() if k.startswith("1")] == []
