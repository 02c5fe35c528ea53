"""The dense reference: the same network without penalty, against which every drop is measured."""

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn

from pared.models import mlp
from pared.train.arrays import Arrays, predict
from pared.train.checkpoint import generator_for
from pared.train.context import Context, Record
from pared.train.loop import adam, mean_loss, train_epoch
from pared.train.point import Point, everything, freeze

#: Random streams of their own, so that no phase depends on how many numbers another drew.
STREAM, REFIT_STREAM = 1, 3


@dataclass
class _Progress:
    best: Point | None = None
    epoch: int = 0
    waited: int = 0
    seconds: float = 0.0


def train_dense(context: Context) -> tuple[Point, float]:
    """Return the dense network of the best validation epoch, and the seconds it took over all sittings.

    Training stops once validation has not improved for a fifth of the epochs (at least 8).
    """
    settings = context.settings
    generator = generator_for(settings.seed, STREAM)
    model, optimizer = _fresh(context, generator)
    progress = _resume(context.load("dense"), model, optimizer, generator)
    patience = max(8, context.epochs // 5)
    began = time.perf_counter() - progress.seconds
    while progress.epoch < context.epochs and progress.waited < patience:
        loss = train_epoch(model, optimizer, context.train, batch_size=context.batch_size, generator=generator)
        outputs = predict(model, context.val.x)
        score = context.score(outputs, context.val.y, context.val.w)
        loss_on_val = mean_loss(outputs, context.val)
        progress.waited += 1
        if progress.best is None or score > progress.best.score:
            kept = freeze(copy.deepcopy(model))
            progress.best = Point(kept, everything(context.features), score, loss_on_val, progress.epoch, 0.0)
            progress.waited = 0
        progress.seconds = time.perf_counter() - began
        figures = {"strength": 0.0, "loss": loss, "val_score": score, "val_loss": loss_on_val}
        context.report("dense", progress.epoch, model, **figures, seconds=progress.seconds)
        progress.epoch += 1
        context.save("dense", _state(progress, model, optimizer, generator))
    assert progress.best is not None
    return progress.best, progress.seconds


def refit_dense(context: Context, dense: Point, rows: Arrays) -> Point:
    """Return the reference trained anew on `rows` for the number of epochs that validation chose."""
    saved = context.load("dense-refit")
    if saved is not None:
        return Point.from_state(saved)
    generator = generator_for(context.settings.seed, REFIT_STREAM)
    model, optimizer = _fresh(context, generator)
    for _ in range(dense.epoch + 1):
        train_epoch(model, optimizer, rows, batch_size=context.batch_size, generator=generator)
    point = Point(freeze(model), dense.inputs, dense.score, dense.loss, dense.epoch, dense.strength)
    context.save("dense-refit", point.state())
    return point


def _fresh(context: Context, generator: torch.Generator) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    settings = context.settings
    model = mlp(context.features, context.outputs, settings.hidden, generator=generator).to(settings.device)
    return model, adam(model, lr=settings.lr, weight_decay=settings.weight_decay)


def _state(
    progress: _Progress, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> Record:
    assert progress.best is not None
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "best": progress.best.state(),
        "epoch": progress.epoch,
        "waited": progress.waited,
        "seconds": progress.seconds,
    }


def _resume(
    saved: Record | None, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> _Progress:
    if saved is None:
        return _Progress()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    generator.set_state(saved["generator"])
    return _Progress(Point.from_state(saved["best"]), saved["epoch"], saved["waited"], saved["seconds"])
