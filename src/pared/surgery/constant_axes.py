"""What operators along an axis make of constants: reductions, copies, entries that are picked or moved."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pared.surgery.constants import Constants, Known, each_of, full, handler, rerun
from pared.surgery.image_rules import REDUCES
from pared.surgery.rules import many
from pared.surgery.trace import Step, Value


@handler(*REDUCES)
def _reduced(constants: Constants, step: Step) -> Known | list[Known | None] | None:
    """A number that does not depend on how many entries are taken together, as a mean, or a sum of zeros."""
    source, known = step["self"], constants.of(step["self"])
    if known is None or len(step.values()) > 1:
        return None
    axes = axes_of(step, len(source.dims))
    results = [_reduce(step, known, source, axes, more) for more in (0, 1)]
    told: list[Known | None] = []
    for once, again in zip(*results, strict=True):
        if not once[0].is_floating_point():  # where something was found
            told.append(None)
            continue
        value, mask = once
        steady = torch.isclose(value, again[0], rtol=1e-12, atol=0.0)
        told.append(Known(value.double(), mask & steady & value.isfinite()))
    return told if isinstance(step.out, list) else told[0]


def axes_of(step: Step, ndim: int) -> list[int]:
    """Return the axes that a reduction takes together."""
    places = step.get("dim")
    return sorted({place % ndim for place in many(places)} if places not in (None, []) else range(ndim))


def _reduce(step: Step, known: Known, source: Value, axes: Sequence[int], more: int) -> list[tuple[Tensor, Tensor]]:
    """What comes out, and where that is known; where nothing varies along an axis, of `more` entries than there are."""
    values, mask = torch.broadcast_tensors(*(full(t, len(source.dims)) for t in (known.values, known.mask)))
    shape = list(values.shape)
    for axis in axes:
        shape[axis] = source.shape[axis] + more if shape[axis] == 1 else shape[axis]
    values, mask = values.expand(shape), mask.expand(shape)
    found = rerun(step, values)
    keep = bool(step.get("keepdim", False))
    kept = torch.all(mask.movedim(list(axes), list(range(len(axes)))).flatten(0, len(axes) - 1), 0)
    if keep:
        for axis in axes:
            kept = kept.unsqueeze(axis)
    return [(value, kept) for value in (found if isinstance(found, tuple | list) else (found,))]


@handler("repeat", "tile")
def _repeat(constants: Constants, step: Step) -> Known | None:
    shape = step.out.shape
    source = (1,) * (len(shape) - len(step["self"].dims)) + step["self"].shape
    copies = [size // old for size, old in zip(shape, source, strict=True)]

    def change(tensor: Tensor) -> Tensor:
        tensor = full(tensor, len(shape))
        return tensor.repeat([count if size != 1 else 1 for count, size in zip(copies, tensor.shape, strict=True)])

    return each_of(constants.of(step["self"]), change)


@handler("flip", "roll")
def _roll(constants: Constants, step: Step) -> Known | None:
    known, ndim = constants.of(step["self"]), len(step["self"].dims)
    axes = [axis % ndim for axis in step["dims"]] or list(range(ndim))
    if known is None or any(full(t, ndim).shape[axis] != 1 for t in (known.values, known.mask) for axis in axes):
        return None
    return known


@handler("index_select")
def _index_select(constants: Constants, step: Step) -> Known | None:
    known, ndim = constants.of(step["self"]), len(step["self"].dims)
    axis = step["dim"] % ndim
    if known is None or any(full(t, ndim).shape[axis] != 1 for t in (known.values, known.mask)):
        return None
    return known


@handler("index")
def _index(constants: Constants, step: Step) -> Known | None:
    """Entries are picked along axes along which nothing varies."""
    known, ndim = constants.of(step["self"]), len(step["self"].dims)
    axes = [axis for axis, index in enumerate(step["indices"]) if index is not None]
    if known is None or any(full(t, ndim).shape[axis] != 1 for t in (known.values, known.mask) for axis in axes):
        return None
    if axes != list(range(axes[0], axes[-1] + 1)):
        return None
    new = len(step.out.dims) - (ndim - len(axes))

    def change(tensor: Tensor) -> Tensor:
        tensor = full(tensor, ndim)
        return tensor.reshape(*tensor.shape[: axes[0]], *[1] * new, *tensor.shape[axes[-1] + 1 :])

    return each_of(known, change)


@handler("cumsum", "cumprod")
def _running(constants: Constants, step: Step) -> Known | None:
    """Zeros, along an axis along which nothing varies."""
    known, ndim = constants.of(step["self"]), len(step["self"].dims)
    if known is None or any(full(t, ndim).shape[step["dim"]] != 1 for t in (known.values, known.mask)):
        return None
    return Known(known.values, known.mask & (known.values == 0))
