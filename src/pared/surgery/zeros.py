"""Units that zeros among the weights have cut off, as pruning of weights leaves them."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.surgery.apply import bare
from pared.surgery.axes import Dim, Kind, find, product
from pared.surgery.graph import Graph, Space
from pared.surgery.operate import remove
from pared.surgery.optimizers import Optimizers
from pared.surgery.planner import make_plan
from pared.surgery.prune_masks import plain_view
from pared.surgery.trace import tensors
from pared.surgery.whole import keeps_mode


@keeps_mode
@torch.no_grad()
def remove_dead(
    model: nn.Module, *, graph: Graph, optimizer: Optimizers = None, ema: Iterable[nn.Module] = ()
) -> dict[str, tuple[int, ...]]:
    """Remove every unit that the zeros among the weights have cut off, and return which, by space; the graph stays true.

    A unit goes if some parameter has nothing but zeros of it (weights that lead to it or read it, a norm's or switch's factor)
    and what it says to others is nothing, or a constant that can be folded into their biases; as that may cut off others, it
    is looked again until there are none. What the network computes in evaluation stays as it is. At least one unit of
    each space stays. Entries returned are numbers as they were when the graph was made. `optimizer` and `ema` follow, as
    in `pared.remove`.

    Raises:
        SurgeryError: the graph is not of this network as it is now, or optimizer state that cannot follow.
    """
    model = bare(model)
    for space in graph.removable():  # a graph of another network is an error, not a unit that has to stay
        make_plan(graph, model, {space.name: range(space.size - 1)}, living="cut")
    gone: dict[str, tuple[int, ...]] = {}
    found = True
    while found:
        found = False
        for space in graph.removable():
            view = plain_view(model)
            dead = _removable(graph, view, space, _candidates(graph, view, space))
            if dead:
                gone[space.name] = tuple(sorted((*gone.get(space.name, ()), *(space.kept[entry] for entry in dead))))
                remove(model, {space.name: dead}, graph=graph, optimizer=optimizer, ema=ema)
                found = True
    return gone


def _candidates(graph: Graph, model: nn.Module, space: Space) -> list[int]:
    """Return the entries of a space that zeros may have cut off: those of which a parameter has nothing but zeros."""
    dead = torch.zeros(space.size, dtype=torch.bool)
    for zeros in _zeros(graph, model, space):
        dead |= zeros
    return dead.nonzero().flatten().tolist()


def _zeros(graph: Graph, model: nn.Module, space: Space) -> Iterator[Tensor]:
    """Yield where every parameter but biases, and every buffer that is a factor, is 0 for a unit: (units,)."""
    held = tensors(model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    factors = {value.tensor for step in graph.program.steps if step.op == "mul" for value in step.values()}
    for slot in space.slots:
        value, weight = graph.program.tensors[slot.tensor], held.get(slot.tensor)
        counts = slot.tensor in parameters or value.tensor in factors
        if weight is None or not counts or slot.tensor.rpartition(".")[2].startswith("bias"):
            continue
        zero = weight == 0.0
        if weight.ndim > 1:
            zero = zero.movedim(slot.axis, 0).flatten(1).all(1)
        yield from _by_unit(zero.cpu(), value.dims[slot.axis], space.dim)


def _by_unit(zero: Tensor, dim: Dim, units: Dim) -> Iterator[Tensor]:
    """Yield, for each place where `units` occur in `dim`, of which of them all entries are `zero`: (units,).

    Each place counts alone: a unit is cut off from a concatenation, or loses its value in attention, whatever the rest does.
    """
    dim = find(dim)
    if dim is units:
        yield zero
    elif dim.kind is Kind.SUM:
        for part, piece in zip(dim.parts, zero.split([part.size for part in dim.parts]), strict=True):
            yield from _by_unit(piece, part, units)
    elif dim.kind is Kind.RAGGED:
        pieces = zero.split(list(dim.blocks))
        yield from _by_unit(torch.stack([piece.all() for piece in pieces]), dim.parts[0], units)
    elif dim.kind is Kind.PRODUCT:
        added = next((place for place, part in enumerate(dim.parts) if find(part).kind is Kind.SUM), None)
        whole = zero.reshape([part.size for part in dim.parts])
        if added is not None:  # queries, keys and values, each with these units
            parts = find(dim.parts[added]).parts
            for part, piece in zip(parts, whole.split([part.size for part in parts], added), strict=True):
                factors = (*dim.parts[:added], part, *dim.parts[added + 1 :])
                yield from _by_unit(piece.flatten(), product(factors), units)
            return
        for place, part in enumerate(dim.parts):
            yield from _by_unit(whole.movedim(place, 0).flatten(1).all(1), part, units)


def _removable(
    graph: Graph, model: nn.Module, space: Space, entries: Sequence[int], taken: Sequence[int] = ()
) -> list[int]:
    """Return `taken` and those of `entries` that can be removed with it and change nothing, tried by halves; one stays."""
    keep = sorted({*range(space.size)} - {*taken, *entries})
    if entries and keep:
        try:
            make_plan(graph, model, {space.name: keep})
        except SurgeryError:
            pass
        else:
            return [*taken, *entries]
    if len(entries) < 2:
        return list(taken)
    half = len(entries) // 2
    first = _removable(graph, model, space, entries[:half], taken)
    return _removable(graph, model, space, entries[half:], first)
