"""One contract over all methods that choose connections."""

import copy
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import one_process
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helpers import OPTIMIZERS, branched, images, network, task
from pared.errors import ConfigError, RunError, SurgeryError
from pared.methods import (
    SDR,
    SET,
    SNFS,
    SNIP,
    UNIT_METHODS,
    WEIGHT_METHODS,
    DeepR,
    GradualMagnitude,
    LpSS,
    RigL,
    Shrink,
    SNIPDynamic,
    Static,
    WeightMethod,
    WeightSession,
)
from pared.methods.lpss import rounded
from pared.methods.snfs import shares
from pared.ops import lp_norm
from pared.optim import LpSGD, lp_groups
from pared.topology import Constant, Masked
from pared.train.checkpoint import load_state, save_state

ROOT = Path(__file__).resolve().parents[2]
#: Every method with settings under which connections change within `TOTAL` steps.
CASES: dict[str, WeightMethod] = {
    "static": Static(0.8, "erk"),
    "set": SET(0.8, every=5),
    "rigl": RigL(0.8, every=5),
    "rigl, but first": RigL(0.6, where="but first", every=3, begin=0.2, end=1.0, distribution="erk"),
    "snip": SNIP(0.8),
    "snip, layers": SNIP(0.8, scope="layer"),
    "snip dynamic": SNIPDynamic(0.8, every=5),
    "deep r": DeepR(0.8, noise=1.0),
    "soft deep r": DeepR(0.8, noise=1.0, soft=True, lowest=-0.01),
    "snfs": SNFS(0.8, every=5),
    "sdr": SDR(0.8, strength=1e-3, every=5),
    "sdr, tolerance": SDR(0.8, strength=1e-3, tolerance=10.0, every=5),
    "gradual magnitude": GradualMagnitude(0.8, every=5),
    "gradual magnitude, network": GradualMagnitude(0.7, every=7, scope="network"),
    "lpss": LpSS(0.7, every=2, begin=0.0, end=1.0, threshold=Constant(0.5)),
    "lpss, layer": LpSS(0.7, every=2, threshold=Constant(0.5), scope="layer", regrow="threshold", grace=True),
    "lpss, keep": LpSS(0.7, every=2, threshold=Constant(0.5), regrow="keep", distribution="er"),
}
#: Optimizers of the library, and one whose weights are on spheres.
SOLVERS: dict[str, Callable[[nn.Module], Any]] = {
    **OPTIMIZERS,
    "LpSGD": lambda m: LpSGD(lp_groups(m, 1.3, lr=0.05, euclidean_lr=0.05), lr=0.05, p=1.3),
    "LpSGD direct": lambda m: LpSGD(lp_groups(m, 1.3, constrain="all"), lr=0.05, p=1.3, form="direct"),
}
#: Whose layers keep the number of their connections.
CONSTANT = (Static, SET, RigL, SNIPDynamic)
TOTAL, BATCH = 60, 32
METHODS = pytest.mark.parametrize("method", CASES.values(), ids=CASES)


