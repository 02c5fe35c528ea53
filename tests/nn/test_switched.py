"""A layer with its switch: the same whether the factors meet what comes out or the layer's own weights."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pared.nn import HardConcrete, Switch, Switched

#: A layer of 4 units, the shape of what it takes, the axis of its units, and whether factors meet its weights.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, bool]] = {
    "conv": (lambda: nn.Conv2d(3, 4, 3), (5, 3, 6, 6), -3, True),
    "conv without bias": (lambda: nn.Conv1d(3, 4, 3, bias=False), (5, 3, 6), -2, True),
    "grouped conv": (lambda: nn.Conv3d(2, 4, 2, groups=2), (5, 2, 3, 3, 3), -4, True),
    "batch norm": (lambda: nn.BatchNorm2d(4), (5, 4, 6, 6), -3, True),
    "batch norm of rows": (lambda: nn.BatchNorm1d(4), (5, 4), -1, True),
    "batch norm, plain mean": (lambda: nn.BatchNorm2d(4, momentum=None), (5, 4, 6, 6), -3, True),
    "batch norm without statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (5, 4, 6, 6), -3, True),
    "frozen batch norm": (lambda: nn.BatchNorm2d(4).eval(), (5, 4, 6, 6), -3, True),
    "instance norm": (lambda: nn.InstanceNorm1d(4, affine=True), (5, 4, 6), -2, False),
    "standardised conv": (lambda: Standardised(3, 4, 3), (5, 3, 6, 6), -3, False),
    "batch norm without weight": (lambda: nn.BatchNorm2d(4, affine=False), (5, 4, 6, 6), -3, False),
    "one image": (lambda: nn.Conv2d(3, 4, 3), (3, 6, 6), -3, False),
    "places": (lambda: nn.Conv1d(3, 4, 3), (5, 3, 6), -1, False),  # as many places as channels, by chance
    "transposed conv": (lambda: nn.ConvTranspose2d(3, 4, 3), (5, 3, 6, 6), -3, False),
    "linear": (lambda: nn.Linear(3, 4), (5, 3), -1, False),
}


class Standardised(nn.Conv2d):
    """A convolution that takes the scale of its rows away."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


def _gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    x.grad = None
    net(x).square().mean().backward()
    return [x.grad] + [p.grad for p in net.parameters()]  # type: ignore[list-item]


@pytest.mark.parametrize("kind", [Switch, HardConcrete])
@pytest.mark.parametrize(("make", "shape", "dim", "inside"), LAYERS.values(), ids=LAYERS)
def test_training_and_its_gradients_are_those_of_layer_then_switch(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dim: int, inside: bool, kind: type[Switch]
) -> None:
    torch.manual_seed(0)
    layer, switch = make().double(), kind(4, dim=dim).double()
    nn.init.normal_(switch.theta)
    both, twin = Switched(layer, switch), nn.Sequential(copy.deepcopy(layer), copy.deepcopy(switch))
    for module in (both, switch, twin[1]):  # a frozen norm's are not
        module.training = True
    calls: list[Tensor] = []
    plain = switch.forward
    switch.forward = lambda x: calls.append(x) or plain(x)  # type: ignore[func-returns-value]  # a hook would change the path
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(both(x), twin(x), rtol=1e-12, atol=1e-12)
    assert len(calls) == (not inside)  # what the passes over images would cost is saved
    for mine, theirs in zip(_gradients(both, x), _gradients(twin, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(both.buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    torch.testing.assert_close(both.eval()(x), twin.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(("make", "shape", "dim"), [case[:3] for case in LAYERS.values()], ids=LAYERS)
def test_factors_of_one_change_no_bit(make: Callable[[], nn.Module], shape: tuple[int, ...], dim: int) -> None:
    layer = make()
    twin, both = copy.deepcopy(layer), Switched(layer, Switch(4, dim=dim))
    x = torch.randn(shape, requires_grad=True)
    assert torch.equal(both(x), twin(x))
    grads = dict(zip(["x", *(name for name, _ in both.named_parameters())], _gradients(both, x), strict=True))
    plain = zip(["x", *(f"layer.{name}" for name, _ in twin.named_parameters())], _gradients(twin, x), strict=True)
    assert all(torch.equal(grads[name], grad) for name, grad in plain)


def test_hooks_see_what_they_always_saw() -> None:
    both = Switched(nn.BatchNorm2d(4), Switch(4, dim=-3, init=0.5))
    x, seen = torch.randn(5, 4, 6, 6), list[Tensor]()
    for module in (both.layer, both.switch):
        handle = module.register_forward_hook(lambda *told: seen.append(told[-1]))
        both(x)
        handle.remove()
    torch.testing.assert_close(seen, [copy.deepcopy(both.layer)(x), 0.5 * seen[0]])


def test_further_arguments_reach_the_layer() -> None:
    both = Switched(nn.ConvTranspose2d(3, 4, 3, stride=2), Switch(4, dim=-3))
    assert both(torch.randn(1, 3, 5, 5), output_size=(12, 12)).shape[-2:] == (12, 12)


def test_it_compiles_whole() -> None:
    both = Switched(nn.BatchNorm2d(4), Switch(4, dim=-3, init="uniform"))
    x = torch.randn(5, 4, 6, 6)
    expected = both(x)
    compiled = torch.compile(both, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
