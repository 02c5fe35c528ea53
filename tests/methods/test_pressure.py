"""Pressure: how strong it is along a run, what a unit weighs, and what it amounts to once scales are eliminated."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pared
from helpers import branched, images, network, task
from networks import mobilenet
from pared import surgery
from pared.errors import ConfigError
from pared.methods import Geometric, Shrink, SignChange, SignVariance, Threshold, TowardSize
from pared.methods.costs import Costs
from pared.methods.strengths import Progress
from pared.nn import Switch
from pared.penalties import l1


@given(st.lists(st.lists(st.sampled_from([-1.5, -0.5, 0.0, 0.5, 2.0]), min_size=3, max_size=3), max_size=12))
def test_sign_change_is_sign_variance_without_memory(thetas: list[list[float]]) -> None:
    switches = [Switch(3, init="normal", generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    rules = SignChange(), SignVariance(gamma=0.0)
    for switch, rule in zip(switches, rules, strict=True):
        rule.attach(switch)
        for theta in thetas:
            with torch.no_grad():
                switch.theta.copy_(torch.tensor(theta) + 1e-3 * torch.arange(3))
            rule.update(switch)
    assert torch.equal(switches[0].alive, switches[1].alive)
    assert torch.equal(switches[0].theta, switches[1].theta)


def test_the_threshold_kills_what_is_small_and_spares_the_largest() -> None:
    switch, rule = Switch(4), Threshold(0.1)
    rule.attach(switch)
    with torch.no_grad():
        switch.theta.copy_(torch.tensor([0.2, -0.1, 0.05, -3.0]))
    rule.update(switch)
    assert switch.alive.tolist() == [True, False, False, True]
    with torch.no_grad():
        switch.theta.fill_(0.01)
        switch.theta[3] = -0.02
    rule.update(switch)
    assert switch.alive.tolist() == [False, False, False, True]
    assert switch.theta[3].item() == pytest.approx(-0.02)
    with pytest.raises(ConfigError, match="value must be above 0"):
        Threshold(0.0)


@pytest.mark.parametrize(("strength", "second", "seed"), [(0.3, 0.7, 0), (2.5, 0.02, 1), (0.01, 3.0, 2)])
def test_eliminating_the_scale_leaves_the_reduced_penalty(strength: float, second: float, seed: int) -> None:
    """Methods page, errata: the infimum over factors of the whole penalty, the product column being held."""
    column = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for power, size in ((2, column.norm() ** 2), (1, column.abs().sum())):
        best = ((power * second * size) / strength) ** (1 / (power + 1))  # where the derivative vanishes

        def penalty(theta: float, power: int = power) -> float:
            net = nn.Sequential(nn.Linear(1, 5, bias=False), nn.Linear(5, 1)).double()
            nn.init.zeros_(net[1].weight).requires_grad_(False)  # pyright: ignore[reportArgumentType]
            net[1].bias.requires_grad_(False)
            method = Shrink(strength, init=theta, weight_strength=second, weight_power=power, every=1)
            example = torch.ones(1, 1, dtype=torch.float64)
            session = method.bind(net, torch.optim.SGD(net.parameters(), lr=0.1), example)
            with torch.no_grad():
                first = net.get_parameter("0.layer.weight")
                first.copy_((column / theta)[:, None])  # the factor is the same for all, as for one group
            return session.penalty().item() - strength * 4 * theta  # five factors, of which the group has one

        if power == 2:
            expected = 1.5 * strength ** (2 / 3) * (2 * second) ** (1 / 3) * column.norm().item() ** (2 / 3)
        else:
            expected = 2.0 * math.sqrt(strength * second * column.abs().sum().item())
        assert penalty(float(best)) == pytest.approx(expected, rel=1e-9)
        assert min(penalty(float(best) * f) for f in (0.9, 1.1)) > expected


def test_the_penalty_is_the_weighted_sum_and_leaves_frozen_weights() -> None:
    model = network()
    next(model.parameters()).requires_grad_(False)
    session = Shrink(0.5, weight_strength=0.1, every=1).bind(model, torch.optim.SGD(model.parameters(), 0.1), task()[0])
    thetas = [switch.theta for switch in session.switches.values()]
    free = [p for p in model.parameters() if p.requires_grad and not any(p is theta for theta in thetas)]
    expected = 0.5 * l1(thetas) + 0.1 * torch.stack([p.square().sum() for p in free]).sum()
    torch.testing.assert_close(session.penalty(), expected)


@pytest.mark.parametrize("cost", ["parameters", "macs", "latency"])
def test_weights_have_mean_one_and_follow_what_is_left(cost: Any) -> None:
    net, (x, _) = branched(), images(2)
    session = Shrink(1.0, cost=cost, every=1).bind(net, torch.optim.Adam(net.parameters()), x)

    def mean() -> float:
        sizes = {name: len(switch.theta) for name, switch in session.switches.items()}
        return sum(session.weights[name] * size for name, size in sizes.items()) / sum(sizes.values())

    before = dict(session.weights)
    assert mean() == pytest.approx(1.0)
    switch = session.switches["last.switch"]
    with torch.no_grad():
        switch.theta[:3] = 0.0
    switch.alive[:3] = False
    session.remove()
    assert mean() == pytest.approx(1.0)
    assert (
        before["hidden.switch"] / before["inner.switch"]
        > session.weights["hidden.switch"] / session.weights["inner.switch"]
    )


def test_costs_are_what_leaves_with_a_unit() -> None:
    for net, x in ((mobilenet(4, 5), torch.zeros(1, 3, 32, 32)), (branched(), images(1)[0])):
        net.eval()
        placed = pared.add_switches(net, x)
        for cost in ("parameters", "macs"):
            weights = Costs(cost, net, placed.graph, x).weights(placed.selected().slots)  # pyright: ignore[reportArgumentType]
            spent = {}
            for name in list(placed.switches)[:3]:
                twin = copy.deepcopy(net)
                surgery.apply(surgery.make_plan(placed.graph, twin, keep(placed.graph, name), living="cut"), twin)
                spent[name] = _counted(cost, net, x) - _counted(cost, twin, x)
            first = next(iter(spent))
            for name, value in spent.items():
                assert weights[name] / weights[first] == pytest.approx(value / spent[first], rel=1e-6)


def keep(graph: surgery.Graph, name: str) -> dict[str, range]:
    """All factors of a switch but the first."""
    space = graph.at(f"{name}.theta")
    return {space.name: range(1, space.size)}


def _counted(cost: str, net: nn.Module, x: torch.Tensor) -> int:
    if cost == "parameters":
        return sum(p.numel() for name, p in net.named_parameters() if not name.endswith("theta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


def test_a_geometric_strength_moves_by_equal_factors_and_needs_the_length_of_the_run() -> None:
    model, x = network(), task()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(ConfigError, match="needs total_steps"):
        Shrink(Geometric(1e-3, 1.0), every=1).bind(model, optimizer, x)
    session = Shrink(Geometric(1e-3, 1.0), every=1).bind(model, optimizer, x, total_steps=3)
    seen = [session.strength]
    for _ in range(4):
        optimizer.step()
        seen.append(session.strength)
    assert seen == pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 1.0])
    for bad in ((0.0, 1.0), (1.0, math.inf), (-1.0, 1.0)):
        with pytest.raises(ConfigError, match="above 0"):
            Geometric(*bad)


def test_the_drive_answers_in_the_direction_of_the_error_and_never_faster_than_its_gain() -> None:
    drive = TowardSize(100, gain=10.0, width=0.1, by=0.5)

    def moved(params: int, done: float, least: int = 1) -> float:
        return math.log(drive.next(1.0, Progress(done, 0.01, params, 10_000, least)))

    assert moved(1000, 0.25) == pytest.approx(0.0)  # half of the way in a quarter of the run
    assert moved(1100, 0.25) > 0 > moved(900, 0.25)
    assert moved(10_000, 0.5) == pytest.approx(0.1)
    assert moved(100, 0.01) == pytest.approx(-0.1)
    assert moved(100, 1.0) == pytest.approx(0.0)
    assert moved(400, 1.0, least=400) == pytest.approx(0.0)  # less than that cannot be
    assert moved(9000, 1.0, least=20_000) == pytest.approx(0.0)
    for name, bad in {"params": 0, "start": 0.0, "by": 1.5, "gain": 0.0, "width": math.inf}.items():
        with pytest.raises(ConfigError, match=name):
            TowardSize(**{"params": 5, name: bad})  # pyright: ignore[reportArgumentType]


def test_the_drive_reaches_the_size() -> None:
    model, (x, y) = network(hidden=(60, 50)), task()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    method = Shrink(TowardSize(400), every=4, lr_scale=5.0)
    session = method.bind(model, optimizer, x, total_steps=600)
    for step in range(600):
        rows = slice(step % 8 * 32, step % 8 * 32 + 32)
        (nn.functional.cross_entropy(model(x[rows]), y[rows]) + session.penalty()).backward()
        session.step()
        optimizer.zero_grad()
    assert 200 < session.params < 600
    assert session.params == sum(p.numel() for p in session.realize().parameters())


def test_the_least_size_is_that_of_one_unit_a_switch() -> None:
    net, (x, _) = branched(), images(2)
    session = Shrink(every=1).bind(net, torch.optim.Adam(net.parameters()), x)
    for switch in session.switches.values():
        with torch.no_grad():
            switch.theta[1:] = 0.0
        switch.alive[1:] = False
    session.remove()
    assert session.params == session.least_params == sum(p.numel() for p in session.realize().parameters())


@pytest.mark.parametrize(
    "change", [{"cost": "money"}, {"weight_power": 3}, {"weight_strength": -1.0}, {"lr_scale": 0.0}, {"init": 0}]
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        Shrink(**change)


def test_a_network_that_is_frozen_but_for_its_switches_has_their_penalty() -> None:
    net = network().requires_grad_(False)
    method = Shrink(0.5, weight_strength=1e-3, every=1)
    session = method.bind(net, torch.optim.SGD(net.parameters(), 0.1), task()[0][:2])
    assert session.penalty().item() == 0.5 * (16 + 14)
