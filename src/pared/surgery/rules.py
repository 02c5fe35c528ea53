"""How each operator ties the axes of what it takes to those of what it gives: shapes, copies, elementwise functions.

A rule takes the tracer and a step and returns the dims of the result, a tuple, or a list of them for several results.
Operators with weights are in `layer_rules`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pared.surgery.axes import Dim, cut, freeze, product, ragged, split, total, unify
from pared.surgery.operators import MADE, POINTWISE, SAME
from pared.surgery.trace import Step, Value

Dims = tuple[Dim, ...]


class Tracer(Protocol):
    """What a rule may ask of the one who traces."""

    def attribute(self, step: Step, name: str, dim: Dim) -> None:
        """Let the integer attribute `name` of the step's module follow the size of `dim`, if it has it now."""

    def shares(self, step: Step) -> bool:
        """Tell whether the step is a gate's own: what is killed there leaves all sums as they are."""
        ...

    def consume(self, step: Step, operand: Value, axis: int, weight: Any = None, weight_axis: int = 1) -> None:
        """Say that the step sums over `axis` of `operand`, times entries of `weight` along `weight_axis`."""


Rule = Callable[[Tracer, Step], Dims | list[Dims]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def fresh(shape: Sequence[int]) -> Dims:
    """Return new dims of a shape."""
    return tuple(Dim(size) for size in shape)


def spatial(shape: Sequence[int]) -> Dims:
    """Return new, fixed dims: places of an image or a sequence, which are no units."""
    return tuple(Dim(size, fixed="its entries are places of an image or a sequence") for size in shape)


def broadcast(values: Sequence[Dims], shape: Sequence[int]) -> Dims:
    """Unify what meets in broadcasting."""
    out: list[Dim] = []
    for place in range(-len(shape), 0):
        met = [dims[place] for dims in values if len(dims) >= -place]
        same = [dim for dim in met if dim.size == shape[place] and dim.size != 1]
        for other in same[1:]:
            unify(same[0], other)
        out.append(same[0] if same else Dim(shape[place]))
    return tuple(out)


@rule(*POINTWISE)
def _pointwise(tracer: Tracer, step: Step) -> Dims:
    return broadcast([value.dims for value in step.values()], step.shapes)


@rule(*SAME)
def _same(tracer: Tracer, step: Step) -> Dims | list[Dims]:
    dims = step.values()[0].dims
    return [dims for _ in step.shapes] if isinstance(step.shapes, list) else dims


@rule(*MADE)
def _made(tracer: Tracer, step: Step) -> Dims:
    return fresh(step.shapes)


@rule("getitem")
def _getitem(tracer: Tracer, step: Step) -> Dims:
    picked = step["0"][step["1"]]
    return picked.dims if isinstance(picked, Value) else ()


# --- shapes ---------------------------------------------------------------------------------------------------------


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "_reshape_alias")
def _reshape(tracer: Tracer, step: Step) -> Dims:
    return reshape(step.values()[0].dims, step.shapes)


def reshape(dims: Dims, shape: Sequence[int]) -> Dims:
    """Return the dims of a row-major reshape: groups of equal size on both sides are the same product."""
    out = fresh(shape)
    if 0 in shape:  # nothing is told about the order of nothing
        for dim in (*dims, *out):
            freeze(dim, "it is reshaped while it has no entries")
        return out
    left, right = [d for d in dims if d.size != 1], [d for d in out if d.size != 1]
    while left:
        a, b = [left.pop(0)], [right.pop(0)]
        sizes = [a[0].size, b[0].size]
        while sizes[0] != sizes[1]:
            side = int(sizes[1] < sizes[0])
            taken = (left, right)[side].pop(0)
            (a, b)[side].append(taken)
            sizes[side] *= taken.size
        unify(product(a), product(b))
    return out


@rule("permute", "transpose", "t", "numpy_T", "mT", "matrix_H", "adjoint", "movedim", "swapaxes", "swapdims")
def _permute(tracer: Tracer, step: Step) -> Dims:
    dims = step.values()[0].dims
    order = list(range(len(dims)))
    if step.op == "permute":
        order = [place % len(dims) for place in step["dims"]]
    elif step.op == "movedim":
        order = _moved(step, len(dims))
    elif step.op in ("transpose", "swapaxes", "swapdims"):
        one, two = (step[k] for k in (("dim0", "dim1") if "dim0" in step.args else ("axis0", "axis1")))
        order[one], order[two] = order[two], order[one]
    elif step.op == "numpy_T":
        order.reverse()
    elif len(dims) > 1:
        order[-1], order[-2] = order[-2], order[-1]
    return tuple(dims[place] for place in order)


