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

from pared.surgery.axes import Dim, leaves, positions
from pared.surgery.rules import MADE, POINTWISE, SAME, squeezed
from pared.surgery.trace import Program, Step, Value, flat


@dataclass(eq=False)
class Known:
    """Entries known to be constant: `values` float64 where `mask`, both broadcastable to the tensor's shape.

    An axis of size 1 in `values` where the tensor has more is one along which nothing varies.
    """

    values: Tensor
    mask: Tensor


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

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], keep: Mapping[Dim, Sequence[int]]) -> None:
        self.tensors, self.keep = tensors, keep
        self.known: dict[int, Known | None] = {}
        self.rows_sum_to_one: set[int] = set()
        self.views: dict[int, int] = {}
        self.made: set[int] = set()  # values made of parameters and numbers alone
        with torch.no_grad():
            for step in program.steps:
                self._run(step)

    def of(self, value: Any) -> Known | None:
        """Return what is known of `value`: all of a parameter, or what the steps before have told."""
        if not isinstance(value, Value):
            return None
        if value.tensor is not None:
            whole = self.tensors[value.tensor].detach().double().cpu()
            return Known(whole, torch.ones_like(whole, dtype=torch.bool))
        return self.known.get(id(value))

    def along(self, value: Value, axis: int) -> tuple[Tensor, Tensor]:
        """Return the constant of each entry of an axis, (size,), and whether it is one: nothing else may vary."""
        known, size, ndim = self.of(value), value.shape[axis], len(value.dims)
        if known is None:
            return _nothing(size)
        values, mask = torch.broadcast_tensors(_full(known.values, ndim), _full(known.mask, ndim))
        values, mask = (tensor.movedim(axis, 0).flatten(1) for tensor in (values, mask))
        same = (values == values[:, :1]).all(1) & mask.all(1)
        return values[:, 0].expand(size), same.expand(size)

    def weight(self, value: Value | None) -> Tensor | None:
        """Return a weight as it is, if it is a parameter or made of parameters alone."""
        if value is None:
            return None
        if value.tensor is not None:
            return self.tensors[value.tensor].detach()
        known = self.known.get(id(value))
        return known.values.expand(value.shape) if known is not None and bool(known.mask.all()) else None

    def gone(self, dim: Dim) -> list[int]:
        """Return the entries of `dim` that are to be removed."""
        kept = set(positions(dim, self.keep))
        return [entry for entry in range(dim.size) if entry not in kept]

    def concerns(self, value: Value) -> bool:
        """Tell whether a removed entry passes through `value`."""
        return any(leaf in self.keep for dim in value.dims for leaf in leaves(dim))

    def _run(self, step: Step) -> None:
        outs = list(flat([step.out]))
        of_parameters = (
            bool(outs) and all(v.tensor or id(v) in self.made for v in step.values()) and step.op not in MADE
        )
        if of_parameters:
            self.made.update(id(value) for value in outs)
        self._note_rows(step, outs)
        if not any(self.concerns(value) for value in outs):
            return
        action = HANDLERS.get(step.op) or (_pointwise if step.op in POINTWISE else _first if step.op in SAME else None)
        result = action(self, step) if action is not None else None
        for value, known in zip(outs, result if isinstance(result, list) else [result] * len(outs), strict=False):
            if value.tensor is None and step.op != "getitem":
                self.known[id(value)] = known
        self._note_views(step, outs)

    def _note_rows(self, step: Step, outs: Sequence[Value]) -> None:
        """Attention weights sum to one, so a constant value comes out as it went in."""
        if step.op == "softmax" and step["dim"] in (-1, len(step["self"].dims) - 1):
            self.rows_sum_to_one.update(id(value) for value in outs)
        elif step.op in SAME or step.op in ("view", "reshape", "expand"):
            source = step.values()[:1]
            if source and id(source[0]) in self.rows_sum_to_one and source[0].shape[-1:] == outs[0].shape[-1:]:
                self.rows_sum_to_one.update(id(value) for value in outs)

    def _note_views(self, step: Step, outs: Sequence[Value]) -> None:
        """Writing into a tensor changes it under all its names: the whole is known, its views no more."""
        source = step.values()[0] if step.values() else None
        if source is None:
            return
        if step.inplace:
            linked = {id(source)} | {self.views.get(id(source), -1)}
            base = self.views.get(id(source))
            for view, whole in self.views.items():
                if whole in linked:
                    self.known[view] = None
            if base is not None:
                self.known[base] = None
            self.known[id(source)] = self.known.get(id(outs[0])) if base is None else None
        returns = getattr(getattr(step.target, "_schema", None), "returns", ())
        if any(r.alias_info is not None for r in returns):
            for value in outs:
                self.views[id(value)] = self.views.get(id(source), id(source))


