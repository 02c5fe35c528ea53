"""From the entries to remove to the plan: what to gather along which axes, which attributes to set."""

from collections.abc import Iterator, Mapping, Sequence
from operator import index
from typing import Literal

from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.nn import Switch
from pared.surgery.axes import Cut, Dim
from pared.surgery.dead import emitted
from pared.surgery.graph import Graph, state_of
from pared.surgery.plan import Gather, Plan, Resize
from pared.surgery.prune_masks import plain_view
from pared.surgery.trace import Value, tensors

#: What happens to an entry that still says something: an error, or its contribution is dropped.
Living = Literal["refuse", "cut"]


def make_plan(
    graph: Graph, model: nn.Module, keep: Mapping[str, Sequence[int] | Tensor], *, living: Living = "refuse"
) -> Plan:
    """Return the plan that keeps, in each named space, the given entries and removes the rest.

    `keep` maps the name of a space, or of a layer, to sorted entries, or to a mask over all of them. The removed ones
    have to be dead: what reads them gets a constant, which is folded into its bias, or has zero weights for them. With
    `living="cut"` they may be alive, and what they would have contributed is dropped, which changes what the network
    computes.

    Raises:
        SurgeryError: an unknown or fixed space, an entry out of range or still alive, nothing left of a space, a
            constant that cannot be folded exactly (through zero padding, or where there is no bias), or a graph of the
            network as it was before another removal.
    """
    wanted: dict[Dim, tuple[int, ...]] = {}
    for name, entries in keep.items():
        space = graph.find(name)
        kept = tuple(numbers(space.name, space.size, entries))
        _check(space.name, space.size, kept)
        if len(kept) < space.size:
            if space.fixed is not None:
                raise SurgeryError(f"no entry of {space.name!r} can be removed: {space.fixed}")
            wanted[space.dim] = kept
    if not wanted:
        return Plan()
    model = plain_view(model)
    cut, held = Cut(wanted), tensors(model)
    gathers = tuple(_gathers(graph, model, cut, held))
    constants = emitted(graph, model, cut, held) if living == "refuse" else ()
    return Plan(gathers, tuple(constants), tuple(_resizes(graph, cut)))


def numbers(name: str, size: int, entries: Sequence[int] | Tensor) -> list[int]:
    """Return entries of a space as numbers, from numbers or from a mask of booleans over all of them."""
    given = entries.tolist() if isinstance(entries, Tensor) else list(entries)
    kinds = set(map(type, given))
    if kinds <= {int}:
        return given
    if kinds == {bool}:
        if len(given) != size:
            raise SurgeryError(f"a mask over {name!r} needs its {size} entries, got {len(given)}")
        return [place for place, chosen in enumerate(given) if chosen]
    try:
        return [index(entry) for entry in given]
    except TypeError:
        raise SurgeryError(
            f"entries of {name!r} are integers from 0 to {size - 1}, or a mask over all of them; got {given[:8]}"
        ) from None


def _check(name: str, size: int, kept: tuple[int, ...]) -> None:
    if not kept:
        raise SurgeryError(f"space {name!r} would lose all its {size} entries; keep at least one")
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= size:
        raise SurgeryError(
            f"entries to keep in {name!r} must be sorted, distinct and within 0..{size - 1}; got {kept[:8]}"
        )


def _gathers(graph: Graph, model: nn.Module, cut: Cut, held: Mapping[str, Tensor]) -> Iterator[Gather]:
    for name, value in _placed(graph, model):
        touched = [axis for axis, dim in enumerate(value.dims) if cut.touches(dim)]
        if touched and (name not in held or tuple(held[name].shape) != value.shape):
            found = f"is {tuple(held[name].shape)}" if name in held else "is gone"
            raise SurgeryError(
                f"the graph is not of this network as it is now: {name!r} {found}, expected {value.shape}; give every "
                "removal the same graph, or make it anew with pared.graph"
            )
        for axis in touched:
            yield Gather(name, axis, cut.kept(value.dims[axis]))


def _placed(graph: Graph, model: nn.Module) -> Iterator[tuple[str, Value]]:
    """The tensors of the graph, and what rules of death have come to remember in switches since it was made."""
    yield from graph.program.tensors.items()
    for path, module in model.named_modules():
        if isinstance(module, Switch):
            for key in state_of(module):
                if f"{path}.{key}" not in graph.program.tensors:
                    yield f"{path}.{key}", graph.program.tensors[f"{path}.theta"]


def _resizes(graph: Graph, cut: Cut) -> Iterator[Resize]:
    for attribute in graph.attributes:
        if cut.touches(attribute.dim):
            yield Resize(attribute.module, attribute.name, len(cut.kept(attribute.dim)))
