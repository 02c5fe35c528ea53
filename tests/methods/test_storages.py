"""Connections of sparse layers do what those of masked ones do, and keep nothing of the dead."""

import copy
import pickle
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helpers import OPTIMIZERS, task
from pared.errors import ConfigError, RunError
from pared.methods import (
    SDR,
    SET,
    SNFS,
    SNIP,
    DeepR,
    GradualMagnitude,
    LpSS,
    RigL,
    SNIPDynamic,
    Static,
    WeightMethod,
    WeightSession,
)
from pared.models import mlp
from pared.nn import SparseConv2d, SparseLinear
from pared.nn.sparse_layer import SparseLayer
from pared.ops import lp_norm
from pared.ops.pattern import Pattern
from pared.optim import LpSGD, SphereSGD, lp_groups
from pared.optim.base import SphereOptimizer
from pared.topology import Compressed, Constant, Masked

TOTAL, BATCH = 40, 32
#: Methods whose choices are the same on both storages, as they draw nothing.
SAME: dict[str, WeightMethod] = {
    "static": Static(0.8),
    "rigl": RigL(0.8, every=5),
    "rigl, but first": RigL(0.6, where="but first", every=3, begin=0.2, end=1.0),
    "snip": SNIP(0.8),
    "snip, layers": SNIP(0.8, scope="layer"),
    "snip dynamic": SNIPDynamic(0.8, every=5),
    "sdr": SDR(0.8, strength=1e-3, every=5),
    "sdr, tolerance": SDR(0.8, strength=1e-3, tolerance=0.5, every=5),
    "gradual magnitude": GradualMagnitude(0.8, every=5),
    "gradual magnitude, network": GradualMagnitude(0.7, every=7, scope="network"),
    "lpss": LpSS(0.7, every=2, begin=0.0, end=1.0, threshold=Constant(0.5)),
    "lpss, layer": LpSS(0.7, every=2, threshold=Constant(0.5), scope="layer", regrow="threshold", grace=True),
}
DRAWN: dict[str, WeightMethod] = {"set": SET(0.8, every=5), "deep r": DeepR(0.8, noise=1.0)}
#: Plain ones, as some of torch's keep no state of an entry's shape.
SOLVERS: dict[str, Callable[[nn.Module], Any]] = {name: OPTIMIZERS[name] for name in ("SGD", "Adam", "Adagrad")}


def on_sphere(kind: Callable[..., SphereOptimizer], **options: Any) -> Callable[[nn.Module], SphereOptimizer]:
    return lambda m: kind(lp_groups(m, 1.3, constrain="all"), lr=0.02, p=1.3, euclidean_lr=0.1, **options)


SPHERES: dict[str, Callable[[nn.Module], SphereOptimizer]] = {
    "LpSGD": on_sphere(LpSGD),
    "LpSGD Nesterov": on_sphere(LpSGD, nesterov=True),
    "LpSGD direct": on_sphere(LpSGD, form="direct", momentum=0.0),
    "SphereSGD": on_sphere(SphereSGD),
}
ALL = SOLVERS | SPHERES


def double() -> nn.Sequential:
    """Three answers, as gradients of two would be each other's opposite, and which is larger a matter of rounding."""
    return mlp(12, 3, (16, 14), generator=torch.Generator().manual_seed(0)).double()


def pixels(model: nn.Sequential) -> nn.Sequential:
    """Return a small convolutional network in its place: 12 inputs as an image of 3 by 4 pixels."""
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, (1, 2), (2, 1), bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 2 * 3, 3),
    )
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
    return made.to(model[0].weight.dtype)  # type: ignore[arg-type]


Change = Callable[[nn.Sequential], nn.Sequential]
#: What becomes of a linear network, and the optimizers that are tried on that.
NETWORKS: dict[str, tuple[Change, Iterable[str]]] = {
    "linear": (lambda model: model, ALL),
    "convolutions": (pixels, ("Adam", "LpSGD")),
}


def loss_of(model: nn.Module) -> torch.Tensor:
    x, y = task()
    return F.cross_entropy(model(x[:BATCH].double()), y[:BATCH])


def bind(method: WeightMethod, model: nn.Module, solver: Callable[[nn.Module], Any]) -> WeightSession:
    found = partial(method.bind, loss=partial(loss_of, model)) if isinstance(method, SDR) else method.bind
    return found(model, solver(model), total_steps=TOTAL, generator=torch.Generator().manual_seed(0))


