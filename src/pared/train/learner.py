"""Dense reference, shrinking run, fine-tuning: the front of size against accuracy, resumable at every epoch."""

import time
from dataclasses import dataclass

import torch

from pared.train.arrays import Arrays
from pared.train.context import Context
from pared.train.point import Point, candidates, front
from pared.train.reference import refit_dense, train_dense
from pared.train.shrinking import shrink
from pared.train.tuning import refit, tune

#: Snapshots above this share of the start's parameters, and this many, are reported as they are: tuning them costs
#: more than it gives.
TUNE_BELOW, TUNE_ANYWAY = 0.05, 20_000
#: A network that has hardly shrunk is no point of the front: the dense reference stands for its size.
SHRUNK = 0.5


@dataclass
class Front:
    """What a run learned: the dense reference, the front from largest to smallest, seconds by phase.

    `warning` says that the run was too short to shrink the network, and what to raise; it is empty otherwise.
    """

    dense: Point
    points: list[Point]
    seconds: dict[str, float]
    interrupted: bool = False
    warning: str = ""


def learn_front(context: Context) -> Front:
    """Learn the front of `context`'s problem.

    An interrupt (Ctrl-C) while shrinking or tuning ends that phase and keeps the front so far.
    """
    dense, dense_seconds = train_dense(context)
    seconds = {"dense": dense_seconds}
    snapshots: list[Point] = []
    interrupted = False
    began = time.perf_counter()
    try:
        seconds["shrink"] = shrink(context, snapshots)
    except KeyboardInterrupt:
        if not snapshots:
            raise
        seconds["shrink"], interrupted = time.perf_counter() - began, True
    began = time.perf_counter()
    shrunk = [point for point in snapshots if point.params <= SHRUNK * dense.params]
    points = candidates(shrunk or snapshots)
    warning = ""
    if not shrunk and not interrupted:
        least = min(point.params for point in snapshots)
        warning = (
            f"{context.epochs * context.steps_per_epoch} steps left {least:,} of {dense.params:,} parameters, more than half; "
            "raise epochs, lr or the second number of strength"
        )
        context.observer.note(f"warning: {warning}")
    try:
        if not interrupted:
            points = front(_tuned(context, dense, points))
            if context.settings.refit:
                rows = _both(context)
                points = list(refit(context, points, snapshots, rows))
                dense = refit_dense(context, dense, rows)
    except KeyboardInterrupt:
        interrupted = True
    if interrupted:
        context.observer.note(
            "interrupted: writing the front so far; resuming goes on from here, and a second interrupt ends at once"
        )
    seconds["fine_tune"] = time.perf_counter() - began
    return Front(dense, front(points), seconds, interrupted, warning)


def _tuned(context: Context, dense: Point, points: list[Point]) -> list[Point]:
    limit = max(TUNE_BELOW * dense.params, TUNE_ANYWAY)
    small = [point for point in points if point.params <= limit]
    large = [point for point in points if point.params > limit]
    return large + list(tune(context, small))


def _both(context: Context) -> Arrays:
    """Training and validation rows together; balanced classes weigh on the latter too, which judging leaves as they are."""
    train, val = context.train, context.val
    x, y = torch.cat([train.x, val.x]), torch.cat([train.y, val.y])
    if train.w is None:
        return Arrays(x, y)
    weights = torch.ones_like(val.x[:, 0]) if val.w is None else val.w
    if context.settings.class_weights == "balanced":
        total = torch.zeros(context.outputs, device=x.device).index_add_(0, train.y, train.w)
        weights = weights * (total / torch.bincount(train.y, minlength=context.outputs).clamp(min=1))[val.y]
    return Arrays(x, y, torch.cat([train.w, weights]))
