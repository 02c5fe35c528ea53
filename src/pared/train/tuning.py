"""Fine-tuning: the penalty biases what it leaves, so each chosen small network is trained on without it."""

import copy
from collections.abc import Iterator, Sequence

import torch

from pared.train.arrays import Arrays, predict
from pared.train.checkpoint import generator_for
from pared.train.context import Context
from pared.train.loop import adam, train_epoch
from pared.train.point import Point, freeze

STREAM, REFIT_STREAM = 1_000, 100_000


def tune(context: Context, points: Sequence[Point]) -> Iterator[Point]:
    """Yield each point fine-tuned on the training rows and scored anew on validation.

    The network after the last epoch is taken, not the best epoch: a small validation set would flatter the latter.
    """
    for number, point in enumerate(points):
        context.observer.note(f"fine-tuning {number + 1} of {len(points)}: {point.params:,} parameters")
        train, val = context.narrow(point.inputs)
        tuned = _train_on(context, point, train, f"tuned/{point.epoch:04d}", STREAM)
        if tuned.tuned:
            tuned.score = context.score(predict(tuned.model.to(val.x.device), val.x), val.y, val.w)
            tuned.model.to("cpu")
        yield tuned


def refit(context: Context, points: Sequence[Point], snapshots: Sequence[Point], rows: Arrays) -> Iterator[Point]:
    """Yield each point with its fine-tuning repeated on all of `rows` (training and validation).

    Validation has chosen everything by then; the score stays that of the twin that never saw the validation rows.
    """
    start = {snapshot.epoch: snapshot for snapshot in snapshots}
    for number, point in enumerate(points):
        context.observer.note(f"last fit {number + 1} of {len(points)}: {point.params:,} parameters")
        data = rows if len(point.inputs) == context.features else rows.columns(point.inputs)
        fitted = _train_on(context, start[point.epoch], data, f"refit/{point.epoch:04d}", REFIT_STREAM)
        fitted.score = point.score
        yield fitted


def _train_on(context: Context, point: Point, data: Arrays, name: str, stream: int) -> Point:
    """One learning-rate cycle of the point's network on `data`, from a checkpoint where it is done already."""
    saved = context.load(name)
    if saved is not None:
        return Point.from_state(saved)
    settings = context.settings
    assert settings.fine_tune is not None
    if settings.fine_tune == 0:
        return point
    generator = generator_for(settings.seed, stream + point.epoch)
    model = copy.deepcopy(point.model).to(settings.device)
    optimizer = adam(model, lr=settings.lr, weight_decay=settings.weight_decay)
    steps = settings.fine_tune * max(1, len(data) // context.batch_size)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * settings.lr, total_steps=steps + 1, pct_start=0.1)
    size = context.batch_size
    for _ in range(settings.fine_tune):
        train_epoch(model, optimizer, data, batch_size=size, generator=generator, after_step=cycle.step)
    tuned = Point(freeze(model), point.inputs, point.score, point.epoch, point.strength, tuned=True)
    context.save(name, tuned.state())
    return tuned