def _moved(step: Step, ndim: int) -> list[int]:
    source, target = ([p % ndim for p in many(step[key])] for key in ("source", "destination"))
    order: list[int | None] = [None] * ndim
    for place, goal in zip(source, target, strict=True):
        order[goal] = place
    rest = iter(place for place in range(ndim) if place not in source)
    return [next(rest) if place is None else place for place in order]


def many(item: Any) -> list[int]:
    """Return an axis or several as a list."""
    return list(item) if isinstance(item, list | tuple) else [item]


@rule("squeeze")
def _squeeze(tracer: Tracer, step: Step) -> Dims:
    gone = squeezed(step)
    return tuple(dim for place, dim in enumerate(step["self"].dims) if place not in gone)


def squeezed(step: Step) -> list[int]:
    """Return the axes that a squeeze leaves out."""
    dims = step["self"].dims
    places = {place % len(dims) for place in many(step["dim"])} if step.get("dim") is not None else range(len(dims))
    return [place for place, dim in enumerate(dims) if place in places and dim.size == 1]


@rule("unsqueeze")
def _unsqueeze(tracer: Tracer, step: Step) -> Dims:
    dims = step["self"].dims
    place = step["dim"] % (len(dims) + 1)
    return (*dims[:place], Dim(1), *dims[place:])


@rule("expand", "expand_as", "broadcast_to")
def _expand(tracer: Tracer, step: Step) -> Dims:
    dims = step["self"].dims
    padded = (*(Dim(1) for _ in range(len(step.shapes) - len(dims))), *dims)
    copied = "its entries are copies of one another"
    like = step["other"].dims if step.op == "expand_as" else [Dim(size, fixed=copied) for size in step.shapes]
    return tuple(dim if dim.size == new.size else new for dim, new in zip(padded, like, strict=True))


