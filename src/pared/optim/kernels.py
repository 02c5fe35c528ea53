"""The arithmetic of the L_p sphere, in place and on tiles of rows that stay in a CPU's cache; compiled for LpSGD if it can be.

Everything here takes `over`, the neurons, and scratch tensors; powers are exp2(t · log), since exp2 costs a
quarter of exp on a CPU, and |v|^(q-1) serves both the weight and, times |v|, the norm: one logarithm for two powers.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pared.native import sphere
from pared.optim.neurons import Axes, Neurons, Ragged

Number = float | Tensor
#: Entries in a tile: few enough for a CPU's caches, so many that calling functions costs nothing.
TILE = 262_144
#: Many rows with fewer entries are torch's: what the compiled step does once a row takes longer than calls of functions.
SHORT, MANY = 48, 256
#: Below this share of the largest there is nothing left that counts, and denormal numbers would slow a CPU down tenfold.
TINY = 1e-30


class Rows(NamedTuple):
    """What one step of one parameter works on: tensors of one shape; None where there is none.

    A neuron is along axis 0, or where `ragged` says.
    """

    weight: Tensor
    grad: Tensor
    dual: Tensor | None
    momentum: Tensor | None
    mask: Tensor | None
    ragged: Ragged | None = None

    @property
    def over(self) -> Neurons:
        """The neurons."""
        return Axes(self.weight) if self.ragged is None else self.ragged

    def each(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        """Return `change` of each tensor that is there."""
        dual, momentum, mask = (None if x is None else change(x) for x in (self.dual, self.momentum, self.mask))
        return Rows(change(self.weight), change(self.grad), dual, momentum, mask, self.ragged)


#: Momentum, whether it looks ahead, the sign of the gradient, whether denormal numbers are looked for, and whether rows of
#: the dual vector may be all 0.
Options = tuple[float, bool, float, bool, bool]
#: How one tile moves along a direction, given an exponent and a rate.
Step = Callable[[Rows, Tensor, float, Number], None]


def advance_lp(rows: Rows, options: Options, q: float, lr: Number) -> None:
    """Take a step of LpSGD, in its form "momentum" if there is a dual vector, compiled where that can be done."""
    momentum, nesterov, sign, clean, empty = options
    short = len(rows.weight) > MANY and rows.weight.numel() < SHORT * len(rows.weight) and rows.ragged is None
    tensors, crow = rows[:5], None if rows.ragged is None else rows.ragged.crow
    if isinstance(lr, float | int) and not short and sphere.serves(*tensors, crow):
        scaled = empty or not stays_long(lr, q)
        sphere.step(*tensors, sphere.Move(momentum, nesterov, sign, lr, q, scaled, clean), crow=crow)
    else:
        advance(step_direct if rows.dual is None else step_dual, rows, options, q, lr)


def advance(step: Step, rows: Rows, options: Options, exponent: float, lr: Number) -> None:
    """Take a step of one weight and its state, in place."""
    momentum, nesterov, sign, clean, empty = options
    if empty:  # for a tensor no length of the dual vector is relied on
        lr = torch.as_tensor(lr, dtype=wide_dtype(rows.weight))
    for tile in tiles(rows):
        if clean:
            flush(tile)
        step(tile, accumulate(tile, momentum, nesterov, sign), exponent, lr)


def tiles(rows: Rows) -> Iterator[Rows]:
    """Yield `rows` in pieces that fit into a CPU's cache, and whole on anything else; ragged ones are few."""
    if rows.ragged is not None:
        yield rows
        return
    if all(x is None or x.is_contiguous() for x in rows[:5]):
        rows = rows.each(lambda x: x.flatten(1))
    count = len(rows.weight)
    size = max(1, TILE * count // max(1, rows.weight.numel()))
    if size >= count or rows.weight.device.type != "cpu":
        yield rows
        return
    for start in range(0, count, size):
        yield rows.each(lambda x, start=start: x[start : start + size])


def accumulate(rows: Rows, momentum: float, nesterov: bool, sign: float) -> Tensor:
    """Move the momentum one step, and return what to descend along, wide, not to be changed."""
    grad, buffer = rows.grad, rows.momentum
    if buffer is None:
        wide = grad.to(wide_dtype(grad))
        direction = wide if sign == 1.0 else wide * sign
        return direction if rows.mask is None else direction * rows.mask
    wide = grad.to(buffer.dtype)
    torch.add(wide if sign == 1.0 else -wide, buffer, alpha=momentum, out=buffer)
    if rows.mask is not None:
        buffer.mul_(rows.mask)
    if not nesterov:
        return buffer
    direction = (buffer * momentum).add_(wide, alpha=sign)
    return direction if rows.mask is None else direction.mul_(rows.mask)


def flush(rows: Rows) -> None:
    """Set to 0 what is about to turn denormal in state that decays: the momentum and dual weights of dead inputs."""
    for x in (rows.momentum, rows.dual):
        if x is not None:
            torch.hardshrink(x, _tiny(x), out=x)


def step_dual(rows: Rows, direction: Tensor, q: float, lr: Number) -> None:
    """Take a step on the unit sphere of the dual space, equations 22 to 24, and map it to the weights, in place."""
    v, over = rows.dual, rows.over
    assert v is not None
    scratch = torch.empty_like(v)
    pull = _inverse_norm(direction, q, scratch, over)
    if isinstance(lr, float | int) and stays_long(lr, q):
        v.addcmul_(
            direction, over.spread(pull.mul_(lr / (1.0 - lr))), value=-1.0
        )  # the factor 1 - lr is normalised away
    else:
        v.mul_(1.0 - lr).addcmul_(direction, over.spread(pull.mul_(lr)), value=-1.0)
        v.mul_(over.spread(_reciprocal(over.most(torch.abs(v, out=scratch)))))
    write_weight(rows.weight, v, q, scratch, over)


def write_weight(weight: Tensor, v: Tensor, q: float, scratch: Tensor, over: Neurons) -> None:
    """Divide `v` by its L_q norm and set `weight` to v^[q - 1]; rows of zeros stay as they are."""
    _power_(torch.abs(v, out=scratch), q - 1.0)
    signed = torch.sign(v, out=weight if weight.dtype == v.dtype else None).mul_(scratch)
    total = over.inner(signed, v).clamp_(min=torch.finfo(v.dtype).tiny)
    v.mul_(over.spread(total.pow(-1.0 / q)))
    signed.mul_(over.spread(total.pow((1.0 - q) / q)))
    if signed is not weight:
        weight.copy_(signed)


def step_direct(rows: Rows, direction: Tensor, q: float, lr: Number) -> None:
    """Take a step of the weights themselves, equation 13 with the norm in L_p, in place."""
    p, over, w = q / (q - 1.0), rows.over, rows.weight
    wide = w.to(wide_dtype(w))
    size = torch.abs(direction)
    size.mul_(over.spread(_reciprocal(over.most(size))))
    scaled = size.clone()
    _power_(size, q - 1.0)
    total = over.inner(size, scaled).clamp_(min=0.5)  # at least 1, where it is not 0
    size.mul_(torch.sign(direction))
    moved = (wide * (1.0 - lr)).addcmul_(size, over.spread(total.pow_((1.0 - q) / q).mul_(lr)), value=-1.0)
    w.copy_(moved.mul_(over.spread(_inverse_norm(moved, p, size, over))))


def step_tangent(rows: Rows, direction: Tensor, p: float, lr: Number) -> None:
    """Step along what is tangent of `direction`, and go back to the sphere; the momentum becomes tangent too."""
    w, over = rows.weight, rows.over
    wide, scratch = w.to(wide_dtype(w)), torch.empty_like(direction)
    if rows.momentum is not None:
        tangent(rows.momentum, wide, p, over)
    direction = direction.clone()
    tangent(direction, wide, p, over)
    moved = wide - direction * lr
    w.copy_(moved.mul_(over.spread(_inverse_norm(moved, p, scratch, over))))


def tangent(x: Tensor, w: Tensor, p: float, over: Neurons) -> None:
    """Take off `x` what is along the sphere's normal w^[p - 1] at `w`, in place."""
    normal = torch.abs(w)
    normal.mul_(over.spread(_reciprocal(over.most(normal))))
    _power_(normal, p - 1.0).mul_(torch.sign(w))
    share = over.inner(normal, x).div_(over.inner(normal, normal).clamp_(min=0.5))
    x.addcmul_(normal, over.spread(share), value=-1.0)


def normalise_(x: Tensor, r: float, over: Neurons) -> Tensor:
    """Divide each row by its L_r norm, in place, and return `x`; rows of zeros stay."""
    wide = x.to(wide_dtype(x))
    return x.copy_(wide * over.spread(_inverse_norm(wide, r, torch.empty_like(wide), over)))


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which powers of `x`, and its state, are kept."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _inverse_norm(x: Tensor, r: float, scratch: Tensor, over: Neurons) -> Tensor:
    """Return 1 / ‖row‖_r, and 0 for rows of zeros."""
    torch.abs(x, out=scratch)
    inverse = _reciprocal(over.most(scratch))
    total = over.sum(_power_(scratch.mul_(over.spread(inverse)), r)).clamp_(min=0.5)  # at least 1, where it is not 0
    return total.pow_(-1.0 / r).mul_(inverse)


def _power_(size: Tensor, t: float) -> Tensor:
    """Raise entries in [0, 1] to t, in place; what comes out is never below 1e-30, for zeros neither."""
    # Denormal powers are as slow on a CPU as logarithms of 0: ten times the time of others.
    return size.clamp_(min=max(_tiny(size) ** (1.0 / t), _tiny(size))).log_().mul_(t / math.log(2.0)).exp2_()


def _reciprocal(most: Tensor) -> Tensor:
    """Return 1 / most, and 0 where that is no number to reckon with."""
    return torch.where(most > _tiny(most), most, torch.inf).reciprocal_()


def stays_long(lr: float, q: float) -> bool:
    """Whether v - lr / (1 - lr) · d of unit vectors is so long that its q-th powers need no scaling."""
    return lr < 0.5 and ((1.0 - 2.0 * lr) / (1.0 - lr)) ** q > TINY


def _tiny(x: Tensor) -> float:
    return TINY if x.dtype != torch.float64 else 1e-300