def bound(
    method: WeightMethod, optimizer: Callable[[nn.Module], Any] = OPTIMIZERS["Adam"], seed: int = 0, conv: bool = False
) -> WeightSession:
    model = branched(seed) if conv else network(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    loss = partial(loss_of, model)
    return method.bind(model, optimizer(model), total_steps=TOTAL, generator=generator, loss=loss)


def masked(session: WeightSession) -> dict[str, Masked]:
    """Return the connections, all of which are of whole weights here."""
    return {name: session.masked(name) for name in session.connections}


def loss_of(model: nn.Module) -> torch.Tensor:
    x, y = images() if any(isinstance(module, nn.Conv2d) for module in model.modules()) else task()
    assert not model.training
    return F.cross_entropy(model(x[:BATCH]), y[:BATCH])


def run(session: WeightSession, steps: int, after: Callable[[], None] = lambda: None, plain: bool = False) -> None:
    convolutions = any(isinstance(module, nn.Conv2d) for module in session.model.modules())
    x, y = images() if convolutions else task()
    for _ in range(steps):
        rows = torch.arange(session.steps * BATCH, (session.steps + 1) * BATCH) % len(x)
        with session.batch(y[rows]):
            (F.cross_entropy(session.model(x[rows]), y[rows]) + session.penalty()).backward()
        session.optimizer.step() if plain else session.step()
        session.optimizer.zero_grad()
        after()


def test_every_method_of_the_table_has_a_case() -> None:
    assert {type(method) for method in CASES.values()} == set(WEIGHT_METHODS.values())
    assert not UNIT_METHODS.keys() & WEIGHT_METHODS.keys()


@METHODS
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "convolutions"])
def test_dead_weights_are_nothing_and_counts_are_kept(method: WeightMethod, conv: bool) -> None:
    session = bound(method, conv=conv)
    before = {name: connections.count for name, connections in masked(session).items()}
    total = sum(before.values())

    def look() -> None:
        for name, connections in masked(session).items():
            assert not connections.weight[~connections.mask].any()
            state = session.optimizer.state[connections.weight]
            assert not any(state[key][~connections.mask].any() for key in ("exp_avg", "exp_avg_sq"))
            assert connections.count >= 1
            if isinstance(method, CONSTANT) or (isinstance(method, DeepR) and not method.soft):
                assert connections.count == before[name]
        if isinstance(method, SNFS):
            assert sum(connections.count for connections in masked(session).values()) == total

    run(session, TOTAL, look)
    assert bool(session.events) == (not isinstance(method, Static))
    if not isinstance(method, LpSS | DeepR):
        numbers = [connections.mask.numel() for connections in masked(session).values()]
        assert abs(session.sparsity - method.sparsity) * sum(numbers) <= len(numbers)
    dead = sum(int((~connections.mask).sum()) for connections in masked(session).values())
    assert session.params == sum(p.numel() for p in session.model.parameters()) - dead


@METHODS
def test_what_changes_is_told_and_new_connections_have_no_history(method: WeightMethod) -> None:
    session = bound(method)
    told: list[Any] = []
    masks = {name: connections.mask.clone() for name, connections in masked(session).items()}

    def listen(event: Any) -> None:
        connections = masked(session)[event.layer]
        assert event.live == connections.count
        grown = connections.mask & ~masks[event.layer]
        died = masks[event.layer] & ~connections.mask
        both = event.grown - int(grown.sum())  # died and grown anew within one change
        assert both == event.dropped - int(died.sum())
        assert both == 0 or isinstance(method, SNFS | LpSS | DeepR)
        state = session.optimizer.state.get(connections.weight, {})
        assert not any(state[key][grown].any() for key in ("exp_avg", "exp_avg_sq") if key in state)
        if isinstance(method, SET | RigL | SNIPDynamic | SNFS) or getattr(method, "regrow", "") == "zero":
            assert not connections.weight[grown].any()
        masks[event.layer] = connections.mask.clone()
        told.append(event)

    session.on_event = listen
    run(session, TOTAL)
    assert told == session.events


RESUMED = [
    pytest.param(method, optimizer, id=f"{name}-{kind}")
    for name, method in CASES.items()
    for kind, optimizer in SOLVERS.items()
    if name == "rigl" or kind in ("Adam", "SGD Nesterov") or (name.startswith("lpss") and "LpSGD" in kind)
]


