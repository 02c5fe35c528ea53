"""One trial of a search: a network of fixed widths, or a shrinking run at a fixed strength, trained as the paper did."""

import copy
import math
from collections.abc import Callable, Iterator

from torch import Generator, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pared.methods import Shrink, SignVariance, UnitSession
from pared.models import kaiming_, mlp
from pared.searching.space import Choice
from pared.train.arrays import predict
from pared.train.checkpoint import generator_for
from pared.train.context import Context
from pared.train.half import SecondHalf
from pared.train.loop import adam, mean_loss, train_epoch
from pared.train.point import Point, everything, freeze

STREAM = 10_000_000
#: The learning rate falls tenfold after so many epochs without a better validation score, and the trial ends below the
#: last one, or after so many epochs.
PATIENCE, LEAST_LR, EPOCHS = 5, 1e-7, 400


class Dropped(Exception):
    """The trial was given up early."""


def train_trial(
    context: Context, choice: Choice, place: int, goes_on: Callable[[int, float], bool] = lambda epoch, score: True
) -> tuple[Point, int]:
    """Return the best epoch of the second half by validation score, and how many epochs there were.

    `place` is the trial's number, of which its random numbers are drawn; `goes_on` is asked after every epoch.

    Raises:
        Dropped: `goes_on` said no.

    Source: ShrinkNets (arXiv 1806.03723), section 4.1: Kaiming's uniform weights, Adam, the plateau schedule, the choice
    of the epoch.
    """
    kept: SecondHalf[Point] = SecondHalf()
    for epoch, point in _epochs(context, choice, place):
        kept.add(point.score, point)
        if not goes_on(epoch, point.score):
            raise Dropped
    return kept.best(), kept.count


def _epochs(context: Context, choice: Choice, place: int) -> Iterator[tuple[int, Point]]:
    """Train, yielding each epoch's network and scores."""
    settings = context.settings
    generator = generator_for(settings.seed, STREAM + place)
    model = mlp(context.features, context.outputs, choice.hidden, generator=generator).to(settings.device)
    kaiming_(model, generator)
    optimizer = adam(model, lr=choice.lr, weight_decay=choice.weight_decay)
    session = None if choice.strength is None else _bind(context, choice, model, optimizer, generator)
    plateau = ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=PATIENCE)
    epoch = 0
    while epoch < context.epochs and optimizer.param_groups[0]["lr"] > 1.001 * LEAST_LR:
        train_epoch(
            model, optimizer, context.train, batch_size=context.batch_size, generator=generator, session=session
        )
        outputs = predict(model, context.val.x)
        score = context.score(outputs, context.val.y, context.val.w)
        small = copy.deepcopy(model) if session is None else session.realize()
        assert isinstance(small, nn.Sequential)
        loss = mean_loss(outputs, context.val)
        yield epoch, Point(freeze(small), everything(context.features), score, loss, epoch, choice.strength or 0.0)
        plateau.step(score if math.isfinite(score) else -math.inf)
        epoch += 1


def _bind(
    context: Context, choice: Choice, model: nn.Module, optimizer: Optimizer, generator: Generator
) -> UnitSession:
    assert choice.strength is not None
    method = Shrink(strength=choice.strength, rule=SignVariance(choice.gamma), init="uniform")
    return method.bind(
        model,
        optimizer,
        context.train.x[:1],
        steps_per_epoch=context.steps_per_epoch,
        generator=generator,
    )