# --- entry by entry -------------------------------------------------------------------------------------------------


def _pointwise(constants: Constants, step: Step) -> Known | None:
    operands = {key: constants.of(value) for key, value in step.args.items() if isinstance(value, Value)}
    if step.op in ("mul", "__and__") and any(known is None for known in operands.values()):
        return _zero_times(list(operands.values()))
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
    except (RuntimeError, NotImplementedError):
        return None
    return result.double()


def _first(constants: Constants, step: Step) -> Known | list[Known | None] | None:
    known = constants.of(step.values()[0])
    if step.op.endswith("_like"):
        return None
    return [known, None] if isinstance(step.shapes, list) else known


# --- shapes ---------------------------------------------------------------------------------------------------------


@handler("getitem")
def _getitem(constants: Constants, step: Step) -> Known | None:
    return constants.of(step.out)


def _each(known: Known | None, change: Callable[[Tensor], Tensor]) -> Known | None:
    return None if known is None else Known(change(known.values), change(known.mask))


@handler("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as")
def _reshape(constants: Constants, step: Step) -> Known | None:
    source = step.values()[0]
    known = constants.of(source)
    if known is None:
        return None
    shape, wanted = source.shape, step.out.shape
    groups = _groups(shape, wanted)

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.reshape((1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape))
        full, result = [], []
        for left, right in groups:
            varies = any(tensor.shape[axis] != 1 for axis in left)
            full += [shape[axis] if varies else 1 for axis in left]
            result += [wanted[axis] if varies else 1 for axis in right]
        return tensor.expand(full).reshape(result)

    return _each(known, change)