def sparse(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
    """Return a copy with sparse layers where there are masks."""
    twin = copy.deepcopy(model)
    for name, mask in masks.items():
        place = name.removesuffix(".weight")
        layer = twin.get_submodule(place)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        made = (
            SparseLinear.from_linear(layer, mask)
            if isinstance(layer, nn.Linear)
            else SparseConv2d.from_conv(layer, mask)
        )
        twin.set_submodule(place, made)
    return twin


def pair(
    method: WeightMethod,
    solver: Callable[[nn.Module], Any],
    change: Change = lambda m: m,
) -> tuple[WeightSession, WeightSession]:
    """Return the method at work on a masked network, and on a sparse one with the same connections."""
    model = change(double())
    whole = bind(method, model, solver)
    masks = {name: whole.masked(name).mask for name in whole.connections}
    return whole, bind(method, sparse(model, masks), solver)


def run(session: WeightSession, steps: int, after: Callable[[], None] = lambda: None) -> None:
    x, y = task()
    for _ in range(steps):
        rows = torch.arange(session.steps * BATCH, (session.steps + 1) * BATCH) % len(x)
        (F.cross_entropy(session.model(x[rows].double()), y[rows]) + session.penalty()).backward()
        session.step()
        session.optimizer.zero_grad()
        after()


def working(methods: dict[str, WeightMethod], kinds: Iterable[str]) -> Any:
    """Parametrize a test over methods, optimizers and networks; a method that moves weights itself would leave a sphere."""
    cases = {
        f"{n}, {k}, {network}": (m, k, change)
        for network, (change, served) in NETWORKS.items()
        for n, m in methods.items()
        for k in kinds
        if k in served and not (m.presses and k in SPHERES)
    }
    return pytest.mark.parametrize(("method", "kind", "change"), cases.values(), ids=cases)


@working(SAME, ALL)
def test_both_storages_choose_and_train_alike(method: WeightMethod, kind: str, change: Change) -> None:
    whole, small = pair(method, ALL[kind], change)
    assert all(isinstance(connections, Compressed) for connections in small.connections.values())
    for _ in range(TOTAL):
        run(whole, 1)
        run(small, 1)
        for one, other in zip(whole.connections.values(), small.connections.values(), strict=True):
            assert torch.equal(one.live(), other.live())
            assert torch.allclose(one.values(), other.values(), rtol=0, atol=1e-10)
            past, present = whole.optimizer.state[one.weight], small.optimizer.state[other.weight]
            for key, state in past.items():
                if isinstance(state, torch.Tensor) and state.ndim and key != "mask":
                    assert torch.allclose(state.flatten()[one.live()], present[key], rtol=0, atol=1e-10)
    assert [(e.step, e.dropped, e.grown, e.live) for e in whole.events] == [
        (e.step, e.dropped, e.grown, e.live) for e in small.events
    ]
    assert (whole.sparsity, whole.params) == (small.sparsity, small.params)
    x = task()[0].double()
    assert torch.allclose(whole.realize().eval()(x), small.realize().eval()(x), rtol=0, atol=1e-9)
    assert not any(isinstance(module, SparseLayer) for module in small.realize().modules())
    assert torch.equal(small.realize(sparse=True).eval()(x), small.model.eval()(x))


@working(DRAWN, ("Adam", "LpSGD"))
def test_what_is_drawn_keeps_its_number_and_begins_anew(method: WeightMethod, kind: str, change: Change) -> None:
    _, small = pair(method, ALL[kind], change)
    before = {name: (connections.count, connections.live()) for name, connections in small.connections.items()}

    def look() -> None:
        for name, connections in small.connections.items():
            live = connections.live()
            assert len(live) == connections.count == before[name][0]
            assert bool((live.diff() > 0).all())
            part = small.optimizer.state[connections.weight]["exp_avg" if kind == "Adam" else "v"]
            assert part.shape == connections.weight.shape

    run(small, TOTAL, look)
    assert small.events
    assert any(not torch.equal(small.connections[name].live(), live) for name, (_, live) in before.items())


@working(SAME | DRAWN, ("Adam", "LpSGD", "SphereSGD"))
def test_a_sparse_session_resumes_bit_equally(method: WeightMethod, kind: str, change: Change) -> None:
    def fresh() -> WeightSession:
        return pair(method, ALL[kind], change)[1]

    session = fresh()
    run(session, TOTAL // 2)
    state = copy.deepcopy(session.state_dict())
    twin = pickle.loads(pickle.dumps(copy.deepcopy(session))) if not isinstance(method, SDR) else copy.deepcopy(session)
    again = fresh()
    again.load_state_dict(state)
    for one in (session, again, twin):
        run(one, TOTAL - TOTAL // 2)
    for one in (again, twin):
        assert one.events == session.events
        for key, value in session.net.state_dict().items():
            assert torch.equal(value, one.net.state_dict()[key]), key


@working(SAME | DRAWN, ("Adam", "LpSGD"))
def test_averages_follow(method: WeightMethod, kind: str, change: Change) -> None:
    _, session = pair(method, ALL[kind], change)
    average = AveragedModel(session.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    session.follow(average)
    run(session, TOTAL, lambda: average.update_parameters(session.model))
    for name in session.connections:
        place = name.removesuffix(".values")
        mine, other = session.net.get_submodule(place), average.module.get_submodule(place)
        assert isinstance(mine, SparseLayer)
        assert isinstance(other, SparseLayer)
        assert torch.equal(mine.pattern.entries(), other.pattern.entries())


def test_what_needs_a_number_for_every_weight_is_refused() -> None:
    model = sparse(double(), {"2.weight": masks()["2.weight"]})
    for method in (SNFS(0.8, every=5), DeepR(0.8, soft=True), LpSS(0.8, every=5, regrow="keep")):
        with pytest.raises(ConfigError, match="keeps a number for every weight"):
            bind(method, model, OPTIMIZERS["Adam"])


def masks() -> dict[str, torch.Tensor]:
    session = bind(Static(0.8), double(), OPTIMIZERS["SGD"])
    return {name: session.masked(name).mask for name in session.connections}


def test_dense_and_sparse_layers_may_be_mixed() -> None:
    model = sparse(double(), {"2.weight": masks()["2.weight"]})
    session = bind(RigL(0.5, every=3, end=1.0), model, OPTIMIZERS["Adam"])
    kinds = [type(connections) for connections in session.connections.values()]
    assert kinds == [Masked, Compressed, Masked]
    before = session.connections["2.values"].count
    run(session, TOTAL)
    assert {event.layer for event in session.events} == {"0.weight", "2.values", "4.weight"}
    assert session.connections["2.values"].count == before
    with pytest.raises(RunError, match="does not fit"):
        bind(RigL(0.5, every=3), double(), OPTIMIZERS["Adam"]).load_state_dict(session.state_dict())


@pytest.mark.parametrize("kind", SPHERES)
def test_living_weights_of_sparse_layers_stay_on_their_sphere(kind: str) -> None:
    _, session = pair(SAME["lpss"], SPHERES[kind])

    def look() -> None:
        for connections in session.connections.values():
            assert isinstance(connections, Compressed)
            norms = lp_norm(connections.layer.to_dense().detach(), 1.3)
            assert torch.allclose(norms, (connections.layer.crow.diff() > 0).double(), rtol=0, atol=1e-12)
            assert torch.equal(session.optimizer.state[connections.weight]["crow"], connections.layer.crow)

    run(session, TOTAL, look)
    assert (
        len({connections.count for connections in session.connections.values()} | {e.live for e in session.events}) > 9
    )


def test_rows_that_changed_before_the_session_are_found() -> None:
    model = sparse(double(), masks())
    optimizer = SPHERES["LpSGD"](model)
    layer = model.get_submodule("2")
    assert isinstance(layer, SparseLinear)
    mask = layer.to_dense().detach() != 0
    layer.repattern(Pattern.from_mask(mask.roll(1, 0)))  # as many weights in other rows
    session = Static(0.8).bind(model, optimizer)
    assert torch.equal(optimizer.state[layer.values]["crow"], layer.crow)
    run(session, 1)
    norms = lp_norm(layer.to_dense().detach(), 1.3)
    assert torch.allclose(norms[norms > 0], torch.ones(1, dtype=norms.dtype), rtol=0, atol=1e-12)


def test_what_is_steady_keeps_its_parameter_in_place() -> None:
    """`DistributedDataParallel` holds on to it."""
    for method in (SAME | DRAWN).values():
        _, session = pair(method, OPTIMIZERS["SGD"])
        before = [connections.weight.data_ptr() for connections in session.connections.values()]
        run(session, TOTAL)
        after = [connections.weight.data_ptr() for connections in session.connections.values()]
        assert not method.steady or before == after


def test_nothing_grows_with_the_size_of_the_weight() -> None:
    """A layer of a million by a million could not be had densely in any memory."""
    layer = SparseLinear(10**6, 10**6, density=1e-9, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    session = SET(0.9, every=1, fraction=Constant(0.5)).bind(layer, optimizer, total_steps=4)
    for _ in range(3):
        layer(torch.ones(1, 10**6)).sum().backward()
        session.step()
        optimizer.zero_grad()
    assert layer.count == 1000
    assert [event.grown for event in session.events] == [500] * 3


def test_sparse_layers_start_as_they_are_whatever_the_methods_sparsity() -> None:
    model = sparse(double(), masks())
    before = copy.deepcopy(model.state_dict())
    session = bind(Static(0.1, rescale=True), model, OPTIMIZERS["SGD"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert session.sparsity == pytest.approx(0.8, abs=0.01)
