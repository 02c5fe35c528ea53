"""Units that zeros among the weights have cut off, as pruning of weights leaves them."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.surgery.apply import bare
from pared.surgery.axes import positions
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
    """Yield, of each parameter but biases that a space is an axis of, where it is 0: (units,)."""
    held = tensors(model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for slot in space.slots:
        value, weight = graph.program.tensors[slot.tensor], held.get(slot.tensor)
        if weight is None or slot.tensor not in parameters or slot.tensor.rpartition(".")[2].startswith("bias"):
            continue
        zero = (
            (weight == 0.0).movedim(slot.axis, 0).flatten(1).all(1).cpu() if weight.ndim > 1 else (weight == 0.0).cpu()
        )
        dim = value.dims[slot.axis]
        if len(zero) != space.size:
            zero = torch.stack([zero[positions(dim, {space.dim: [entry]})].all() for entry in range(space.size)])
        yield zero


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
