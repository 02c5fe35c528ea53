"""Which entries of which parameters make the units of a space, and which read them: whatever holds these parameters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from pared import surgery
from pared.methods.rows import Rows, units_along
from pared.surgery import Graph, Slot, Space, Value
from pared.surgery.axes import Dim
from pared.surgery.operators import MOVES, SAME
from pared.surgery.recurrent import inner_readers


def rows_of(graph: Graph, slot: Slot, space: Space) -> Rows:
    """Return the entries of the units of `space` along an axis of a parameter."""
    dim = graph.program.tensors[slot.tensor].dims[slot.axis]
    whole = surgery.find(dim) is space.dim
    return Rows(slot.tensor, slot.axis, None if whole else units_along(dim, space.dim))


def even(rows: Rows, units: int) -> bool:
    """Whether every unit has as many entries as any other, and some."""
    if rows.unit is None:
        return True
    counts = torch.bincount(rows.unit[rows.unit >= 0], minlength=units)
    return bool(counts[0] > 0) and bool((counts == counts[0]).all())


def slot_of(graph: Graph, space: Space, tensors: Sequence[str]) -> Slot:
    """Return an axis by which `space` can be looked up, one of `tensors` where these have it."""
    slots = sorted(space.slots, key=lambda slot: slot.tensor not in tensors)
    dims = [graph.program.tensors[slot.tensor].dims[slot.axis] for slot in slots]
    for slot, dim in zip(slots, dims, strict=True):
        if surgery.find(dim) is space.dim:
            return slot
    return replace(slots[0], leaf=list(dict.fromkeys(surgery.leaves_of(dims[0]))).index(space.dim))


def readers(graph: Graph, space: Space) -> list[Slot]:
    """Return the axes of parameters along which the units of `space` are summed up, each once."""
    made = {id(value): step for step in graph.program.steps if step.op != "getitem" for value in step.outs()}

    def found() -> Iterator[Slot]:
        for consumer in graph.consumers:
            weight = consumer.weight
            if weight is not None and _has(weight.dims[consumer.weight_axis], space):
                yield from _axis(weight, consumer.weight_axis)
        for step in graph.program.steps:
            for weight, _, dim, _ in inner_readers(step):
                if _has(dim, space):
                    yield from _axis(weight, 1)

    def _axis(value: Value, axis: int) -> Iterator[Slot]:
        while value.tensor is None and (step := made.get(id(value))) is not None and step.op in MOVES | SAME:
            value, axis = step.values()[0], -1
        if value.tensor is not None and axis >= 0:
            yield Slot(value.tensor, axis)
        elif value.tensor is not None:
            axes = [place for place, dim in enumerate(value.dims) if _has(dim, space)]
            yield from [Slot(value.tensor, axes[0])] if len(axes) == 1 else []

    return list(dict.fromkeys(found()))


def _has(dim: Dim, space: Space) -> bool:
    return any(leaf is space.dim for leaf in surgery.leaves_of(dim))


def maker_groups(graph: Graph, model: nn.Module, space: Space) -> dict[str, tuple[Rows, ...]]:
    """Return the entries of parameters that make the units of `space` by the module that holds them, the last first."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    read, seen = set(readers(graph, space)), set[tuple[int, int]]()
    groups: dict[str, tuple[Rows, ...]] = {}
    for slot in space.slots:
        parameter = parameters.get(slot.tensor)
        if parameter is None or slot in read or (id(parameter), slot.axis) in seen:
            continue
        seen.add((id(parameter), slot.axis))
        owner = slot.tensor.rpartition(".")[0]
        groups[owner] = (*groups.get(owner, ()), rows_of(graph, slot, space))
    return dict(reversed(_in_order(graph, groups)))


def _in_order(graph: Graph, groups: Mapping[str, tuple[Rows, ...]]) -> list[tuple[str, tuple[Rows, ...]]]:
    """Modules in the order in which the network first uses what they hold."""
    first: dict[str, int] = {}
    for place, step in enumerate(graph.program.steps):
        for value in step.values():
            if value.tensor is not None:
                first.setdefault(value.tensor, place)
    return sorted(groups.items(), key=lambda item: min(first.get(rows.tensor, 0) for rows in item[1]))
