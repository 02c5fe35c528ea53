"""What operators make of constants: shapes first, then layers with weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pared.surgery.constants import (
    ZERO,
    Constants,
    Known,
    each_of,
    full,
    handler,
    meets_all,
    rerun,
    rows_with_something,
)
from pared.surgery.operators import WEIGHTED
from pared.surgery.rules import squeezed
from pared.surgery.trace import Step, Value


@handler("zeros", "new_zeros", "zeros_like")
def _zeros(constants: Constants, step: Step) -> Known | None:
    return ZERO


@handler("getitem")
def _getitem(constants: Constants, step: Step) -> Known | None:
    return constants.of(step.out)


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

    return each_of(known, change)


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
        return each_of(known, lambda t: full(t, len(source.dims)).squeeze(squeezed(step)))
    return each_of(known, lambda t: rerun(step, full(t, len(source.dims))))


@handler("expand", "expand_as", "broadcast_to")
def _expand(constants: Constants, step: Step) -> Known | None:
    return each_of(constants.of(step["self"]), lambda t: full(t, len(step.out.dims)))


@handler("repeat_interleave")
def _repeat_interleave(constants: Constants, step: Step) -> Known | None:
    known, repeats = constants.of(step["self"]), step["repeats"]
    if known is None or isinstance(repeats, int) or repeats.tensor is None:
        return None
    counts = constants.tensors[repeats.tensor].cpu()
    return each_of(known, lambda t: t.repeat_interleave(counts, dim=step.get("dim") or 0))


@handler("masked_fill")
def _masked_fill(constants: Constants, step: Step) -> Known | None:
    known, where, value = constants.of(step["self"]), constants.of(step["mask"]), step["value"]
    if where is None or isinstance(value, Value):
        return None
    filled = where.mask & where.values.bool()
    if known is None:
        return Known(torch.full_like(filled, value, dtype=torch.float64), filled)
    return Known(known.values.masked_fill(filled, value), (known.mask & where.mask) | filled)


@handler("cat", "concat", "concatenate", "stack")
def _cat(constants: Constants, step: Step) -> Known | None:
    ndim = len(step.out.dims)
    axis = step["dim"] % ndim
    parts = [(constants.of(v), v) for v in step["tensors"] if v.shape != (0,)]
    values, masks = [], []
    for known, value in parts:
        blank = torch.zeros([1] * len(value.dims), dtype=torch.float64)
        known = known or Known(blank, blank.bool())
        pair = [full(known.values, len(value.dims)), full(known.mask, len(value.dims))]
        for into, tensor in zip((values, masks), pair, strict=True):
            if step.op == "stack":
                into.append(tensor.unsqueeze(axis))
                continue
            shape = list(tensor.shape)
            shape[axis] = value.shape[axis]
            into.append(tensor.expand(shape))
    shape = list(torch.broadcast_shapes(*(t.movedim(axis, 0)[:1].shape for t in (*values, *masks))))
    values, masks = ([t.movedim(axis, 0).expand(t.shape[axis], *shape[1:]) for t in side] for side in (values, masks))
    return Known(torch.cat(values).movedim(0, axis), torch.cat(masks).movedim(0, axis))


@handler("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split")
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


@handler("unbind")
def _unbind(constants: Constants, step: Step) -> list[Known | None] | None:
    known, ndim = constants.of(step["self"]), len(step["self"].dims)
    axis = step["dim"] % ndim
    if known is None:
        return None
    parts = [_part(known, axis, place, 1, ndim) for place in range(len(step.out))]
    return [each_of(part, lambda t: t.select(axis, 0)) for part in parts]


def _part(known: Known, axis: int, start: int, size: int, ndim: int) -> Known | None:
    def change(tensor: Tensor) -> Tensor:
        tensor = full(tensor, ndim)
        return tensor if tensor.shape[axis] == 1 else tensor.narrow(axis, start, size)

    return each_of(known, change)


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
    return each_of(part, lambda t: t.select(axis, 0)) if step.op == "select" else part


# --- layers ---------------------------------------------------------------------------------------------------------


@handler(*WEIGHTED, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _layer(constants: Constants, step: Step) -> Known | None:
    weight_value, x, bias_value = _parts(step)
    weight, bias = constants.weight(weight_value), constants.weight(bias_value)
    if weight is None or (bias_value is not None and (bias is None or bias.ndim != 1)):
        return None
    if "transpose" in step.op:
        weight = _upright(weight, step.out.shape[1 - weight.ndim])
    return weighted(constants, step, x, weight.t() if step.op == "addmm" else weight, bias)


def _upright(weight: Tensor, count: int) -> Tensor:
    """The weight of a transposed convolution to `count` channels as that of a plain one: (out, in / groups, ...)."""
    by_group = weight.unflatten(0, (count // weight.shape[1], -1))
    return by_group.transpose(1, 2).flatten(0, 1)


def weighted(constants: Constants, step: Step, x: Value, weight: Tensor, bias: Tensor | None) -> Known | None:
    """A unit whose weights, a row of `weight`, are zero, or meet constants only, gives a constant."""
    axis = len(step.out.dims) - (weight.ndim - 1 if step.op.startswith("conv") else 1)
    rows = constants.gone(step.out.dims[axis])
    if not len(rows):
        return None
    count = step.out.dims[axis].size
    entries, mask = constants.along(x, axis)
    if step.op.startswith("conv") and not meets_all(step, weight.shape):
        mask = mask & (entries == 0)
    lost = len(rows)
    per_group = count * weight.shape[1] // len(entries)  # of the groups there are now, which may have left one by one
    rows, weight = _still(weight, rows, mask, per_group)
    if not len(rows):
        return None
    values = torch.zeros(len(rows), dtype=torch.float64)
    entries = entries.masked_fill(~mask, 0.0)
    if bool((entries != 0).any()):
        entries = _met(entries, rows, weight.shape[1], per_group)
        values = ((weight.flatten(2).sum(-1) if weight.ndim > 2 else weight).double() * entries).sum(1)
    if bias is not None:
        values = values + bias.double().cpu()[rows]
    if len(rows) == lost and not values.any() and _only(constants, step.out, axis):
        return ZERO
    shape = [1] * len(step.out.dims)
    shape[axis] = count
    return Known(
        torch.zeros(count, dtype=torch.float64).index_copy_(0, rows, values).view(shape),
        torch.zeros(count, dtype=torch.bool).index_fill_(0, rows, True).view(shape),
    )


def _only(constants: Constants, value: Value, axis: int) -> bool:
    """Whether no other axis loses entries."""
    return not any(constants.cut.touches(dim) for dim in value.dims[:axis])


def _still(weight: Tensor, rows: Tensor, mask: Tensor, per_group: int) -> tuple[Tensor, Tensor]:
    """Those of `rows` of a weight that are zero wherever the input is no constant, and the weights of these rows."""
    some = bool(mask.any())
    if not bool(mask.all()) and len(mask) == weight.shape[1]:
        # Most rows show it in one entry: nothing else is read of them.
        alive = int(mask.int().argmin()) if some else 0
        probe = weight.select(1, alive).flatten(1)[:, 0] if weight.ndim > 2 else weight.select(1, alive)
        rows = rows[(probe.index_select(0, rows.to(weight.device)) == 0).cpu()]
    weight = weight.index_select(0, rows.to(weight.device)).cpu()
    if len(rows) and not some:
        still = ~rows_with_something(weight)
    elif len(rows):
        meets = rows_with_something(weight.flatten(0, 1)).view(weight.shape[:2]) if weight.ndim > 2 else weight != 0
        still = ~(meets & ~_met(mask, rows, weight.shape[1], per_group)).any(1)
    else:
        return rows, weight
    return rows[still], weight[still]


def _met(entries: Tensor, rows: Tensor, width: int, per_group: int) -> Tensor:
    """The input entries that each row meets, those of its own group: (rows, width)."""
    return entries.view(-1, width)[rows // per_group]


def _parts(step: Step) -> tuple[Value, Value, Value | None]:
    if step.op == "addmm":
        return step["mat2"], step["mat1"], step["self"]
    return step["weight"], step["input"], step.get("bias")


@handler("batch_norm", "instance_norm", "group_norm")
def _norm(constants: Constants, step: Step) -> Known | None:
    """What norms make of constants, in evaluation."""
    x = step["input"]
    channels = x.shape[1]
    if _silenced(constants, step):
        return ZERO
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


def _silenced(constants: Constants, step: Step) -> bool:
    """Whether the norm's own scale and shift are zero at all that is removed."""
    weight, bias = constants.weight(step.get("weight")), constants.weight(step.get("bias"))
    gone = constants.gone(step["input"].dims[1])
    if weight is None or bool(weight[gone].any()) or not _only(constants, step["input"], 1):
        return False
    return bias is None or not bool(bias[gone].any())


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
    if known is None or full(known.values, len(step["value"].dims)).shape[-2] != 1:
        return None
    return _spread(known, step) if step.get("enable_gqa", False) else known


def _spread(known: Known, step: Step) -> Known:
    few, many = step["key"].shape[-3], step["query"].shape[-3]

    def change(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape[-3] == 1 else tensor.repeat_interleave(many // few, dim=-3)

    return Known(change(known.values), change(known.mask))
