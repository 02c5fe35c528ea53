"""What goes on around a session: scalers, schedulers, copies, hooks, frozen layers."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helpers import OPTIMIZERS, network, task
from pared.errors import ConfigError
from pared.methods import Shrink, UnitSession

X, Y = task()


def bound(model: Any = None, optimizer: str = "Adam", **options: Any) -> UnitSession:
    model = network() if model is None else model
    generator = torch.Generator().manual_seed(1)
    method = Shrink(**{"strength": 0.02, "init": "uniform", "inputs": True, "every": 4, **options})
    return method.bind(model, OPTIMIZERS[optimizer](model), X, generator=generator)


def step(session: UnitSession, number: int = 0, scaler: Any = None) -> torch.Tensor:
    rows = slice(number % 8 * 32, number % 8 * 32 + 32)
    loss = F.cross_entropy(session.model(X[rows]), Y[rows]) + session.penalty()
    (loss if scaler is None else scaler.scale(loss)).backward()
    session.step(scaler)
    if scaler is not None:
        scaler.update()
    session.optimizer.zero_grad()
    return loss


def run(session: UnitSession, steps: int) -> None:
    for number in range(session.steps, session.steps + steps):
        step(session, number)


def assert_same(first: nn.Module, second: nn.Module) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def kill(session: UnitSession, layer: int, index: int) -> None:
    switch = list(session.switches.values())[layer]
    with torch.no_grad():
        switch.theta[index] = 0.0
        switch.alive[index] = False


def test_a_scaler_changes_nothing_but_leaves_out_overflowed_steps() -> None:
    plain, scaled = bound(), bound()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for number in range(60):
        step(plain, number)
        step(scaled, number, scaler)
    assert plain.events == scaled.events != []
    assert_same(plain.model, scaled.model)
    before = copy.deepcopy(scaled.model.state_dict())
    scaler.scale(scaled.model(X).sum() * float("inf")).backward()
    scaled.step(scaler)
    scaler.update()
    after = scaled.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if "sign" not in key)
    assert scaler.get_scale() == 2.0**7


def test_the_scheduler_that_watches_a_score_goes_on_through_removals() -> None:
    session = bound()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(session.optimizer, patience=1, factor=0.5)
    for number in range(60):
        step(session, number)
        scheduler.step(1.0)
    assert session.events
    rates = {group["lr"] for group in session.optimizer.param_groups}
    assert len(rates) == 1
    assert rates.pop() < 0.02


def test_a_live_graph_of_the_step_before_does_not_matter() -> None:
    kept, session, twin = [], bound(), bound()
    for number in range(40):
        kept.append(step(session, number))
        step(twin, number)
    assert session.events
    assert_same(session.model, twin.model)


@pytest.mark.parametrize("optimizer", ["Adam", "SGD Nesterov", "Rprop"])
def test_a_copy_of_a_session_goes_its_own_equal_way(optimizer: str) -> None:
    session = bound(optimizer=optimizer)
    run(session, 30)
    twin = copy.deepcopy(session)
    run(session, 30)
    count, sizes = len(session.events), [p.shape for p in session.model.parameters()]
    run(twin, 30)
    assert len(session.events) == count
    assert twin.events == session.events
    assert sizes == [p.shape for p in session.model.parameters()]
    assert_same(session.model, twin.model)
    assert {id(p) for p in twin.model.parameters()} == {id(p) for g in twin.optimizer.param_groups for p in g["params"]}


def test_a_state_kept_in_memory_is_not_trained_on() -> None:
    session = bound()
    run(session, 30)
    state = copy.deepcopy(session.state_dict())
    first, second = bound(network(seed=3)), bound(network(seed=4))
    first.load_state_dict(state)
    run(first, 20)
    second.load_state_dict(state)
    run(second, 20)
    assert_same(first.model, second.model)


def test_realizing_under_inference_mode_does_not_hinder_training() -> None:
    session = bound(every=10**6)
    kill(session, 1, 3)
    with torch.inference_mode():
        small = session.realize()
    run(session, 3)
    assert small(X[:, session.inputs]).shape == (256, 2)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_realized_has_the_mode_of_the_network_throughout(training: bool) -> None:
    session = bound(nn.Sequential(nn.Linear(12, 5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 2)))
    session.model.train(training)
    assert {m.training for m in session.realize().modules()} == {training}


def test_frozen_stays_frozen_and_hooks_stay() -> None:
    model = network()
    first, last = model[0], model[4]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    first.weight.requires_grad_(False)
    shapes: list[torch.Size] = []
    handle = last.weight.register_hook(lambda grad: shapes.append(grad.shape))
    accumulated: list[torch.Size] = []
    last.bias.register_post_accumulate_grad_hook(lambda p: accumulated.append(p.shape))
    rows = first.weight.detach().clone()
    session = bound(model)
    run(session, 60)
    assert any(event.layer == "hidden 2" for event in session.events)
    assert not first.weight.requires_grad
    assert len(shapes) == len(accumulated) == 60
    assert shapes[-1] == last.weight.shape != shapes[0]
    assert all(any(torch.equal(row, old[session.inputs]) for old in rows) for row in first.weight)
    handle.remove()
    run(session, 1)
    assert len(shapes) == 60


def test_averages_of_another_shape_are_refused_when_they_are_to_follow() -> None:
    model = network()
    early = AveragedModel(model)
    session = bound(model)
    with pytest.raises(ConfigError, match="after binding"):
        session.follow(early)
    late = copy.deepcopy(session.model)
    kill(session, 0, 2)
    session.remove()
    with pytest.raises(ConfigError, match="differs from the bound one"):
        session.follow(late)
    assert not session.averaged


def test_an_average_of_equal_networks_stays_their_equal() -> None:
    session = bound(every=5)
    average = AveragedModel(session.model, avg_fn=lambda old, new, n: new)
    session.follow(average)
    for number in range(40):
        step(session, number)
        average.update_parameters(session.model)
    assert session.events
    for mine, other in zip(session.model.parameters(), average.module.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_events_are_told_as_they_come_and_number_channels_as_they_were() -> None:
    session, told = bound(every=1), []
    session.on_event = told.append
    for layer, index in ((1, 3), (1, 3), (0, 11)):
        kill(session, layer, index)
        session.remove()
    assert told == session.events
    assert [(e.layer, e.index, e.left) for e in told] == [
        ("hidden 1", (3,), 15),
        ("hidden 1", (3,), 14),
        ("inputs", (11,), 11),
    ]
    assert session.inputs.tolist() == list(range(11))
