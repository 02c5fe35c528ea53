"""How operators with weights tie axes: linear maps, convolutions, norms, attention, recurrent layers."""

from string import ascii_letters
from typing import Any

from pared.surgery.axes import Dim, freeze, leaves, product, total, unify
from pared.surgery.recurrent import GATES, Cell, cells, ways
from pared.surgery.rules import Dims, Tracer, broadcast, fresh, refuse, rule, spatial
from pared.surgery.trace import Step, Value


@rule("linear")
def _linear(tracer: Tracer, step: Step) -> Dims:
    x, weight, bias = step["input"], step["weight"], step.get("bias")
    rows, columns = weight.dims
    unify(columns, x.dims[-1])
    _bias(bias, rows)
    tracer.attribute(step, "in_features", columns)
    tracer.attribute(step, "out_features", rows)
    tracer.consume(step, x, -1, weight, 1)
    return (*x.dims[:-1], rows)


def _bias(bias: Value | None, dim: Dim) -> None:
    if bias is not None:
        unify(bias.dims[0], dim)


@rule("addmm")
def _addmm(tracer: Tracer, step: Step) -> Dims:
    (rows, inner), (other, columns) = step["mat1"].dims, step["mat2"].dims
    unify(other, inner)
    tracer.attribute(step, "nx", inner)
    tracer.attribute(step, "nf", columns)
    tracer.consume(step, step["mat1"], -1, step["mat2"], 0)
    return broadcast([step["self"].dims, (rows, columns)], step.shapes)


@rule("conv1d", "conv2d", "conv3d", "convolution")
def _conv(tracer: Tracer, step: Step) -> Any:
    if step.get("transposed", False):
        return refuse(step)
    x, weight = step["input"], step["weight"]
    rows, columns = weight.dims[:2]
    out = _grouped(tracer, step, rows, columns, incoming=columns, outgoing=rows)
    tracer.consume(step, x, -len(weight.dims) + 1, weight, 1)
    return _image(step, x, weight, out)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(tracer: Tracer, step: Step) -> Dims:
    x, weight = step["input"], step["weight"]
    rows, columns = weight.dims[:2]
    out = _grouped(tracer, step, rows, columns, incoming=rows, outgoing=columns)
    tracer.consume(step, x, -len(weight.dims) + 1, weight, 0)
    return _image(step, x, weight, out)


