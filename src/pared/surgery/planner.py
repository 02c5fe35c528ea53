"""From the entries to remove to the plan: what to gather along which axes, which attributes to set."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.nn import Switch
from pared.surgery.axes import Cut, Dim
from pared.surgery.dead import emitted
from pared.surgery.graph import Graph, state_of
from pared.surgery.plan import Gather, Plan, Resize
from pared.surgery.trace import Value

#: What happens to an entry that still says something: an error, or its contribution is dropped.
Living = Literal["refuse", "cut"]


def make_plan(
    graph: Graph, model: nn.Module, keep: Mapping[str, Sequence[int] | Tensor], *, living: Living = "refuse"
) -> Plan:
    """Return the plan that keeps, in each named space, the given entries and removes the rest.

    `keep` maps the name of a space, or of a layer, to sorted entries. The removed ones have to be dead: what reads
    them gets a constant, which is folded into its bias, or has zero weights for them. With `living="cut"` they may be
    alive, and what they would have contributed is dropped, which changes what the network computes.

    Raises:
        SurgeryError: an unknown or fixed space, an entry out of range or still alive, nothing left of a space, or a
            constant that cannot be folded exactly (through zero padding, or where there is no bias).
    """
    wanted: dict[Dim, tuple[int, ...]] = {}
    for name, entries in keep.items():
        space = graph.find(name)
        index = tuple(int(entry) for entry in entries)
        _check(space.name, space.size, index)
        if len(index) < space.size:
            if space.fixed is not None:
                raise SurgeryError(f"no entry of {space.name!r} can be removed: {space.fixed}")
            wanted[space.dim] = index
    if not wanted:
        return Plan()
    cut = Cut(wanted)
    constants = emitted(graph, model, cut) if living == "refuse" else ()
    return Plan(tuple(_gathers(graph, model, cut)), tuple(constants), tuple(_resizes(graph, cut)))


def _check(name: str, size: int, index: tuple[int, ...]) -> None:
    if not index:
        raise SurgeryError(f"space {name!r} would lose all its {size} entries; keep at least one")
    if list(index) != sorted(set(index)) or index[0] < 0 or index[-1] >= size:
        raise SurgeryError(
            f"entries to keep in {name!r} must be sorted, distinct and within 0..{size - 1}; got {index[:8]}"
        )


def _gathers(graph: Graph, model: nn.Module, cut: Cut) -> Iterator[Gather]:
    for name, value in _placed(graph, model):
        for axis, dim in enumerate(value.dims):
            if cut.touches(dim):
                yield Gather(name, axis, cut.kept(dim))


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