@rule("repeat", "tile")
def _repeat(tracer: Tracer, step: Step) -> Dims:
    dims = step["self"].dims
    padded = (*(Dim(1) for _ in range(len(step.shapes) - len(dims))), *dims)
    copies = [size // dim.size for dim, size in zip(padded, step.shapes, strict=True)]
    return tuple(
        total([dim] * count) if dim.size > 1 else Dim(count) for dim, count in zip(padded, copies, strict=True)
    )


@rule("repeat_interleave")
def _repeat_interleave(tracer: Tracer, step: Step) -> Dims:
    source = step["self"]
    dims, repeats = list(source.dims), step["repeats"]
    if step.get("dim") is None and len(dims) != 1:
        return refuse(step)
    place = step.get("dim") or 0
    if isinstance(repeats, int):
        dims[place] = product([dims[place], Dim(repeats, fixed="its entries are copies of one another")])
        return tuple(dims)
    blocks = step.get("blocks")
    if blocks is None:
        return refuse(step)
    unify(dims[place], repeats.dims[0])
    dims[place] = ragged(dims[place], blocks)
    return tuple(dims)


# --- parts ----------------------------------------------------------------------------------------------------------


@rule("cat", "concat", "concatenate")
def _cat(tracer: Tracer, step: Step) -> Dims:
    values = [value.dims for value in step["tensors"] if value.shape != (0,)]
    place = step["dim"] % len(step.shapes)
    out = list(values[0])
    for dims in values[1:]:
        for here, (mine, other) in enumerate(zip(out, dims, strict=True)):
            if here != place:
                unify(mine, other)
    out[place] = total([dims[place] for dims in values])
    return tuple(out)


@rule("stack")
def _stack(tracer: Tracer, step: Step) -> Dims:
    values = [value.dims for value in step["tensors"]]
    for dims in values[1:]:
        for mine, other in zip(values[0], dims, strict=True):
            unify(mine, other)
    place = step["dim"] % len(step.shapes)
    return (*values[0][:place], Dim(len(values)), *values[0][place:])


@rule("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split")
def _split(tracer: Tracer, step: Step) -> list[Dims]:
    dims = step["self"].dims
    place = step["dim"] % len(dims)
    pieces, rest = [], dims[place]
    for shape in step.shapes[:-1]:
        piece, rest = take(rest, shape[place])
        pieces.append(piece)
    return [(*dims[:place], piece, *dims[place + 1 :]) for piece in (*pieces, rest)]


def take(dim: Dim, count: int) -> tuple[Dim, Dim]:
    """Cut `count` entries off the front of `dim`; none or all are allowed."""
    if count == 0:
        return Dim(0), dim
    if count == dim.size:
        return dim, Dim(0)
    return cut(dim, count)


@rule("slice", "narrow", "select")
def _slice(tracer: Tracer, step: Step) -> Dims:
    dims = step["self"].dims
    place = step["dim"] % len(dims)
    size = dims[place].size
    if step.op == "select":
        start, stop, stride = step["index"] % size, step["index"] % size + 1, 1
    elif step.op == "narrow":
        start, stop, stride = step["start"], step["start"] + step["length"], 1
    else:
        start, stop = _bound(step["start"], 0, size), _bound(step["end"], size, size)
        stride = step["step"]
    if stride == 1:
        head, kept = take(take(dims[place], stop)[0], start)
        step.put("head", head)
    else:
        kept = _every(dims[place], start, stop, stride)
    return (*dims[:place], *(() if step.op == "select" else (kept,)), *dims[place + 1 :])


def _bound(value: int | None, default: int, size: int) -> int:
    if value is None:
        return default
    return max(0, value + size) if value < 0 else min(value, size)


def _every(dim: Dim, start: int, stop: int, stride: int) -> Dim:
    """Every `stride`-th entry: the outer factor, if the size divides and the whole axis is walked."""
    count = len(range(start, stop, stride))
    halves = split(dim, dim.size // stride) if start < stride and stop == dim.size and dim.size % stride == 0 else None
    if halves is None:
        freeze(dim, "every so many of its entries are taken")
        return Dim(count, fixed="every so many of its entries are taken")
    freeze(halves[1], "its entries are told apart by their place")
    return halves[0]


@rule("unbind")
def _unbind(tracer: Tracer, step: Step) -> list[Dims]:
    dims = step["self"].dims
    place = step["dim"] % len(dims)
    rest = dims[place]
    for _ in step.shapes[:-1]:
        _, rest = take(rest, 1)
    return [(*dims[:place], *dims[place + 1 :]) for _ in step.shapes]


@rule("glu")
def _glu(tracer: Tracer, step: Step) -> Dims:
    dims = list(step["self"].dims)
    first, second = cut(dims[step["dim"]], dims[step["dim"]].size // 2)
    unify(first, second)
    dims[step["dim"]] = first
    return tuple(dims)


@rule("index_select")
def _index_select(tracer: Tracer, step: Step) -> Dims:
    dims = list(step["self"].dims)
    freeze(dims[step["dim"]], f"{step.where()} picks its entries by number")
    dims[step["dim"]] = step["index"].dims[0]
    return tuple(dims)


@rule("index")
def _index(tracer: Tracer, step: Step) -> Dims:
    dims, indices = step["self"].dims, step["indices"]
    places = [place for place, index in enumerate(indices) if index is not None]
    for place in places:
        freeze(dims[place], f"{step.where()} picks its entries by number")
    if places != list(range(places[0], places[-1] + 1)):
        return refuse(step)
    rest = len(dims) - len(places)
    inner = broadcast([indices[p].dims for p in places], step.shapes[places[0] :][: len(step.shapes) - rest])
    return (*dims[: places[0]], *inner, *dims[places[-1] + 1 :])


@rule("embedding")
def _embedding(tracer: Tracer, step: Step) -> Dims:
    rows, columns = step["weight"].dims
    freeze(rows, f"{step.where()} picks its entries by number")
    tracer.attribute(step, "embedding_dim", columns)
    return (*step["indices"].dims, columns)


@rule("flip", "roll")
def _roll(tracer: Tracer, step: Step) -> Dims:
    dims = step["self"].dims
    for place in step["dims"] or range(len(dims)):
        freeze(dims[place], f"{step.where()} moves its entries")
    return dims


def refuse(step: Step) -> Any:
    """Freeze all that the step touches: it is not understood."""
    reason = f"{step.where()} uses {step.op!r}, which is not understood"
    for value in step.values():
        for dim in value.dims:
            freeze(dim, reason)
    if isinstance(step.shapes, list):
        return [tuple(Dim(s, fixed=reason) for s in shape) if shape is not None else () for shape in step.shapes]
    return tuple(Dim(size, fixed=reason) for size in step.shapes or ())