def _grouped(tracer: Tracer, step: Step, rows: Dim, columns: Dim, *, incoming: Dim, outgoing: Dim) -> Dim:
    """Tie the channels, and return those that come out.

    Of a plain convolution the weight is (out, in / groups, ...), of a transposed one (in, out / groups, ...): the
    first axis runs over groups and what is within them, the second over what is within the group on the other side.
    Removing within a group removes the same place in every group; removing a group, all of it on both sides.
    """
    x, weight, groups = step["input"], step["weight"], step["groups"]
    channels = x.dims[-len(weight.dims) + 1]
    if groups == 1:
        unify(incoming, channels)
        out = outgoing
    else:
        group = Dim(groups)
        within = Dim(rows.size // groups)
        unify(product([group, within]), rows)
        first = incoming if incoming is columns else within
        unify(product([group, first]), channels)
        out = rows if outgoing is rows else product([group, columns])
        tracer.attribute(step, "groups", group)
    _bias(step.get("bias"), out)
    tracer.attribute(step, "in_channels", channels)
    tracer.attribute(step, "out_channels", out)
    return out


def _image(step: Step, x: Value, weight: Value, out: Dim) -> Dims:
    places = len(weight.dims) - 2
    for dim in (*weight.dims[2:], *x.dims[-places:]):
        freeze(dim, "its entries are places of an image or a sequence")
    return (*x.dims[: -places - 1], out, *spatial(step.shapes[-places:]))


# --- norms ----------------------------------------------------------------------------------------------------------


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(tracer: Tracer, step: Step) -> Dims:
    dims = step["input"].dims
    for name in ("weight", "bias", "running_mean", "running_var"):
        _bias(step.get(name), dims[1])
    tracer.attribute(step, "num_features", dims[1])
    return dims


@rule("group_norm")
def _group_norm(tracer: Tracer, step: Step) -> Dims:
    dims, groups = step["input"].dims, step["num_groups"]
    group, within = Dim(groups), Dim(dims[1].size // groups)
    unify(product([group, within]), dims[1])
    freeze(within, f"{step.where()} divides by how many channels a group has")
    for name in ("weight", "bias"):
        _bias(step.get(name), dims[1])
    step.put("group", group)
    tracer.attribute(step, "num_groups", group)
    tracer.attribute(step, "num_channels", dims[1])
    return dims


@rule("layer_norm", "rms_norm")
def _layer_norm(tracer: Tracer, step: Step) -> Dims:
    dims = step["input"].dims
    count = len(step["normalized_shape"])
    for dim in dims[-count:]:
        freeze(dim, f"{step.where()} divides by how many entries it has")
    for name in ("weight", "bias"):
        value = step.get(name)
        for mine, other in zip(value.dims if value is not None else (), dims[-count:], strict=False):
            unify(mine, other)
    return dims


@rule("prelu")
def _prelu(tracer: Tracer, step: Step) -> Dims:
    dims, weight = step["self"].dims, step["weight"]
    if weight.shape[0] > 1:
        unify(weight.dims[0], dims[1])
        tracer.attribute(step, "num_parameters", dims[1])
    return dims


# --- products -------------------------------------------------------------------------------------------------------


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner")
def _matmul(tracer: Tracer, step: Step) -> Dims:
    one, two = step["self"], step.get("other", step.get("mat2", step.get("vec", step.get("tensor"))))
    axis = -1 if len(two.dims) == 1 or step.op == "inner" else -2
    unify(one.dims[-1], two.dims[axis])
    _sum(tracer, step, [(one, -1), (two, axis)])
    if step.op == "inner":
        return (*one.dims[:-1], *two.dims[:-1])
    tail = (*one.dims[-2:-1], *(two.dims[-1:] if len(two.dims) > 1 else ()))
    head = broadcast([one.dims[:-2], two.dims[:-2]], step.shapes[: len(step.shapes) - len(tail)])
    return (*head, *tail)


def _sum(tracer: Tracer, step: Step, factors: list[tuple[Value, int]]) -> None:
    """Say that the step sums up products of entries of these factors, each along an axis.

    It is enough that one factor is zero. A parameter is no one's unit beside what it multiplies.
    """
    moving = [factor for factor in factors if factor[0].tensor is None] or factors
    for value, axis in moving:
        others = [factor for factor in factors if factor[0] is not value or factor[1] != axis]
        others.sort(key=lambda factor: factor[0].tensor is None)
        weight, weight_axis = others[0] if others else (None, 0)
        tracer.consume(step, value, axis, weight, weight_axis)


@rule("einsum")
def _einsum(tracer: Tracer, step: Step) -> Dims:
    letters = letters_of(step)
    if letters is None:
        return refuse(step)
    given, wanted = letters
    met: dict[str, Dim] = {}
    where: dict[str, list[tuple[Value, int]]] = {}
    for names, value in zip(given, step["tensors"], strict=True):
        for place, (letter, dim) in enumerate(zip(names, value.dims, strict=True)):
            if dim.size != 1:
                unify(met.setdefault(letter, dim), dim)
                where.setdefault(letter, []).append((value, place))
    for letter, factors in where.items():
        if letter not in wanted:
            _sum(tracer, step, factors)
    return tuple(met.get(letter) or Dim(1) for letter in wanted)


def letters_of(step: Step) -> tuple[list[str], str] | None:
    """Return a letter for each axis of each operand of an `einsum`, and those of its result; axes under "..." have their own.

    None where an operand has a letter twice.
    """
    equation, operands = step["equation"].replace(" ", ""), step["tensors"]
    terms, arrow, wanted = equation.partition("->")
    free = [letter for letter in ascii_letters if letter not in equation]
    counts = [
        len(value.dims) - len(term.replace("...", "")) for term, value in zip(terms.split(","), operands, strict=True)
    ]
    dots = "".join(free[: max(counts, default=0)])
    given = [
        term.replace("...", dots[len(dots) - count :]) for term, count in zip(terms.split(","), counts, strict=True)
    ]
    if any(len(set(term)) < len(term) for term in given):
        return None
    if not arrow:
        once = sorted(letter for letter in set(terms) - set(".,") if terms.count(letter) == 1)
        wanted = "..." * ("..." in terms) + "".join(once)
    return given, wanted.replace("...", dots)


@rule("baddbmm")
def _baddbmm(tracer: Tracer, step: Step) -> Dims:
    one, two = step["batch1"], step["batch2"]
    unify(one.dims[2], two.dims[1])
    _sum(tracer, step, [(one, 2), (two, 1)])
    batch = broadcast([one.dims[:1], two.dims[:1]], step.shapes[:1])
    return broadcast([step["self"].dims, (*batch, one.dims[1], two.dims[2])], step.shapes)


@rule("scaled_dot_product_attention")
def _attention(tracer: Tracer, step: Step) -> Dims:
    query, key, value, mask = step["query"], step["key"], step["value"], step.get("attn_mask")
    unify(query.dims[-1], key.dims[-1])
    unify(key.dims[-2], value.dims[-2])
    for dim in (query.dims[-2], key.dims[-2]):
        freeze(dim, "its entries are places of an image or a sequence")
    if step.get("scale") is None:
        freeze(query.dims[-1], f"{step.where()} divides by the root of how many entries it has")
    heads = [value.dims[:-2], key.dims[:-2], query.dims[:-2]]
    if step.get("enable_gqa", False) and query.dims[-3].size != key.dims[-3].size:
        many, few = query.dims[-3], key.dims[-3]
        unify(few, value.dims[-3])
        unify(product([few, Dim(many.size // few.size, fixed="its heads share keys and values")]), many)
        heads = [query.dims[:-2]]
    batch = broadcast(heads, step.shapes[:-2])
    for leaf in leaves(batch[-1]) if len(batch) > 1 else ():
        leaf.label = leaf.label or "heads"
    if mask is not None:
        broadcast([mask.dims[:-2], batch], step.shapes[:-2])
    tracer.consume(step, query, -1, key, -1)
    tracer.consume(step, key, -1, query, -1)
    return (*batch, query.dims[-2], value.dims[-1])


# --- recurrent layers -----------------------------------------------------------------------------------------------


@rule(*GATES)
def _recurrent(tracer: Tracer, step: Step) -> Dims | list[Dims]:
    """Tie a unit's gates, its history and the next layer: weights are (gates x hidden, in), gates slowest."""
    held = cells(step)
    if held is None or len(step["input"].dims) != 3:
        return refuse(step)  # packed sequences
    x, states = step["input"], step["hx"]
    states = list(states) if isinstance(states, list) else [states]
    # The layers of one module share `hidden_size` (and `proj_size`), so their units die at the same places.
    hidden, out, incoming = Dim(held[0].history.shape[0] // GATES[step.op][0]), held[0].out, x.dims[-1]
    if held[0].projection is None:
        unify(hidden, out)
    for place, cell in enumerate(held):
        _cell(step, cell, incoming, hidden, out)
        if place < ways(step):
            tracer.consume(step, x, -1, cell.incoming, 1)
        if (place + 1) % ways(step) == 0:
            incoming = total([out] * ways(step))
    for state, dim in zip(states, (out, hidden), strict=False):
        unify(state.dims[-1], dim)
    for dim in x.dims[:2]:
        freeze(dim, "its entries are places of an image or a sequence")
    tracer.attribute(step, "input_size", x.dims[-1])
    tracer.attribute(step, "hidden_size", hidden)
    if held[0].projection is not None:
        tracer.attribute(step, "proj_size", out)
        freeze(hidden, f"{step.where()} is taken for one without a projection when it has as many units as that")
    batch = x.dims[0 if step["batch_first"] else 1]
    lasts = [(*fresh([len(held)]), batch, dim) for dim in (out, hidden)]
    return [(*x.dims[:2], incoming), *lasts[: len(states)]]


def _cell(step: Step, cell: Cell, incoming: Dim, hidden: Dim, out: Dim) -> None:
    gates: Any = product([Dim(GATES[step.op][0], fixed="they are gates of one unit"), hidden])
    unify(cell.incoming.dims[1], incoming)
    unify(cell.history.dims[1], out)
    for value in (cell.incoming, cell.history, *cell.biases):
        unify(value.dims[0], gates)
    if cell.projection is not None:
        unify(cell.projection.dims[0], out)
        unify(cell.projection.dims[1], hidden)