@pytest.mark.parametrize(("method", "optimizer"), RESUMED)
def test_every_method_resumes_bit_equally(method: WeightMethod, optimizer: Any, tmp_path: Path) -> None:
    session = bound(method, optimizer)
    run(session, 23)
    save_state(tmp_path / "s.safetensors", session.state_dict())
    other = bound(method, optimizer, seed=9)
    other.load_state_dict(load_state(tmp_path / "s.safetensors"))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(session)))
    for one in (session, other, twin):
        run(one, TOTAL - 23)
    for one in (other, twin):
        assert one.events == session.events
        for name, connections in masked(session).items():
            assert torch.equal(masked(one)[name].mask, connections.mask)
        for mine, theirs in zip(session.model.parameters(), one.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


@METHODS
@pytest.mark.parametrize("kind", ["SGD", "SGD Nesterov", "Adam"])
def test_without_sparsity_it_is_dense_training(method: WeightMethod, kind: str) -> None:
    changes: dict[str, Any] = {"sparsity": 0.0}
    if isinstance(method, DeepR | SDR):
        changes["strength"] = 0.0  # what they do to dense weights as well
    if isinstance(method, DeepR):
        changes["noise"] = 0.0
    session = bound(replace(method, **changes), OPTIMIZERS[kind])
    plain = network()
    optimizer = OPTIMIZERS[kind](plain)
    run(session, TOTAL)
    x, y = task()
    for step in range(TOTAL):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(x)
        F.cross_entropy(plain(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not session.events
    for mine, theirs in zip(session.model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@METHODS
def test_a_loop_that_steps_the_optimizer_itself_does_the_same(method: WeightMethod) -> None:
    ours, theirs = bound(method), bound(method)
    run(ours, TOTAL)
    run(theirs, TOTAL, plain=True)
    assert theirs.steps == TOTAL
    same = all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))
    assert same == (not method.instead)  # RigL's changes take the place of a step where they can
    assert (ours.optimizer.state[ours.model[0].weight]["step"] < TOTAL) == method.instead  # type: ignore[index]


@METHODS
def test_averages_follow_and_the_network_comes_back_plain(method: WeightMethod) -> None:
    session = bound(method)
    average = AveragedModel(session.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    session.follow(average)
    run(session, TOTAL, lambda: average.update_parameters(session.model))
    x = task()[0]
    small = session.realize()
    assert torch.equal(small(x), session.model(x))
    assert all(type(module).__module__.startswith("torch.") for module in small.modules())
    assert all(p.grad is None for p in small.parameters())
    nn.init.ones_(small[0].weight)  # type: ignore[index]
    assert not torch.equal(small(x), session.model(x))
    if isinstance(method, SET | RigL):
        changed = session.events[-1].layer
        died = ~masked(session)[changed].mask
        assert average.module.get_parameter(changed)[died].abs().max() < 1.0


def test_a_removal_reaches_averaged_copies_at_once() -> None:
    session = bound(GradualMagnitude(0.8, every=5, end=0.5))
    average = AveragedModel(session.model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    session.follow(average)
    run(session, TOTAL // 2)
    for name, connections in masked(session).items():
        assert not average.module.get_parameter(name)[~connections.mask].any()


@pytest.mark.parametrize("kind", ["LpSGD", "LpSGD direct"])
@pytest.mark.parametrize(
    "name", ["static", "set", "rigl", "snip", "snfs", "gradual magnitude", "lpss", "lpss, layer", "lpss, keep"]
)
def test_live_weights_stay_on_their_sphere(name: str, kind: str) -> None:
    session = bound(CASES[name], SOLVERS[kind])
    held = {n: c for n, c in masked(session).items() if session.optimizer.holds(c.weight)}  # type: ignore[attr-defined]
    assert list(held) == (["2.weight"] if kind == "LpSGD" else list(masked(session))) or "0.weight" in held

    def look() -> None:
        for connections in held.values():
            assert not connections.weight[~connections.mask].any()
            live = connections.weight.detach().any(1)  # a row of fresh connections alone is 0 until its next step
            assert live.sum() >= connections.mask.any(1).sum() - 3
            norms = lp_norm(connections.weight, 1.3, dim=1)
            torch.testing.assert_close(norms[live], torch.ones(int(live.sum())), rtol=0, atol=1e-5)

    look()
    run(session, TOTAL, look)
    assert name == "static" or session.events


class TestBinding:
    def test_who_can_die_is_chosen_by_place_name_or_function(self) -> None:
        names = {
            where: list(bound(Static(where=where)).connections) for where in ("all", "but first", "but last", "hidden")
        }  # type: ignore[arg-type]
        assert names == {
            "all": ["0.weight", "2.weight", "4.weight"],
            "but first": ["2.weight", "4.weight"],
            "but last": ["0.weight", "2.weight"],
            "hidden": ["2.weight"],
        }
        net = network()
        nn.utils.parametrizations.weight_norm(net[4])
        assert list(Static(where="but last").bind(net, OPTIMIZERS["SGD"](net)).connections) == ["0.weight", "2.weight"]
        tied = nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)])
        tied[2].weight = tied[0].weight
        assert list(Static(where="but last").bind(tied, OPTIMIZERS["SGD"](tied)).connections) == ["1.weight"]
        assert list(bound(Static(where=lambda name, weight: name != "2.weight")).connections) == [
            "0.weight",
            "4.weight",
        ]
        with pytest.raises(ConfigError, match="no weight of the network can die"):
            bound(Static(where=lambda name, weight: False))

    def test_the_start_is_as_sparse_as_said_and_drawn_by_the_generator(self) -> None:
        first, again, other = (bound(Static(0.9), seed=seed) for seed in (0, 0, 1))
        mask = [masked(session)["2.weight"].mask for session in (first, again, other)]
        assert torch.equal(mask[0], mask[1])
        assert not torch.equal(mask[0], mask[2])
        assert [int((~c.mask).sum()) for c in masked(first).values()] == [173, 202, 26]  # ceil(0.9 · numbers)

    def test_rescaled_weights_pass_signals_as_dense_ones_do(self) -> None:
        deep = network(inputs=100, hidden=(100,) * 6)
        with torch.no_grad():
            for parameter in deep.parameters():  # the draw that keeps signals in dense networks
                parameter.zero_() if parameter.ndim == 1 else nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        x, sizes = torch.randn(500, 100), {}
        for rescale in (False, True):
            net = copy.deepcopy(deep)
            Static(0.9, rescale=rescale).bind(net, OPTIMIZERS["SGD"](net))
            sizes[rescale] = float((net(x).std() / deep(x).std()).detach())
        assert sizes[False] < 0.01
        assert 0.2 < sizes[True] < 5.0
        sphere = SOLVERS["LpSGD"]
        plain, scaled = (bound(LpSS(0.8, rescale=rescale), sphere) for rescale in (False, True))
        assert torch.equal(masked(plain)["2.weight"].weight, masked(scaled)["2.weight"].weight)
        assert not torch.equal(masked(plain)["4.weight"].weight, masked(scaled)["4.weight"].weight)

    def test_tied_weights_count_once_and_computed_ones_not(self) -> None:
        net = network(inputs=4, hidden=(4, 4))
        net[2].weight = net[0].weight
        nn.utils.parametrizations.weight_norm(net[4])
        session = Static(0.5).bind(net, OPTIMIZERS["SGD"](net))
        assert list(masked(session)) == ["0.weight"]

    def test_what_cannot_work_is_refused(self) -> None:
        net = network()
        with pytest.raises(ConfigError, match="total_steps"):
            RigL().bind(net, OPTIMIZERS["Adam"](net))
        with pytest.raises(SurgeryError, match="LBFGS"):
            SET(every=1).bind(net, torch.optim.LBFGS(net.parameters()), total_steps=5)
        with pytest.raises(ConfigError, match="not of a copy"):
            SET(every=1).bind(net, OPTIMIZERS["Adam"](network()), total_steps=5)
        session = bound(SET(every=5))
        with pytest.raises(SurgeryError, match="bound already"):
            Static().bind(session.model, session.optimizer)
        with pytest.raises(SurgeryError, match="bound already"):
            Shrink().bind(session.model, session.optimizer, task()[0][:2], steps_per_epoch=1)
        session.detach()
        Static().bind(session.model, session.optimizer)

    @pytest.mark.parametrize(
        "change",
        [
            {"sparsity": 1.0},
            {"distribution": "even"},
            {"where": "middle"},
            {"every": 0},
            {"begin": 0.5, "end": 0.5},
            {"scope": "world"},
            {"regrow": "one"},
            {"tau": 0.0},
            {"initial": 1.0},
        ],
    )
    def test_settings_out_of_range_are_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(change))):
            LpSS(**change)

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda: DeepR(noise=-1.0),
            lambda: DeepR(lowest=0.1),
            lambda: SNFS(momentum=1.0),
            lambda: SDR(strength=-1.0),
            lambda: SDR(tolerance=-0.1),
            lambda: SNIP(scope="x"),  # type: ignore[arg-type]
        ],  # type: ignore[arg-type]
    )
    def test_settings_of_one_method_too(self, wrong: Callable[[], Any]) -> None:
        with pytest.raises(ConfigError, match="must be"):
            wrong()

    def test_a_state_of_another_network_is_refused(self) -> None:
        state = bound(SET(every=5)).state_dict()
        with pytest.raises(RunError, match="does not fit"):
            bound(SET(every=5), conv=True).load_state_dict(state)
        with pytest.raises(RunError, match="format"):
            bound(SET(every=5)).load_state_dict({**state, "format": 99})
        with pytest.raises(RunError, match="of SET, this one of DeepR"):
            bound(DeepR()).load_state_dict(state)


