"""Where switches go, what they say of the layers without, and that they come out again without a trace."""

import copy
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pared
from helpers import Branched, branched, images, network
from networks import densenet121, mobilenet, resnet50
from pared.errors import ConfigError, SurgeryError
from pared.models import lenet, resnet, vgg
from pared.nn import Switch, Switched
from zoo import random_net

IMAGE = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

#: name: (network, example, switches, layers skipped)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any, int, int]] = {
    "branched": (branched, images(2)[0].double(), 3, 3),
    "VGG-11": (lambda: vgg(11, width=0.05, size=32, hidden=(7,)), torch.randn(2, 3, 32, 32).double(), 9, 1),
    "LeNet": (lambda: lenet(size=16), IMAGE[:, :1], 4, 1),
    "ResNet": (lambda: resnet((2, 1), width=4), IMAGE, 3, 6),
    "ResNet-50": (lambda: resnet50(2, 5), IMAGE, 33, 21),
    "DenseNet": (lambda: densenet121(3, 5, (2, 2)), IMAGE, 10, 1),
    "MobileNet": (lambda: mobilenet(4, 5), IMAGE, 6, 6),
}


def made(name: str) -> tuple[nn.Module, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = NETWORKS[name][0]().double().eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.data.uniform_(0.5, 1.5)
    return net, NETWORKS[name][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_switches_change_nothing_and_fold_away(name: str) -> None:
    net, x = made(name)
    before, keys = net(x), list(net.state_dict())
    placed = pared.add_switches(net, x)
    assert (len(placed.switches), len(placed.skipped)) == NETWORKS[name][2:]
    assert torch.equal(net(x), before)
    for switch in placed.switches.values():
        nn.init.normal_(switch.theta, generator=torch.Generator().manual_seed(1))
    folded, now = pared.fold(net, x), net(x)
    assert not torch.allclose(now, before)
    torch.testing.assert_close(folded(x), now, rtol=1e-10, atol=1e-10)
    assert list(folded.state_dict()) == keys
    assert not any(type(module).__module__.startswith("pared.nn") for module in folded.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_theta_of_one_leaves_every_gradient(name: str) -> None:
    net, x = made(name)
    plain = copy.deepcopy(net)
    placed = pared.add_switches(net, x)
    for one in (net, plain):
        one(x).square().sum().backward()
    thetas = {f"{path}.theta" for path in placed.switches}
    mine = [parameter.grad for key, parameter in net.named_parameters() if key not in thetas]
    for grad, other in zip(mine, plain.parameters(), strict=True):
        assert grad is not None
        torch.testing.assert_close(grad, other.grad, rtol=1e-9, atol=1e-9)


def test_what_is_skipped_is_named_with_its_reason() -> None:
    net, x = made("branched")
    placed = pared.add_switches(net, x)
    assert list(placed.layers.values()) == ["inner", "last", "hidden"]
    assert set(placed.skipped) == {"stem", "outer", "head"}
    assert placed.skipped["head"] == "it is an output of the network"
    assert placed.skipped["stem"] == "its units are tied to those of 'outer', which one switch does not reach"
    assert str(placed).splitlines()[0] == "inner   5 units"
    assert "stem    skipped: its units are tied" in str(placed)


def test_a_constant_that_no_bias_can_hold_is_the_reason() -> None:
    first = nn.Conv2d(1, 3, 3)
    net = nn.Sequential(first, nn.Sigmoid(), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    first.bias = nn.Parameter(torch.zeros(3))  # a shift that is not there, or happens to be 0, makes no difference
    placed = pared.add_switches(net, torch.zeros(1, 1, 8, 8))
    assert list(placed.layers.values()) == ["2"]
    assert "emits the constant 0.5 into the zero padding of layer '2'" in placed.skipped["0"]
    assert net[0] is first
    assert isinstance(net[2], Switched)


class Excited(nn.Module):
    """A convolution whose channels are scaled by what they are on average."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        scale = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return self.head((x * scale[:, :, None, None]).mean((2, 3)))


def test_of_the_layers_that_make_units_together_the_one_that_silences_them_is_switched() -> None:
    net = Excited().double().eval()
    placed = pared.add_switches(net, IMAGE)
    assert placed.layers == {
        "norm.switch": "conv",
        "down.switch": "down",
    }  # behind `up` it would scale a sigmoid's input
    assert set(placed.skipped) == {"head"}
    switch = placed.switches["norm.switch"]
    with torch.no_grad():
        switch.theta[[1, 6]] = 0.0
    before = net(IMAGE)
    pared.remove(net, {"conv": [1, 6]}, graph=placed.graph)
    assert (net.up.out_features, net.down.in_features, net.head.in_features) == (6, 6, 6)
    torch.testing.assert_close(net(IMAGE), before, rtol=1e-10, atol=1e-10)


def test_norms_between_layer_and_activation_are_switched_with_it() -> None:
    net, x = made("VGG-11")
    placed = pared.add_switches(net, x)
    switched = net.get_submodule("1")
    assert isinstance(switched, Switched)
    assert isinstance(switched.layer, nn.BatchNorm2d)
    assert placed.layers["1.switch"] == "0"


def test_the_switched_layer_can_be_read_through() -> None:
    layer, switch = nn.Linear(3, 2), Switch(2)
    both = Switched(layer, switch)
    assert both.weight is layer.weight
    assert (both.in_features, both.layer, both.switch) == (3, layer, switch)
    twin = copy.deepcopy(both)
    assert twin.weight is not layer.weight
    assert torch.equal(twin(torch.ones(1, 3)), both(torch.ones(1, 3)))
    with pytest.raises(AttributeError, match="nothing"):
        _ = both.nothing


def test_a_network_without_removable_units_is_left_as_it_is() -> None:
    only = nn.Linear(4, 2)
    net = nn.Sequential(OrderedDict(only=only))
    with pytest.raises(SurgeryError, match="only: it is an output"):
        pared.add_switches(net, torch.zeros(1, 4))
    assert net.only is only
    for bad in (0.0, float("nan"), "zeros", True):
        with pytest.raises(ConfigError, match="init must be one of"):
            pared.add_switches(net, torch.zeros(1, 4), init=bad)  # pyright: ignore[reportArgumentType]


def test_switches_that_are_there_stay_and_their_layers_get_no_second() -> None:
    net, x = made("LeNet")
    first = pared.add_switches(net, x)
    again = pared.add_switches(net, x)
    assert dict(first.switches) == dict(again.switches)
    assert sum(isinstance(module, Switch) for module in net.modules()) == 4


def test_numbers_are_initial_values_too() -> None:
    net, x = made("LeNet")
    placed = pared.add_switches(net, x, init=0.5)
    assert all(torch.equal(switch.theta, torch.full_like(switch.theta, 0.5)) for switch in placed.switches.values())


@pytest.mark.parametrize("seed", range(40))
def test_in_random_networks_every_switch_can_lose_factors(seed: int) -> None:
    net, x, rng = random_net(seed), torch.randn(3, 3, 6, 6, dtype=torch.float64), random.Random(seed)
    placed = pared.add_switches(net, x, sums=seed % 2 == 1)
    gone: dict[str, list[int]] = {}
    for name in placed.switches:
        if not isinstance(net.get_submodule(name.rpartition(".")[0]), Switched):
            continue  # the network's own, which may stand where nothing can be removed
        switch = placed.switches[name]
        dead = rng.sample(range(len(switch.theta)), rng.randint(0, len(switch.theta) - 1))
        with torch.no_grad():
            switch.theta[dead] = 0.0
        switch.alive[dead] = False
        gone[placed.graph.at(f"{name}.theta").name] = dead
    before = net(x)
    pared.remove(net, gone, graph=placed.graph)
    torch.testing.assert_close(net(x), before, rtol=1e-9, atol=1e-9)


def test_a_binding_with_hand_placed_switches_uses_them() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Switch(4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    session = pared.Shrink(every=1).bind(net, optimizer, torch.zeros(1, 3))
    assert list(session.switches) == ["2"]
    groups = [[p.shape for p in group["params"]] for group in optimizer.param_groups]
    assert [len(group) for group in groups] == [6, 1]  # theta has left the group with weight decay
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    net = nn.Sequential(nn.Linear(3, 4), Switch(4), nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.raises(SurgeryError, match="switch '1' cannot lose a factor: .*divides"):
        pared.Shrink(every=1).bind(net, torch.optim.SGD(net.parameters(), lr=0.1), torch.zeros(1, 3))


def test_a_loop_that_steps_the_optimizer_itself_is_followed() -> None:
    first, second = branched(), branched()
    x, y = images()
    sessions = []
    for net in (first, second):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        generator = torch.Generator().manual_seed(3)
        method = pared.Shrink(strength=0.05, every=4, init="uniform")
        sessions.append(method.bind(net, optimizer, x[:2], generator=generator))
    for start in range(0, 240, 8):
        rows = slice(start, start + 8)
        for session, net in zip(sessions, (first, second), strict=True):
            (nn.functional.cross_entropy(net(x[rows]), y[rows]) + session.penalty()).backward()
            session.step() if net is first else session.optimizer.step()
            session.optimizer.zero_grad()
    assert sessions[0].events == sessions[1].events != []
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_detaching_lets_go_and_a_network_can_be_bound_again() -> None:
    net, (x, _) = branched(), images(2)
    optimizer = torch.optim.Adam(net.parameters())
    session = pared.Shrink(every=1).bind(net, optimizer, x)
    with pytest.raises(SurgeryError, match="bound already"):
        pared.Shrink(every=1).bind(net, optimizer, x)
    session.detach()
    again = pared.Shrink(every=1).bind(net, optimizer, x)
    net(x).sum().backward()
    optimizer.step()
    assert (session.steps, again.steps) == (0, 1)


def test_a_compiled_network_is_bound_by_what_it_wraps() -> None:
    net, (x, _) = branched(), images(2)
    compiled = torch.compile(net, backend="eager")
    session = pared.Shrink(every=1).bind(compiled, torch.optim.Adam(net.parameters()), x)  # pyright: ignore[reportArgumentType]
    assert isinstance(session.realize(), Branched)
    with torch.no_grad():
        switch = session.switches["inner.switch"]
        switch.theta[1], switch.alive[1] = 0.0, False
    before: Tensor = net.eval()(x)
    session.remove()
    assert net.inner.out_channels == 4
    torch.testing.assert_close(net(x), before)


def test_a_residual_sum_is_switched_as_one() -> None:
    net, (x, y) = resnet((2, 1), outputs=2, channels=2, width=4), images()
    plain = copy.deepcopy(net).eval()
    placed = pared.add_switches(net, x[:2], sums=True)
    assert set(placed.layers.values()) >= {"0 and 2 more", "5.conv2 and 1 more"}
    assert list(placed.skipped) == ["8"]  # the last layer
    assert torch.equal(net.eval()(x), plain(x))
    shared = placed.switches["1.switch"]
    assert sum(module.theta is shared.theta for module in net.modules() if isinstance(module, Switch)) == 3
    session = pared.Shrink(every=1).bind(net, torch.optim.Adam(net.parameters(), 1e-3), x[:2])
    with torch.no_grad():
        shared.theta.copy_(torch.tensor([0.7, 0.0, -1.2, 1.0]))
    shared.alive[1] = False
    net.train()
    F.cross_entropy(net(x), y).backward()
    session.step()
    assert [(event.layer, event.index) for event in session.events] == [("0 and 2 more", (1,))]
    widths = {name: module.out_channels for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    assert {name for name, width in widths.items() if width == 3} == {"0", "3.conv2", "4.conv2"}
    assert all(
        module.theta is shared.theta for module in net.modules() if isinstance(module, Switch) and module.channels == 3
    )
    net.eval()
    small = session.realize()
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)
    assert not any(type(module).__module__ == "pared.nn.switch" for module in small.modules())


def test_switches_learn_as_the_first_group_does() -> None:
    net = network()
    optimizer = torch.optim.SGD([{"params": net.parameters(), "lr": 0.5, "momentum": 0.9, "weight_decay": 0.1}])
    optimizer.param_groups[0]["initial_lr"] = 0.5
    pared.Shrink(every=1, lr_scale=2.0).bind(net, optimizer, torch.randn(2, 12))
    own = optimizer.param_groups[1]
    assert (own["lr"], own["initial_lr"], own["momentum"], own["weight_decay"]) == (1.0, 1.0, 0.9, 0.0)
    torch.optim.lr_scheduler.StepLR(optimizer, 1, last_epoch=3)


class Standardised(nn.Conv2d):
    """A convolution whose own code takes the scale of its rows away."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


def test_a_layer_whose_weight_is_computed_is_skipped_as_its_switch_would_stay() -> None:
    x = torch.randn(2, 3, 8, 8)
    layers = [Standardised(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2)]
    net = nn.Sequential(*layers)
    placed = pared.add_switches(net, x, init="uniform")
    assert list(placed.layers.values()) == ["2"]
    assert "could not be folded away" in placed.skipped["0"]
    assert type(net[0]) is Standardised
    small = pared.fold(net, x)
    assert not any(type(module).__module__.startswith("pared.") for module in small.modules())
