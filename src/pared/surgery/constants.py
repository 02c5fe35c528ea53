"""What dead channels still emit: the program, run over constants only.

A channel whose weights, norm scale or switch is zero may still give a constant: a bias, a norm's shift, an activation
at zero. `Constants` walks the steps that the removed entries pass through and says, for every tensor on the way, which
entries are the same number wherever else one looks, and which number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pared.surgery.axes import Cut, Dim, find
from pared.surgery.operators import FIXES_ZERO, POINTWISE, SAME, WEIGHTED
from pared.surgery.trace import Program, Step, Value


@dataclass(eq=False)
class Known:
    """Entries known to be constant: `values` float64 where `mask`, both broadcastable to the tensor's shape.

    An axis of size 1 in `values` where the tensor has more is one along which nothing varies.
    """

    values: Tensor
    mask: Tensor


#: Said of a value all of whose removed entries are zero: the usual case, told without touching a tensor.
ZERO = Known(torch.zeros(0), torch.zeros(0))

Handler = Callable[["Constants", Step], Known | list[Known | None] | None]
HANDLERS: dict[str, Handler] = {}


def handler(*names: str) -> Callable[[Handler], Handler]:
    """Register how an operator treats constants."""

    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


class Constants:
    """The constants of one removal: `of` says what is known of a value, None if nothing."""

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        cut: Cut,
        watch: Callable[["Constants", Step], None] | None = None,
    ) -> None:
        """Walk `program`; `watch` is called before each step, when all is known of what it takes."""
        self.tensors, self.cut = tensors, cut
        self.known: dict[int, Known | None] = {}
        self.pending: dict[int, Step] = {}  # layers whose weights are read only if someone asks, by what they give
        self.rows_sum_to_one: set[int] = set()
        self.views: dict[int, int] = {}
        self.places = {id(step): place for place, step in enumerate(program.steps)}
        self.history: dict[int, list[tuple[int, Known | None]]] = {}  # what was known until a step wrote into it
        self._lost: dict[Dim, tuple[Tensor, Tensor]] = {}
        with torch.no_grad():
            for step in program.steps:
                if watch is not None:
                    watch(self, step)
                self._run(step)

    def of(self, value: Any, reader: Step | None = None) -> Known | None:
        """Return what is known of `value`, all of a parameter: at the end, or when the step `reader` reads it."""
        if not isinstance(value, Value):
            return None
        if value.tensor is not None:
            whole = self.tensors[value.tensor].detach().double().cpu()
            return Known(whole, torch.ones_like(whole, dtype=torch.bool))
        known = self._version(value, reader)
        return self._written_out(value) if known is ZERO else known

    def _version(self, value: Value, reader: Step | None) -> Known | None:
        self._settle(value)
        for place, before in self.history.get(id(value), ()) if reader is not None else ():
            if reader is not None and self.places[id(reader)] <= place:
                return before
        return self.known.get(id(value))

    def along(self, value: Value, axis: int, reader: Step | None = None) -> tuple[Tensor, Tensor]:
        """Return the constant of each entry of an axis, (size,), and whether it is one: nothing else may vary."""
        if self.is_zero(value, reader) and self.cut.touches(value.dims[axis]) and self._losing(value) == 1:
            lost = self.lost(value.dims[axis])
            return torch.zeros(len(lost), dtype=torch.float64), lost
        known, size, ndim = self.of(value, reader), value.shape[axis], len(value.dims)
        if known is None:
            return torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool)
        values, mask = full(known.values, ndim), full(known.mask, ndim)
        if values.numel() == mask.numel() == size == values.shape[axis] == mask.shape[axis]:
            return values.reshape(size), mask.reshape(size)
        values, mask = (t.movedim(axis, 0).flatten(1) for t in torch.broadcast_tensors(values, mask))
        same = (values == values[:, :1]).all(1) & mask.all(1)
        return values[:, 0].expand(size), same.expand(size)

    def weight(self, value: Value | None) -> Tensor | None:
        """Return a weight as it is, if it is a parameter or made of parameters alone."""
        if value is None:
            return None
        if value.tensor is not None:
            return self.tensors[value.tensor].detach()
        known = self.of(value)
        return known.values.expand(value.shape) if known is not None and bool(known.mask.all()) else None

    def is_zero(self, value: Value, reader: Step | None = None) -> bool:
        """Tell whether all removed entries of `value` are known to be zero, at the end or when `reader` reads it."""
        return self._version(value, reader) is ZERO

    def gone(self, dim: Dim) -> Tensor:
        """Return the entries of `dim` that are to be removed, in order."""
        return self._losses(dim)[0]

    def lost(self, dim: Dim) -> Tensor:
        """Return whether each entry of `dim` is to be removed, (size,)."""
        return self._losses(dim)[1]

    def vanishes(self, value: Value) -> bool:
        """Tell whether all of `value` is known to be zero, when all entries are said to be removed."""
        if value.tensor is None and self.is_zero(value):
            return self._losing(value) > 0
        known = self.of(value)
        return known is not None and bool(known.mask.all()) and not bool(known.values.any())

    def _losses(self, dim: Dim) -> tuple[Tensor, Tensor]:
        dim = find(dim)
        if dim not in self._lost:
            lost = torch.ones(dim.size, dtype=torch.bool)
            if self.cut.touches(dim):
                lost[torch.tensor(self.cut.kept(dim), dtype=torch.long)] = False
            else:
                lost.zero_()
            self._lost[dim] = lost.nonzero().flatten(), lost
        return self._lost[dim]

    def _run(self, step: Step) -> None:
        outs = step.outs()
        self._note_rows(step, outs)
        if not any(self.cut.touches(dim) for value in outs for dim in value.dims):
            return
        if step.op in WEIGHTED:
            self.pending[id(step.out)] = step
            return
        result = ZERO if self._stays_zero(step, outs[0]) else self._handle(step)
        for value, known in zip(outs, result if isinstance(result, list) else [result] * len(outs), strict=False):
            if value.tensor is None and step.op != "getitem":
                self.known[id(value)] = known
        self._note_views(step, outs)

    def _handle(self, step: Step) -> Known | list[Known | None] | None:
        action = HANDLERS.get(step.op) or (_pointwise if step.op in POINTWISE else _first if step.op in SAME else None)
        return action(self, step) if action is not None else None

    def _settle(self, value: Value) -> None:
        step = self.pending.pop(id(value), None)
        if step is not None:
            self.known[id(value)] = self._handle(step)  # type: ignore[assignment]  # these give one result

    def _stays_zero(self, step: Step, out: Value) -> bool:
        """Tell whether the step makes zeros of zeros, entry by entry, at all that is removed of its results."""
        values = step.values()
        if step.op in FIXES_ZERO:
            return self.is_zero(values[0])
        if step.op not in ("add", "sub", "cat", "mul") or not any(self.is_zero(value) for value in values):
            return False
        losing = self._losing(out)
        zeros = [self.is_zero(value) and self._losing(value) == losing for value in values]
        if step.op == "mul":
            return any(zeros)
        numbers = step.op in ("add", "sub") and not isinstance(step["other"], Value)
        return all(zeros) and not numbers

    def _losing(self, value: Value) -> int:
        """The number of axes that lose entries."""
        return sum(self.cut.touches(dim) for dim in value.dims)

    def _written_out(self, value: Value) -> Known:
        mask = torch.zeros([1] * len(value.dims), dtype=torch.bool)
        for axis, dim in enumerate(value.dims):
            if self.cut.touches(dim):
                mask = mask | self.lost(dim).view([-1 if place == axis else 1 for place in range(len(value.dims))])
        return Known(torch.zeros_like(mask, dtype=torch.float64), mask)

    def _note_rows(self, step: Step, outs: Sequence[Value]) -> None:
        """Attention weights sum to one, so a constant value comes out as it went in."""
        if step.op == "softmax" and step["dim"] in (-1, len(step["self"].dims) - 1):
            self.rows_sum_to_one.update(id(value) for value in outs)
        elif self.rows_sum_to_one and (step.op in SAME or step.op in ("view", "reshape", "expand")):
            source = step.values()[:1]
            if source and id(source[0]) in self.rows_sum_to_one and source[0].shape[-1:] == outs[0].shape[-1:]:
                self.rows_sum_to_one.update(id(value) for value in outs)

    def _note_views(self, step: Step, outs: Sequence[Value]) -> None:
        """Writing into a tensor changes it under all its names: the whole is known, its views no more."""
        source = step.values()[0] if step.values() else None
        if source is None:
            return
        if step.inplace:
            self._write(step, source, outs[0])
        returns = getattr(getattr(step.target, "_schema", None), "returns", ())
        if any(r.alias_info is not None for r in returns):
            for value in outs:
                self.views[id(value)] = self.views.get(id(source), id(source))

    def _write(self, step: Step, source: Value, out: Value) -> None:
        base = self.views.get(id(source))
        linked = {id(source)} if base is None else {id(source), base}
        for waiting in list(self.pending.values()):  # they mean what was there before
            if any({id(value), self.views.get(id(value))} & linked for value in waiting.values()):
                self._settle(waiting.out)
        self._settle(source)
        changed = {view for view, whole in self.views.items() if whole in linked} | {id(source)}
        for value in changed if base is None else changed | {base}:
            self.history.setdefault(value, []).append((self.places[id(step)], self.known.get(value)))
            self.known[value] = None
        if base is None:
            self.known[id(source)] = self.known.get(id(out))


# --- entry by entry -------------------------------------------------------------------------------------------------


def _pointwise(constants: Constants, step: Step) -> Known | None:
    operands = {key: constants.of(value) for key, value in step.args.items() if isinstance(value, Value)}
    if step.op in ("mul", "__and__") and any(known is None for known in operands.values()):
        return _zero_times(list(operands.values()))
    if step.op == "div" and operands.get("other", Known(ZERO.values, ZERO.mask)) is None:
        return _zero_times([operands["self"]])
    if any(known is None for known in operands.values()) or any(isinstance(v, list) for v in step.args.values()):
        return None
    args = {key: known.values for key, known in operands.items() if known is not None}
    rest = {key: value for key, value in step.args.items() if key not in args and key not in ("out", "generator")}
    values = _call(step, {**rest, **args})
    if values is None:
        return None
    mask = torch.ones_like(values, dtype=torch.bool)
    for known in operands.values():
        if known is not None:
            mask = mask & known.mask
    if step.op == "mul":
        zero = torch.zeros_like(mask)
        for known in operands.values():
            if known is not None:
                zero = zero | (known.mask & (known.values == 0))
        values, mask = values.masked_fill(zero, 0.0), mask | zero
    return Known(values, mask & values.isfinite())


def _zero_times(operands: Sequence[Known | None]) -> Known | None:
    """Nought times anything is nought."""
    found = [known for known in operands if known is not None]
    if not found:
        return None
    zero = found[0].mask & (found[0].values == 0)
    return Known(torch.zeros_like(found[0].values), zero)


def _call(step: Step, args: Mapping[str, Any]) -> Tensor | None:
    """Run the operator, out of place, on float64."""
    target = step.target
    if step.inplace:
        packet = getattr(torch.ops.aten, step.op)
        target = getattr(packet, target._overloadname, None) or packet.default
    schema = target._schema
    given = {a.name: args[a.name] for a in schema.arguments if a.name in args}
    if given.get("dtype") is not None:
        given["dtype"] = torch.float64
    positional = [given.pop(a.name) for a in schema.arguments if not a.kwarg_only and a.name in given]
    try:
        result = target(*positional, **given)
    except (
        RuntimeError,
        NotImplementedError,
    ):  # not every operator has a kernel for float64; what it gives is unknown then
        return None
    return result.double()


def _first(constants: Constants, step: Step) -> Known | list[Known | None] | None:
    known = constants.of(step.values()[0])
    if step.op.endswith("_like"):
        return None
    return [known, None] if isinstance(step.shapes, list) else known


def full(tensor: Tensor, ndim: int) -> Tensor:
    """Return `tensor` with axes of size 1 put before its own, up to `ndim`."""
    return tensor.reshape((1,) * (ndim - tensor.ndim) + tuple(tensor.shape))


def each_of(known: Known | None, change: Callable[[Tensor], Tensor]) -> Known | None:
    """Return what is known after the same `change` of values and mask."""
    return None if known is None else Known(change(known.values), change(known.mask))


def rerun(step: Step, tensor: Tensor) -> Any:
    """Return what the step gives for `tensor` in the place of its first argument, all else as it is."""
    others = step.target._schema.arguments[1:]
    given = {a.name: step.args[a.name] for a in others if a.name in step.args}
    named = {a.name: given.pop(a.name) for a in others if a.kwarg_only and a.name in given}
    if named.get("dtype") is not None:
        named["dtype"] = torch.float64
    return step.target(tensor.clone() if step.inplace else tensor, *given.values(), **named)


def rows_with_something(weight: Tensor) -> Tensor:
    """Return which rows of a tensor have an entry that is not zero, (rows,)."""
    flat = weight.flatten(1)
    if not flat.shape[1]:
        return torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    return flat.abs().amax(1) != 0  # several times as fast as `(flat != 0).any(1)`


def meets_all(step: Step, kernel: Sequence[int]) -> bool:
    """Tell whether every place that a layer gives meets its whole kernel, as nothing is filled in: a constant stays one.

    `kernel` is the shape of the weight. A transposed convolution reaches its places unequally, at the edges and where its
    stride is more than 1, unless that is cut off.
    """
    padding = step.get("padding", 0)
    if isinstance(padding, str):
        return padding == "valid"
    if "transpose" not in step.op:
        return not any(each(padding, 1))
    places = len(kernel) - 2
    sides = zip(each(padding, places), each(step["dilation"], places), kernel[2:], strict=True)
    whole = all(cut >= wide * (size - 1) for cut, wide, size in sides)
    return whole and set(each(step["stride"], places)) == {1} and not any(each(step["output_padding"], places))


def each(item: Any, count: int) -> list[int]:
    """Return a number for each of `count` axes, given as one or as a list."""
    numbers = list(item) if isinstance(item, list | tuple) else [item]
    return numbers * count if len(numbers) == 1 else numbers
