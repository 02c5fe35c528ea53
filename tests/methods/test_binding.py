"""Binding is whole or not at all, and understands networks and optimizers as people build them."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import OPTIMIZERS, network, task
from pared.errors import ConfigError, SurgeryError
from pared.methods import L0, UNIT_METHODS, Gates, GroupLasso, Prune, Shrink, Slimming, UnitMethod
from pared.nn import Switch

ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU)


@st.composite
def plain_networks(draw: st.DrawFn) -> nn.Sequential:
    """Networks a person may bind: nested, named, with norms of every kind, a norm before everything."""
    width, layers = 4, []
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 999)))
        if draw(st.booleans()):
            layers.append(("first", nn.BatchNorm1d(width)))
        for number in range(draw(st.integers(1, 3))):
            out = draw(st.integers(2, 5))
            block: list[nn.Module] = [nn.Linear(width, out, bias=draw(st.booleans()))]
            norm = draw(st.sampled_from(["none", "full", "bare", "unbiased"]))
            if norm != "none":
                block.append(nn.BatchNorm1d(out, affine=norm != "bare"))
            if norm == "unbiased":
                block[-1].register_parameter("bias", None)
            block += [draw(st.sampled_from(ACTIVATIONS))(), nn.Dropout(0.2)][: draw(st.integers(0, 2))]
            if draw(st.booleans()):
                layers.append((f"block{number}", nn.Sequential(*block)))
            else:
                layers += [(f"part{number}_{i}", module) for i, module in enumerate(block)]
            width = out
        layers.append(("last", nn.Linear(width, 2)))
    named = draw(st.booleans())
    return (nn.Sequential(OrderedDict(layers)) if named else nn.Sequential(*[m for _, m in layers])).double()


EVERY: dict[str, UnitMethod] = {
    "shrink": Shrink(0.1),
    "shrink inputs": Shrink(0.1, inputs=True),
    "group lasso": GroupLasso(0.1, groups="columns"),
    "slimming": Slimming(params=1),
    "prune": Prune(params=1, score="taylor"),
    "l0": L0(0.1),
    "gates": Gates(0.1),
}


@settings(max_examples=160)
@given(plain_networks(), st.sampled_from(sorted(EVERY)), st.data())
def test_whatever_binds_runs_loses_units_and_comes_back_plain(
    model: nn.Sequential, name: str, data: st.DataObject
) -> None:
    assert {type(method) for method in EVERY.values()} == set(UNIT_METHODS.values())
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(model)
    adam = OPTIMIZERS["Adam"](model)
    try:
        session = EVERY[name].bind(model, adam, x, steps_per_epoch=100, total_steps=100)
    except SurgeryError as error:
        if name == "slimming" and "no norm with a weight of its own" in str(error):
            return
        raise
    for net in (plain, model):
        net.eval()
        net(x).square().sum().backward()
    rounding = 1e-12 if name == "gates" else 0  # a quotient of shares is 1 up to rounding, a factor of 1 is 1
    torch.testing.assert_close(model(x), plain(x), rtol=rounding, atol=rounding)
    mine = [p.grad for key, p in model.named_parameters() if not key.endswith(("theta", "beta"))]
    for grad, other in zip(mine, plain.parameters(), strict=True):
        assert grad is not None
        torch.testing.assert_close(grad, other.grad, rtol=1e-12, atol=1e-12)
    if name.startswith("shrink"):
        assert session.penalty().item() == pytest.approx(0.1 * sum(s.theta.shape[0] for s in session.switches.values()))
    for selector in session.selectors.values():
        if isinstance(selector, Switch):
            with torch.no_grad():
                selector.theta.copy_(torch.randn(selector.theta.shape, generator=torch.Generator().manual_seed(1)))
        dead = data.draw(st.sets(st.integers(0, len(selector.alive) - 1), max_size=len(selector.alive) - 1))
        selector.alive[list(dead)] = False
        selector.silence()
    before, state = model(x), None
    small = session.realize()
    state = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(small(x[:, session.inputs]), before, rtol=1e-10, atol=1e-10)
    assert not any(type(module).__module__.startswith("pared") for module in small.modules())
    torch.testing.assert_close(copy.deepcopy(model)(x), before, rtol=1e-10, atol=1e-10)
    small.train()(x[:, session.inputs]).sum().backward()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    session.remove()  # as a judge who kills would have it
    model.train()(x).sum().backward()
    session.step()


def refusals() -> dict[str, tuple[Callable[[nn.Sequential], Any], Any, str]]:
    def adam(model: nn.Module) -> Any:
        return torch.optim.Adam(model.parameters())

    def tied(model: nn.Sequential) -> Any:
        layers = nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)
        layers[4].weight = layers[2].weight
        del model[:]
        model.extend(layers)
        return adam(model)

    def scheduled(model: nn.Module) -> Any:
        optimizer = adam(model)
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return optimizer

    def differently_grouped(model: nn.Module) -> Any:
        optimizer = adam(model)
        optimizer.add_param_group = lambda group: (_ for _ in ()).throw(SurgeryError("must not be reached"))
        return optimizer

    return {
        "groups of another size": (adam, Shrink(inputs=True, input_sizes=[3, 3]), "add up to the 12 channels"),
        "an empty group": (differently_grouped, Shrink(inputs=True, input_sizes=[0, 12]), "add up to the 12 channels"),
        "LBFGS": (lambda m: torch.optim.LBFGS(m.parameters()), Shrink(), "LBFGS"),
        "Adafactor": (lambda m: torch.optim.Adafactor(m.parameters()), Shrink(), "Adafactor"),
        "a scheduler": (scheduled, Shrink(), "before making"),
        "tied layers": (tied, Shrink(), "is alive"),
    }


@pytest.mark.parametrize("case", refusals())
def test_a_refused_binding_changes_nothing(case: str) -> None:
    make, method, message = refusals()[case]
    model = network()
    optimizer = make(model)
    layers, groups = list(model), [{**g, "params": [id(p) for p in g["params"]]} for g in optimizer.param_groups]
    with pytest.raises((SurgeryError, ConfigError), match=message):
        method.bind(model, optimizer, task()[0], steps_per_epoch=8)
    assert list(model) == layers
    assert groups == [{**g, "params": [id(p) for p in g["params"]]} for g in optimizer.param_groups]


def test_nothing_to_shrink_and_impossible_settings_are_refused() -> None:
    model = network(hidden=())
    optimizer = OPTIMIZERS["SGD"](model)
    with pytest.raises(SurgeryError, match="no layer of the network can lose units"):
        Shrink().bind(model, optimizer, task()[0], steps_per_epoch=1)
    with pytest.raises(ConfigError, match="steps_per_epoch must be"):
        Shrink().bind(network(), optimizer, task()[0], steps_per_epoch=0)
    assert Shrink(inputs=True).bind(model, optimizer, task()[0], steps_per_epoch=1).penalty().item() > 0
    for bad in ({"strength": float("inf")}, {"strength": float("nan")}, {"init": "zeros"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Shrink(**bad)  # pyright: ignore[reportArgumentType]


def test_named_layers_keep_their_names() -> None:
    layers: OrderedDict[str, nn.Module] = OrderedDict(enter=nn.Linear(12, 5), switch=nn.ReLU(), leave=nn.Linear(5, 2))
    model = nn.Sequential(layers)
    Shrink(inputs=True).bind(model, OPTIMIZERS["Adam"](model), task()[0], steps_per_epoch=1)
    assert [name for name, _ in model.named_children() if name in layers] == ["enter", "switch", "leave"]
    kinds = [type(m).__name__ for m in model]
    assert kinds == ["Select", "Switch", "Switched", "ReLU", "Linear"]


def test_an_optimizer_of_named_parameters_keeps_names_beside_parameters() -> None:
    model, x = network(), task()[0]
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.02)
    before = list(optimizer.param_groups[0]["param_names"])
    session = Shrink(inputs=True).bind(model, optimizer, x, steps_per_epoch=1)
    switch = next(iter(session.switches.values()))
    assert isinstance(switch, Switch)
    with torch.no_grad():
        switch.theta[3], switch.alive[3] = 0.0, False
    session.remove()
    assert optimizer.param_groups[0]["param_names"] == before
    theta = optimizer.param_groups[1]
    assert [id(dict(model.named_parameters())[n]) for n in theta["param_names"]] == [id(p) for p in theta["params"]]
