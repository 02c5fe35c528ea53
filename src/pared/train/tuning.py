"""Fine-tuning: the penalty biases what it leaves, so each chosen small network is trained on without it."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from pared.train.arrays import Arrays, predict
from pared.train.checkpoint import generator_for
from pared.train.context import Context
from pared.train.loop import adam, mean_loss, train_epoch
from pared.train.point import Point, freeze

STREAM, REFIT_STREAM = 1_000, 100_000


def tune(context: Context, points: Sequence[Point]) -> Iterator[Point]:
    """Yield each point fine-tuned on the training rows, as it was after the epoch of the least validation loss.

    The loss decides and not the score, which on few validation rows would flatter a lucky epoch; a network that only
    gets worse is left as it was.
    """
    for number, point in enumerate(points):
        context.observer.note(f"fine-tuning {number + 1} of {len(points)}: {point.params:,} parameters")
        name = f"tuned/{point.epoch:04d}"
        saved = context.load(name)
        best = Point.from_state(saved) if saved is not None else _tune_one(context, point)
        if saved is None:
            context.save(name, best.state())
        yield best


def refit(context: Context, points: Sequence[Point], snapshots: Sequence[Point], rows: Arrays) -> Iterator[Point]:
    """Yield each point with its fine-tuning repeated on all of `rows` (training and validation), for as many epochs.

    Validation has chosen everything by then; score and loss stay those of the twin that never saw its rows.
    """
    start = {snapshot.epoch: snapshot for snapshot in snapshots}
    for number, point in enumerate(points):
        context.observer.note(f"last fit {number + 1} of {len(points)}: {point.params:,} parameters")
        name = f"refit/{point.epoch:04d}"
        saved = context.load(name)
        if saved is not None or not point.tuned:
            yield point if saved is None else Point.from_state(saved)
            continue
        data = rows if len(point.inputs) == context.features else rows.columns(point.inputs)
        epochs = _cycle(context, start[point.epoch], data, REFIT_STREAM)
        fitted = replace(point, model=freeze(next(model for epoch, model in epochs if epoch == point.tuned)))
        context.save(name, fitted.state())
        yield fitted


def _tune_one(context: Context, point: Point) -> Point:
    train, val = context.narrow(point.inputs)
    best = point
    for epoch, model in _cycle(context, point, train, STREAM):
        outputs = predict(model, val.x)
        loss = mean_loss(outputs, val)
        if loss < best.loss:
            kept = freeze(copy.deepcopy(model))
            best = replace(point, model=kept, score=context.score(outputs, val.y, val.w), loss=loss, tuned=epoch)
    return best


def _cycle(context: Context, point: Point, data: Arrays, stream: int) -> Iterator[tuple[int, nn.Sequential]]:
    """Train the point's network on `data` over one learning-rate cycle; yield it after each epoch, from 1 on."""
    settings = context.settings
    assert settings.fine_tune is not None
    generator = generator_for(settings.seed, stream + point.epoch)
    model = copy.deepcopy(point.model).to(settings.device)
    optimizer = adam(model, lr=settings.lr, weight_decay=settings.weight_decay)
    size = context.batch_size
    cycle = one_cycle(optimizer, 2 * settings.lr, settings.fine_tune * max(1, len(data) // size))
    for epoch in range(1, settings.fine_tune + 1):
        train_epoch(model, optimizer, data, batch_size=size, generator=generator, after_step=cycle.step)
        yield epoch, model


def one_cycle(optimizer: Optimizer, peak: float, steps: int) -> OneCycleLR:
    """Return the schedule of a last fit of `steps` steps >= 1: up to the rate `peak` in a tenth of them, then down to about 0.

    A run whose tenth is not more than one step has no rise: torch's schedule divides by its length.
    """
    rise = 0.1 if steps >= 10 else 0.0
    return OneCycleLR(optimizer, peak, total_steps=steps + 1, pct_start=rise)