class TestRules:
    def test_rigl_drops_the_smallest_and_grows_by_the_gradient(self) -> None:
        session = bound(RigL(0.8, every=1, begin=0.0, end=1.0))
        connections = masked(session)["2.weight"]
        old, weight = connections.mask.clone(), connections.weight.detach().clone()
        x, y = task()
        loss = F.cross_entropy(session.model(x), y)
        (gradient,) = torch.autograd.grad(loss, connections.weight, retain_graph=True)  # of the dead, too
        loss.backward()
        session.step()
        k = int(0.3 * old.sum() * (1 + torch.cos(torch.tensor(torch.pi / TOTAL))) / 2)
        kept = old & (weight.abs() > weight[old].abs().sort().values[k - 1])
        others = gradient.abs().masked_fill(kept, -1.0)
        grown = others >= others.flatten().topk(k).values[-1]
        assert torch.equal(connections.mask, kept | grown)
        assert torch.equal(connections.weight.detach(), torch.where(old & connections.mask, weight, 0.0))

    def test_snip_keeps_exactly_the_most_salient_of_the_network(self) -> None:
        session = bound(SNIP(0.8))
        x, y = task()
        F.cross_entropy(session.model(x[:BATCH]), y[:BATCH]).backward()
        weights = {name: connections.weight for name, connections in masked(session).items()}
        saliency = {n: (w * w.grad).abs().detach() for n, w in weights.items() if w.grad is not None}
        session.step()
        everyone = torch.cat([s.flatten() for s in saliency.values()])
        bar = everyone.topk(round(0.2 * len(everyone))).values[-1]
        for name, connections in masked(session).items():
            assert torch.equal(connections.mask, saliency[name] >= bar)

    def test_sdr_shrinks_what_the_loss_does_not_feel(self) -> None:
        session = bound(SDR(0.8, strength=0.1, every=TOTAL), lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
        x, y = task()
        (100.0 * F.cross_entropy(session.model(x), y)).backward()
        before = {n: (c.weight.detach().clone(), c.weight.grad) for n, c in masked(session).items()}
        gradients = {name: gradient.clone() for name, (_, gradient) in before.items() if gradient is not None}
        session.step()
        for name, connections in masked(session).items():
            deaf = (1.0 - gradients[name].abs()).clamp(min=0.0)
            assert deaf.eq(0.0).any()
            torch.testing.assert_close(connections.weight.detach(), before[name][0] * (1.0 - 0.1 * deaf))

    def test_sdr_cuts_as_far_as_the_loss_held_out_allows(self) -> None:
        linear, wanted = nn.Linear(100, 1, bias=False), torch.linspace(-1.0, 1.0, 100)
        with torch.no_grad():
            linear.weight.copy_(wanted)
        model = nn.Sequential(nn.Dropout(0.5), linear)
        seen: list[float] = []

        def loss() -> float:
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            seen.append(1.0 + float((linear.weight - wanted).square().sum()))
            return seen[-1]

        method = SDR(0.99, strength=0.0, tolerance=0.1, every=1, begin=0.0, end=0.01)
        session = method.bind(model, torch.optim.SGD(model.parameters(), lr=0.0), total_steps=100, loss=loss)
        linear.weight.sum().backward()
        session.step()
        assert all(module.training for module in model.modules())
        dead = int((linear.weight == 0).sum())
        squares = wanted.square().sort().values.cumsum(0)
        assert dead == int((squares <= 0.1).sum())  # one weight more costs too much
        assert dead > 10
        assert seen[0] == 1.0

    def test_a_loss_that_is_not_a_number_lets_nothing_die(self) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        session = SDR(0.9, tolerance=0.5, every=1).bind(model, optimizer, total_steps=10, loss=lambda: float("nan"))
        run(session, 5)
        assert session.sparsity == 0.0
        assert not session.events

    def test_a_tolerance_needs_a_loss(self) -> None:
        model = network()
        with pytest.raises(ConfigError, match="needs bind"):
            SDR(tolerance=0.1, every=1).bind(model, torch.optim.SGD(model.parameters(), lr=0.0), total_steps=5)

    def test_deep_r_keeps_signs(self) -> None:
        session = bound(DeepR(0.8, noise=1.0))
        run(session, TOTAL)
        for name, connections in masked(session).items():
            assert (connections.weight * session.memory[f"{name}.sign"] >= 0).all()

    def test_lpss_steers_to_the_sparsity_expected(self) -> None:
        method = LpSS(0.5)
        assert method.growth(0.4) == pytest.approx(0.95 * 0.8)
        assert method.growth(0.5) == pytest.approx(1.05)
        assert method.growth(0.6) == pytest.approx(1.05 * 1.2)
        session = bound(CASES["lpss"])
        path: list[float] = []
        run(session, TOTAL, lambda: path.append(session.sparsity))
        for last, now in itertools.pairwise(path):
            assert now >= last - 1e-9 if last < 0.7 else now <= last + 0.01
        assert path[-1] > 0.6

    def test_lpss_drops_what_is_below_a_share_of_its_neurons_mean(self) -> None:
        session = bound(LpSS(0.9, initial=0.2, every=1, begin=0.0, end=1.0, threshold=Constant(0.4)))
        connections = masked(session)["2.weight"]
        with torch.no_grad():
            connections.weight[0] = 0.0  # of a neuron whose weights are equal none dies, of an empty one neither
            connections.mask[0] = False
            connections.weight[1] = connections.mask[1].float()
        x, y = task()
        F.cross_entropy(session.model(x), y).backward()
        for group in session.optimizer.param_groups:
            group["lr"] = 0.0
        before, weight = connections.mask.clone(), connections.weight.detach().abs()
        mean = weight.sum(1) / before.sum(1).clamp(min=1)
        bar = 0.4 * mean.unsqueeze(1)
        session.step()
        dropped = before & (weight < bar)
        assert not dropped[:2].any()
        event = next(e for e in session.events if e.layer == "2.weight")
        assert event.dropped == int(dropped.sum())
        assert abs(event.grown - session.method.growth(0.2) * event.dropped) < 1.0  # type: ignore[attr-defined]
        assert torch.equal(before & ~dropped, before & ~dropped & connections.mask)

    def test_rounding_carries_what_is_left(self) -> None:
        assert rounded(torch.full((10,), 0.3)).sum() == 3
        assert rounded(torch.tensor([0.5, 0.5, 1.0, 0.0])).tolist() == [1, 0, 1, 0]

    def test_shares_are_proportional_and_fit(self) -> None:
        assert shares(10, {"a": 3.0, "b": 1.0, "c": 1.0}, {"a": 9, "b": 9, "c": 9}) == {"a": 6, "b": 2, "c": 2}
        assert shares(10, {"a": 3.0, "b": 1.0}, {"a": 4, "b": 20}) == {"a": 4, "b": 6}
        assert shares(5, {"a": 0.0, "b": 0.0}, {"a": 3, "b": 3}) in ({"a": 3, "b": 2}, {"a": 2, "b": 3})
        assert shares(0, {"a": 1.0}, {"a": 0}) == {"a": 0}


def test_two_processes_choose_alike(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "error::UserWarning", one_process.__file__]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(errors)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first.keys() >= WEIGHT_METHODS.keys()
    assert all(told["changes"] > 0 for name, told in first.items() if "static" not in name)
    assert sum("sparse" in name for name in first) == 5


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_is_looked_through_and_steps_that_overflow_are_none(fused: bool) -> None:
    def net() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = network()
        return model, torch.optim.Adam(model.parameters(), lr=0.02, fused=fused)

    x, y = task()
    told: list[Any] = []
    for scaled in (False, True):
        model, optimizer = net()
        session = SDR(0.8, strength=0.1, every=5).bind(model, optimizer, total_steps=TOTAL)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(20):
            loss = F.cross_entropy(session.model(x), y)
            if scaled and step == 7:  # overflows, and has to be as if it had never been
                scaler.scale(loss * float("inf")).backward()
                session.step(scaler)
                scaler.update(2.0**10)
                optimizer.zero_grad()
                assert session.steps == 7
                loss = F.cross_entropy(session.model(x), y)
            scaler.scale(loss).backward()
            session.step(scaler if scaled else None)
            scaler.update()
            optimizer.zero_grad()
        assert session.steps == 20
        told.append((session.events, [p.detach().clone() for p in model.parameters()]))
    assert told[0][0] == told[1][0] != []
    torch.testing.assert_close(told[0][1], told[1][1], rtol=1e-4, atol=1e-5)


@METHODS
def test_what_is_frozen_or_not_the_optimizers_is_left_alone(method: WeightMethod) -> None:
    net = network()
    net[2].weight.requires_grad_(False)
    rest = [p for name, p in net.named_parameters() if name != "4.weight"]
    optimizer, loss = torch.optim.SGD(rest, lr=0.1), partial(loss_of, net)
    session = replace(method, where="all").bind(net, optimizer, total_steps=TOTAL, loss=loss)
    before = copy.deepcopy(net)
    assert list(masked(session)) == ["0.weight"]
    run(session, TOTAL)
    for place in (2, 4):
        assert torch.equal(net.get_submodule(str(place)).weight, before.get_submodule(str(place)).weight)  # type: ignore[arg-type]


def test_copies_follow_where_snip_chooses_and_after_loading() -> None:
    session = bound(SNIP(0.8))
    average = AveragedModel(session.model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    session.follow(average)
    average.update_parameters(session.model)
    run(session, 1)
    other = bound(SNIP(0.8))
    copied = AveragedModel(other.model)
    other.follow(copied)
    other.load_state_dict(session.state_dict())
    for name, connections in masked(session).items():
        for one in (average, copied):
            assert not one.module.get_parameter(name)[~connections.mask].any()


def test_deep_r_keeps_its_number_when_more_die_than_are_dead() -> None:
    session = bound(DeepR(0.1, noise=3.0), OPTIMIZERS["SGD"])
    before = [connections.count for connections in masked(session).values()]
    run(session, 20)
    assert before == [connections.count for connections in masked(session).values()]


@pytest.mark.parametrize("regrow", ["zero", "keep", "threshold"])
def test_lpss_grows_in_any_memory_format_and_type(regrow: Any) -> None:
    method = LpSS(0.7, every=1, begin=0.0, end=1.0, threshold=Constant(0.5), regrow=regrow)
    net = branched().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    session = method.bind(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=TOTAL)
    run(session, 5)
    net.double()
    x, y = images()
    F.cross_entropy(net(x.double()), y).backward()
    session.step()
    assert session.events[-1].step == 6


def test_optimizers_with_a_past_forget_the_dead_and_fresh_sums_are_adagrads() -> None:
    net = network()
    x, y = task()
    optimizer = torch.optim.Adagrad(net.parameters(), lr=0.05, initial_accumulator_value=0.1)
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    session = SET(0.8, every=1, end=1.0).bind(net, optimizer, total_steps=TOTAL)
    for connections in masked(session).values():
        assert optimizer.state[connections.weight]["sum"][~connections.mask].eq(0.1).all()
    masks = {name: connections.mask.clone() for name, connections in masked(session).items()}
    session.step()
    for name, connections in masked(session).items():
        assert optimizer.state[connections.weight]["sum"][connections.mask & ~masks[name]].eq(0.1).all()


def test_methods_that_move_weights_are_refused_on_spheres() -> None:
    for method in (DeepR(), SDR()):
        with pytest.raises(ConfigError, match="off the sphere"):
            bound(method, SOLVERS["LpSGD"])


def test_snfs_averages_gradients_and_drops_the_share_asked_for() -> None:
    session = bound(SNFS(0.5, every=1, fraction=Constant(0.25), momentum=0.5))
    x, y = task()
    expected = torch.zeros(14, 16)
    for _ in range(3):
        loss = F.cross_entropy(session.model(x), y)
        (gradient,) = torch.autograd.grad(loss, masked(session)["2.weight"].weight, retain_graph=True)
        loss.backward()
        expected = 0.5 * expected + gradient
        before = masked(session)["2.weight"].count
        session.step()
        session.optimizer.zero_grad()
        event = next(e for e in reversed(session.events) if e.layer == "2.weight")
        assert event.dropped == -(-before // 4)
    torch.testing.assert_close(session.memory["2.weight"], expected)


def test_the_last_cut_is_made_at_the_end_whatever_every_is() -> None:
    session = bound(GradualMagnitude(0.8, every=20, end=0.5))
    run(session, 29)
    assert session.sparsity < 0.79
    run(session, 1)
    assert session.sparsity == pytest.approx(0.8, abs=0.01)


def test_lpss_spares_the_young_and_starts_them_where_asked() -> None:
    method = LpSS(0.7, every=1, begin=0.0, end=1.0, threshold=Constant(0.5), regrow="threshold", grace=True)
    session = bound(method, lambda m: torch.optim.SGD(m.parameters(), lr=1e-9))
    connections = masked(session)["2.weight"]
    x, y = task()
    for step in range(3):
        loss = F.cross_entropy(session.model(x), y)
        (gradient,) = torch.autograd.grad(loss, connections.weight, retain_graph=True)
        loss.backward()
        before, young = (
            connections.mask.clone(),
            session.memory.get("2.weight.young", torch.tensor([], dtype=torch.long)),
        )
        session.step()
        session.optimizer.zero_grad()
        assert connections.mask.flatten()[young].all(), step
        grown = connections.mask & ~before
        assert grown.any()
        felt = grown & (gradient != 0)
        assert (connections.weight[felt] * gradient[felt] < 0).all()