def _groups(shape: Sequence[int], wanted: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Match the axes of a row-major reshape, as groups of equal size on both sides, all axes in order."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(shape) or j < len(wanted):
        left, right, a, b = [], [], 1, 1
        if i < len(shape):
            left, a, i = [i], shape[i], i + 1
        if j < len(wanted):
            right, b, j = [j], wanted[j], j + 1
        while a != b:
            if a < b and i < len(shape):
                left, a, i = [*left, i], a * shape[i], i + 1
            else:
                right, b, j = [*right, j], b * wanted[j], j + 1
        groups.append((left, right))
    return groups


@handler("permute", "transpose", "t", "numpy_T", "mT", "movedim", "swapaxes", "unsqueeze", "squeeze")
def _permute(constants: Constants, step: Step) -> Known | None:
    source = step.values()[0]
    known = constants.of(source)
    if known is None:
        return None
    if step.op == "squeeze":
        return _each(known, lambda t: _full(t, len(source.dims)).squeeze(squeezed(step)))
    return _each(known, lambda t: _rerun(step, _full(t, len(source.dims))))


def _nothing(size: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool)


def _full(tensor: Tensor, ndim: int) -> Tensor:
    return tensor.reshape((1,) * (ndim - tensor.ndim) + tuple(tensor.shape))


def _rerun(step: Step, tensor: Tensor) -> Tensor:
    names = [a.name for a in step.target._schema.arguments]
    return step.target(tensor, *(step.args[name] for name in names[1:]))


@handler("expand", "expand_as", "broadcast_to")
def _expand(constants: Constants, step: Step) -> Known | None:
    return _each(constants.of(step["self"]), lambda t: _full(t, len(step.out.dims)))


@handler("repeat_interleave")
def _repeat_interleave(constants: Constants, step: Step) -> Known | None:
    known, repeats = constants.of(step["self"]), step["repeats"]
    if known is None or isinstance(repeats, int) or repeats.tensor is None:
        return None
    counts = constants.tensors[repeats.tensor].cpu()
    return _each(known, lambda t: t.repeat_interleave(counts, dim=step.get("dim") or 0))


@handler("cat", "concat", "concatenate")
def _cat(constants: Constants, step: Step) -> Known | None:
    axis = step["dim"] % len(step.out.dims)
    parts = [(constants.of(v), v) for v in step["tensors"] if v.shape != (0,)]
    ndim = len(step.out.dims)
    values, masks = [], []
    for known, value in parts:
        blank = torch.zeros([1] * ndim, dtype=torch.float64)
        known = known or Known(blank, blank.bool())
        pair = [_full(known.values, ndim), _full(known.mask, ndim)]
        for into, tensor in zip((values, masks), pair, strict=True):
            shape = list(tensor.shape)
            shape[axis] = value.shape[axis]
            into.append(tensor.expand(shape))
    shape = list(torch.broadcast_shapes(*(t.movedim(axis, 0)[:1].shape for t in values)))
    values, masks = ([t.movedim(axis, 0).expand(t.shape[axis], *shape[1:]) for t in side] for side in (values, masks))
    return Known(torch.cat(values).movedim(0, axis), torch.cat(masks).movedim(0, axis))


@handler("split", "split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def _split(constants: Constants, step: Step) -> list[Known | None] | None:
    known, axis = constants.of(step["self"]), step["dim"] % len(step["self"].dims)
    if known is None:
        return None
    start, parts = 0, []
    for value in step.out:
        size = value.shape[axis]
        parts.append(_part(known, axis, start, size, len(step["self"].dims)))
        start += size
    return parts


def _part(known: Known, axis: int, start: int, size: int, ndim: int) -> Known | None:
    def change(tensor: Tensor) -> Tensor:
        tensor = _full(tensor, ndim)
        return tensor if tensor.shape[axis] == 1 else tensor.narrow(axis, start, size)

    return _each(known, change)


@handler("slice", "narrow", "select", "glu")
def _slice(constants: Constants, step: Step) -> Known | None:
    source = step["self"]
    known, ndim = constants.of(source), len(source.dims)
    axis = step["dim"] % ndim
    if known is None:
        return None
    if step.op == "glu":
        half = source.shape[axis] // 2
        left, right = (_part(known, axis, start, half, ndim) for start in (0, half))
        assert left is not None
        assert right is not None
        return Known(left.values * right.values.sigmoid(), left.mask & (right.mask | (left.values == 0)))
    if "head" not in step.args:  # every so many entries
        return None
    size = 1 if step.op == "select" else step.out.shape[axis]
    part = _part(known, axis, step["head"].size, size, ndim)
    return _each(part, lambda t: t.select(axis, 0)) if step.op == "select" else part


@handler("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_avg_pool1d")
@handler(
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest1d", "upsample_nearest2d"
)
@handler(
    "upsample_nearest3d", "upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d", "max_pool2d_with_indices"
)
def _pool(constants: Constants, step: Step) -> Known | None:
    source = step.values()[0]
    known = constants.of(source)
    if known is None:
        return None
    places = next(int(c) for c in reversed(step.op) if c.isdigit())
    if any(size != 1 for size in _full(known.values, len(source.dims)).shape[-places:]):
        return None
    if step.op.startswith("avg") and _padded(step) and step.get("count_include_pad", True):
        return Known(known.values, known.mask & (known.values == 0))
    return known


def _padded(step: Step) -> bool:
    padding = step.get("padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


@handler("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(constants: Constants, step: Step) -> Known | None:
    known = constants.of(step["self"])
    if known is None:
        return None
    if step.op not in ("pad", "constant_pad_nd") or step.get("mode", "constant") != "constant":
        return known
    filler = step.get("value") or 0.0
    return Known(known.values, known.mask & (known.values == filler))


@handler("mean", "amax", "amin")
def _mean(constants: Constants, step: Step) -> Known | None:
    known, source = constants.of(step["self"]), step["self"]
    if known is None or step.get("dim") is None:
        return None
    ndim = len(source.dims)
    axes = sorted({axis % ndim for axis in step["dim"]})
    if any(_full(known.values, ndim).shape[axis] != 1 for axis in axes):
        return None
    if step.get("keepdim", False):
        return known
    return _each(known, lambda t: _full(t, ndim).squeeze(axes))


# --- layers ---------------------------------------------------------------------------------------------------------


@handler("linear", "conv1d", "conv2d", "conv3d", "addmm")
def _linear(constants: Constants, step: Step) -> Known | None:
    """A unit whose weights are zero, or meet constants only, gives a constant."""
    weight_value, x, bias_value = _parts(step)
    weight = constants.weight(weight_value)
    if weight is None:
        return None
    weight = weight.t() if step.op == "addmm" else weight
    known, groups = constants.of(x) if x.tensor is None else None, step.get("groups", 1)
    axis = 1 if step.op.startswith("conv") else -1
    rows = torch.tensor(constants.gone(step.out.dims[axis]), dtype=torch.long)
    if not len(rows):
        return None
    count, weight = weight.shape[0], weight[rows.to(weight.device)].cpu()
    values = torch.zeros(len(rows), dtype=torch.float64)
    if known is None:
        still = ~_any(weight)
    else:
        entries, mask = constants.along(x, axis)
        mask = mask & (entries == 0) if _padded(step) else mask
        entries = entries.masked_fill(~mask, 0.0)
        if groups > 1:  # each row meets the entries of its own group
            group = rows // (count // (x.shape[1] // weight.shape[1]))
            entries, mask = (t.view(-1, weight.shape[1])[group] for t in (entries, mask))
            still = ~((weight != 0).flatten(2).any(2) & ~mask).any(1)
        else:
            still = ~_any(weight[:, ~mask]) if not bool(mask.all()) else torch.ones_like(rows, dtype=torch.bool)
        if bool((entries != 0).any()):
            spread = weight.flatten(2).sum(-1) if weight.ndim > 2 else weight
            values = (spread.double() * entries).sum(1)
    if bias_value is not None:
        bias = constants.weight(bias_value)
        if bias is None or bias.ndim != 1:
            return None
        values = values + bias.double().cpu()[rows]
    shape = [1] * len(step.out.dims)
    shape[axis] = count
    return Known(
        values.new_zeros(count).index_copy(0, rows, values).view(shape),
        still.new_zeros(count).index_copy(0, rows, still).view(shape),
    )


def _any(weight: Tensor) -> Tensor:
    """Which rows have an entry that is not zero; most rows show it in their first entry."""
    flat_ = weight.flatten(1)
    if not flat_.shape[1]:
        return torch.zeros(weight.shape[0], dtype=torch.bool, device=weight.device)
    found = flat_[:, 0] != 0
    unsure = (~found).nonzero().flatten()
    if len(unsure):
        found[unsure] = (flat_[unsure] != 0).any(1)
    return found


def _parts(step: Step) -> tuple[Value, Value, Value | None]:
    if step.op == "addmm":
        return step["mat2"], step["mat1"], step["self"]
    return step["weight"], step["input"], step.get("bias")


@handler("batch_norm", "instance_norm", "group_norm")
def _norm(constants: Constants, step: Step) -> Known | None:
    """What norms make of constants, in evaluation."""
    x = step["input"]
    channels = x.shape[1]
    weight, bias, mean, var = (
        None if tensor is None else tensor.cpu()
        for tensor in map(constants.weight, map(step.get, ("weight", "bias", "running_mean", "running_var")))
    )
    values, mask = constants.along(x, 1)
    if mean is not None and var is not None:
        values = (values - mean.double()) / (var.double() + step["eps"]).sqrt()
    elif step.op == "instance_norm":
        values = torch.zeros_like(values)
    elif step.op == "group_norm":
        by_group = values.view(step["group"].size, -1)
        alike = (by_group == by_group[:, :1]) & mask.view_as(by_group)
        mask = alike.all(1, keepdim=True).expand_as(by_group).flatten()
        values = torch.zeros_like(values)
    else:
        return None  # batch statistics: the constant depends on the batch
    if weight is not None:
        mask = mask | (weight == 0)
        values = torch.where(weight == 0, 0.0, values * weight.double())
    values = values + bias.double() if bias is not None else values
    shape = [1, channels, *([1] * (len(x.dims) - 2))]
    return Known(values.view(shape), mask.view(shape))


@handler("prelu")
def _prelu(constants: Constants, step: Step) -> Known | None:
    known, weight = constants.of(step["self"]), constants.weight(step["weight"])
    if known is None or weight is None:
        return None
    weight = weight.cpu()
    shape = [1, -1, *([1] * (len(step.out.dims) - 2))] if len(step.out.dims) > 1 else [-1]
    slope = weight.double().view(shape)
    values = torch.where(known.values < 0, known.values * slope, known.values)
    return Known(values, known.mask.expand_as(values))


@handler("embedding")
def _embedding(constants: Constants, step: Step) -> Known | None:
    weight = constants.weight(step["weight"])
    if weight is None:
        return None
    weight = weight.cpu()
    same = (weight == weight[:1]).all(0)
    shape = [*([1] * (len(step.out.dims) - 1)), -1]
    return Known(weight[0].double().view(shape), same.view(shape))


@handler("scaled_dot_product_attention")
def _attention(constants: Constants, step: Step) -> Known | None:
    """Attention weights sum to one: a value that is the same at every place comes out as it is."""
    known = constants.of(step["value"])
    if known is None or _full(known.values, len(step["value"].dims)).shape[-2] != 1:
        return None
    return _spread(known, step) if step.get("enable_gqa", False) else known


def _spread(known: Known, step: Step) -> Known:
    few, many = step["key"].shape[-3], step["query"].shape[-3]

    def change(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape[-3] == 1 else tensor.repeat_interleave(many // few, dim=-3)

    return Known(change(known.values), change(known.mask))


@handler("matmul", "bmm")
def _matmul(constants: Constants, step: Step) -> Known | None:
    other = step.get("other", step.get("mat2"))
    known = constants.of(other)
    if known is None or id(step["self"]) not in constants.rows_sum_to_one:
        return None
    return known if _full(known.values, len(other.dims)).shape[-2] == 1 else None


@handler("lstm", "gru")
def _recurrent(constants: Constants, step: Step) -> list[Known | None] | None:
    """A unit whose candidate has zero weights and biases stays at zero, if it starts there."""
    if step["num_layers"] > 1:
        return None
    place, gates = (2, 4) if step.op == "lstm" else (2, 3)
    ways = 2 if step["bidirectional"] else 1
    per_cell = len(step["params"]) // ways
    still = []
    for way in range(ways):
        weights = [constants.weight(v) for v in step["params"][way * per_cell : (way + 1) * per_cell]]
        rows = [w.cpu().unflatten(0, (gates, -1))[place] for w in weights if w is not None]
        still.append(~torch.stack([_any(row.unsqueeze(1) if row.ndim == 1 else row) for row in rows]).any(0))
    mask = torch.cat(still)
    shape = [1, 1, -1]
    known = Known(torch.zeros(len(mask), dtype=torch.float64).view(shape), mask.view(shape))
    state = Known(torch.zeros(ways, 1, len(still[0]), dtype=torch.float64), torch.stack(still).unsqueeze(1))
    return [known, state, state]
