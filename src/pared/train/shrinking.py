"""The shrinking run: the penalty is raised epoch by epoch, what dies is removed, and every epoch leaves a snapshot."""

import time
from collections.abc import Sequence

import torch
from torch import nn

from pared.methods import Shrink, UnitSession
from pared.methods.rules import SignVariance
from pared.methods.strengths import Geometric
from pared.models import mlp
from pared.train.arrays import predict
from pared.train.checkpoint import generator_for
from pared.train.context import Context
from pared.train.loop import adam, mean_loss, train_epoch
from pared.train.point import Point, freeze

STREAM = 2


def shrink(context: Context, snapshots: list[Point]) -> float:
    """Add one snapshot per epoch to `snapshots`, as they come; return the seconds over all sittings.

    The run ends early once three epochs in a row of its second half have lost more than half of that half's best lead
    over the baseline. The first half does not count: a network too large for its data may do badly and recover as it
    shrinks.
    """
    generator = generator_for(context.settings.seed, STREAM)
    session = bind(context, generator)
    path = Geometric(*context.settings.strength)
    first, seconds = _resume(context, session, generator, snapshots)
    began = time.perf_counter() - seconds
    for epoch in range(first, context.epochs):
        if _collapsed(snapshots[context.epochs // 2 :], context.baseline):
            break
        session.strength = path.at(epoch / max(1, context.epochs - 1))
        snapshots.append(_epoch(context, session, generator, epoch, began))
        seconds = time.perf_counter() - began
        context.save(f"snapshots/{epoch:04d}", snapshots[-1].state())
        state = {
            "session": session.state_dict(),
            "generator": generator.get_state(),
            "epoch": epoch + 1,
            "seconds": seconds,
        }
        context.save("shrink", state)
    return seconds


def bind(context: Context, generator: torch.Generator) -> UnitSession:
    """Return the session of the oversized start, its switches in place."""
    settings = context.settings
    model = mlp(context.features, context.outputs, settings.hidden, generator=generator).to(settings.device)
    method = Shrink(
        strength=settings.strength[0],
        rule=SignVariance(settings.gamma, settings.threshold),
        init=settings.switch_init,
        inputs=settings.select != "none",
        input_sizes=context.groups if settings.select == "columns" else None,
    )
    optimizer = adam(model, lr=settings.lr, weight_decay=settings.weight_decay)
    example = context.train.x[:1]
    return method.bind(model, optimizer, example, steps_per_epoch=context.steps_per_epoch, generator=generator)


def _epoch(context: Context, session: UnitSession, generator: torch.Generator, epoch: int, began: float) -> Point:
    before, known = session.inputs, len(session.events)
    train, _ = context.narrow(before)
    model, optimizer = session.model, session.optimizer
    loss = train_epoch(model, optimizer, train, batch_size=context.batch_size, generator=generator, session=session)
    _, val = context.narrow(session.inputs)
    outputs = predict(session.model, val.x)
    score, val_loss = context.score(outputs, val.y, val.w), mean_loss(outputs, val)
    small = session.realize()
    assert isinstance(small, nn.Sequential)
    point = Point(freeze(small), session.inputs.cpu().clone(), score, val_loss, epoch, session.strength)
    for event in session.events[known:]:
        context.report_event(event, epoch, before)
    figures = {"strength": session.strength, "loss": loss, "val_score": score, "val_loss": val_loss}
    context.report("shrink", epoch, point.model, **figures, seconds=time.perf_counter() - began)
    return point


def _resume(
    context: Context, session: UnitSession, generator: torch.Generator, snapshots: list[Point]
) -> tuple[int, float]:
    """The epoch to go on with, which a lost snapshot does not change, and the seconds so far."""
    saved = context.load("shrink")
    if saved is None:
        return 0, 0.0
    session.load_state_dict(saved["session"])
    generator.set_state(saved["generator"])
    for epoch in range(saved["epoch"]):
        snapshot = context.load(f"snapshots/{epoch:04d}")
        if snapshot is not None:
            snapshots.append(Point.from_state(snapshot))
    return saved["epoch"], saved["seconds"]


def _collapsed(snapshots: Sequence[Point], baseline: float) -> bool:
    if len(snapshots) < 3:
        return False
    top = max(point.score for point in snapshots)
    return top > baseline and all(point.score < (baseline + top) / 2 for point in snapshots[-3:])
