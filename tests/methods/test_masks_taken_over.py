"""Methods bound to a network with masks of torch.nn.utils.prune on: what was dead stays so, or is where they start."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import pared
from pared.errors import ConfigError, SurgeryError
from pared.methods import (
    L0,
    WEIGHT_METHODS,
    GroupLasso,
    Prune,
    RigL,
    Shrink,
    Slimming,
    Static,
    UnitMethod,
)
from pared.optim import lp_groups
from pared.surgery import find
from pared.surgery.prune_masks import living, masks_of

X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 3


def pruned() -> tuple[Any, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    """A network in training, its optimizer, and who is dead."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2, weight_decay=0.01)
    step(net, optimizer)
    prune.l1_unstructured(net[0], "weight", 0.6)
    prune.random_unstructured(net[3], "weight", 0.3)
    prune.l1_unstructured(net[3], "weight", 0.3)
    prune.l1_unstructured(net[3], "bias", 2)
    step(net, optimizer)
    return net, optimizer, {one.name: one.mask == 0 for one in masks_of(net)}


def step(net: nn.Module, optimizer: Any) -> None:
    F.cross_entropy(net(X), Y).backward()
    optimizer.step()
    optimizer.zero_grad()


def dead_now(session: Any, dead: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is left of the dead after surgery, by the names of now, those of switched layers being longer."""
    found = {}
    for name, where in dead.items():
        key = name if name in dict(session.net.named_parameters()) else name.replace(".", ".layer.")
        for axis, dim in enumerate(session.graph.program.tensors[key].dims):
            spaces = [space for space in session.graph.spaces if space.dim is find(dim)]
            where = where.index_select(axis, torch.tensor(spaces[0].kept)) if spaces else where
        found[key] = where
    return found


UNITS = [
    GroupLasso(0.8, every=1),
    Slimming(params=120, strength=0.01),
    Shrink(0.5, every=1, lr_scale=50.0),
    L0(3.0, every=1, lr_scale=100.0),
    Prune(params=120),
]


@pytest.mark.parametrize("method", UNITS, ids=lambda method: type(method).__name__)
def test_units_leave_and_the_dead_stay_dead(method: UnitMethod) -> None:
    net, optimizer, dead = pruned()
    last, before = net[5].weight, net.eval()(X)
    remembered = optimizer.state[last]["exp_avg"].clone()
    session = method.bind(net.train(), optimizer, X, total_steps=30, steps_per_epoch=5)
    assert not masks_of(net)
    assert torch.equal(optimizer.state[last]["exp_avg"], remembered)
    assert isinstance(method, Shrink | L0) or torch.allclose(net.eval()(X), before, atol=1e-6)
    for _ in range(30):
        F.cross_entropy(net.train()(X), Y).backward()
        for name, where in dead_now(session, dead).items():
            assert net.get_parameter(name).grad[where].count_nonzero() == 0
        session.step()
        optimizer.zero_grad()
    left = dead_now(session, dead)
    assert session.params < 200
    assert left
    for name, where in left.items():
        assert where.shape == net.get_parameter(name).shape
        assert net.get_parameter(name)[where].count_nonzero() == 0
    small: Any = session.realize()
    assert not masks_of(small)
    assert all(not vars(parameter) for parameter in small.parameters())
    assert small[0].weight.shape[0] <= 12


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_connections_start_with_what_the_masks_leave(name: str) -> None:
    net, optimizer, dead = pruned()
    before = net.eval()(X)
    kind = WEIGHT_METHODS[name]
    session = kind(where=lambda key, _: key in ("0.weight", "3.weight")).bind(net, optimizer, X, total_steps=200)
    assert not masks_of(net)
    assert torch.allclose(net(X), before, atol=1e-6)
    assert all(torch.equal(session.masked(key).mask, ~dead[key]) for key in ("0.weight", "3.weight"))
    assert all(not vars(parameter) for parameter in net.parameters() if parameter is not net[3].bias)
    net.train()
    for _ in range(2):
        F.cross_entropy(net(X), Y).backward()
        session.step()
        optimizer.zero_grad()
    assert net[3].bias[dead["3.bias"]].count_nonzero() == 0
    small: Any = session.realize()
    assert all(small[place].weight.count_nonzero() <= session.connections[f"{place}.weight"].count for place in (0, 3))


def test_weights_without_a_mask_are_drawn_as_ever() -> None:
    net, optimizer, dead = pruned()
    session = RigL(0.5, every=10).bind(net, optimizer, X, total_steps=100)
    assert session.connections["5.weight"].count == 12
    assert session.connections["0.weight"].count == int((~dead["0.weight"]).sum())


def test_a_bind_that_fails_leaves_masks_on() -> None:
    net, optimizer, _ = pruned()
    on = [one.name for one in masks_of(net)]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    memory = copy.deepcopy(optimizer.state_dict())
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ConfigError, match="scheduler already holds"):
        GroupLasso(0.1, every=1).bind(net, optimizer, X)
    with pytest.raises(ConfigError, match="no weight of the network can die"):
        Static(0.5, where=lambda *_: False).bind(net, optimizer, X)
    assert [one.name for one in masks_of(net)] == on
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert str(memory["state"]) == str(optimizer.state_dict()["state"])
    step(net, optimizer)
    other = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    other[2].weight = other[0].weight
    prune.l1_unstructured(other[2], "weight", 0.5)
    with pytest.raises(SurgeryError, match="one parameter with different masks"):
        Static(0.5).bind(other, torch.optim.SGD(other.parameters(), 0.1), X)


def test_spheres_of_whole_rows_are_refused() -> None:
    with pytest.raises(SurgeryError, match=r"'0.weight' has a mask .* which a sphere of whole rows does not follow"):
        lp_groups(pruned()[0], p=2.0)


def test_shrink_keeps_the_dead_dead_and_leaves_the_network_alone() -> None:
    net, _, dead = pruned()
    on, before = [one.name for one in masks_of(net)], net.eval()(X)
    loader = [(X, Y)] * 4

    def validate(model: nn.Module) -> float:
        assert not masks_of(model)
        return float((model(X).argmax(1) == Y).float().mean())

    found = pared.shrink(net, loader, validate, max_params=120, epochs=4, fine_tune=1, dense_epochs=1)
    assert [one.name for one in masks_of(net)] == on
    assert torch.equal(net.eval()(X), before)
    assert found.dense.model.get_parameter("0.weight")[dead["0.weight"]].count_nonzero() == 0
    small = found.model.get_parameter("0.weight")
    assert found.model is not net
    assert (small == 0).float().mean() > 0.2
    with pytest.raises(SurgeryError, match=r"'0.weight' has a mask of torch.nn.utils.prune, which train_by_class"):
        pared.train_by_class(net, loader, validate, classes=3)


def test_masks_go_through_a_saved_session() -> None:
    def bound() -> Any:
        net, optimizer, dead = pruned()
        return GroupLasso(0.5, every=1).bind(net, optimizer, X), dead

    session, dead = bound()
    for _ in range(20):
        F.cross_entropy(session.net(X), Y).backward()
        session.step()
        session.optimizer.zero_grad()
    again, _ = bound()
    again.load_state_dict(copy.deepcopy(session.state_dict()))
    assert session.events
    for one in (session, again):
        F.cross_entropy(one.net(X), Y).backward()
        one.step()
        for name, where in dead_now(one, dead).items():
            weight = one.net.get_parameter(name)
            assert weight[where].count_nonzero() == 0
            assert torch.equal(~where, living(weight))  # pyright: ignore[reportArgumentType]
    assert torch.equal(session.net(X), again.net(X))
