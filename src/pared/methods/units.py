"""The units of a network's layers as they are: selectors that put nothing into it."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from pared import surgery
from pared.errors import SurgeryError
from pared.methods.makers import even, maker_groups, slot_of
from pared.methods.places import (
    REUSED,
    SEVERAL,
    TOGETHER,
    Place,
    Silence,
    Trial,
    choose_places,
    find_places,
    reasons,
)
from pared.methods.rows import Rows
from pared.methods.selectors import Selected, Units
from pared.surgery import Example, Graph, Slot, Space

_NO_NORM = "no norm with a weight of its own follows it"


def find_units(model: nn.Module, example: Example, *, normed: bool = False, sums: bool = False) -> Selected:
    """Return the units of every layer of `model` that can lose some, by the layer's name; the network is left as it is.

    Each layer is tried out, as for switches: a unit whose values are 0 must be removable without changing the network's
    output. Spaces whose units no layer alone makes, entry by entry, are tried by all that holds their weights: recurrent
    layers with all gates, modules that are called more than once, heads, raw parameters.

    Args:
        model: any network that `torch.export` can follow.
        example: what the forward pass takes, as for `pared.graph`.
        normed: whether only layers count whose units leave by a norm with a weight of its own.
        sums: whether units of residual sums count, too, which all layers that are summed make together.

    Raises:
        SurgeryError: the network cannot be traced, or none of its layers can lose units.
    """
    graph = surgery.graph(model, example)
    places, skipped = find_places(graph, model)
    silences: dict[Place, Silence] = {}
    for place in places:
        rows = _rows(graph, model, place, place.anchor)
        reason = _NO_NORM if normed and (place.anchor == place.layer or not rows) else None
        rows = rows or _rows(graph, model, place, place.layer)
        reason = reason or _frozen(model, rows)
        if reason is None:
            silences[place] = Silence(place.space, rows)
        else:
            skipped[place.layer] = reason
    trial = Trial(graph, model)
    chosen = choose_places(list(silences), silences, trial, skipped) if silences else []
    selected = _Selection(graph, model)
    for place in chosen:
        layer = _rows(graph, model, place, place.layer)
        selected.add(place.layer, graph.find(place.space), silences[place].rows, layer[:1])
    tried = {(silence.space, frozenset(rows.tensor for rows in silence.rows)) for silence in silences.values()}
    for space in graph.removable():
        if space.name not in selected.spaces:
            other = _Others(graph, model, trial, normed, sums, tried)
            reason = other.select(space, selected)
            if reason is not None and not space.layers:
                skipped[space.name] = reason
            for layer in space.layers:
                if reason is not None and skipped.get(layer) in (None, SEVERAL, TOGETHER, REUSED):
                    skipped[layer] = reason
    told = reasons(skipped, graph, selected.spaces)
    if not selected.units:
        text = "; ".join(f"{layer}: {reason}" for layer, reason in told.items()) or "it has no layers"
        raise SurgeryError(f"no layer of the network can lose units, so there is nothing to shrink: {text}")
    return Selected(selected.units, selected.slots, {name: name for name in selected.units}, told, graph)


class _Selection:
    """The units found so far, by name."""

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph, self.model = graph, model
        self.units: dict[str, Units] = {}
        self.slots: dict[str, Slot] = {}
        self.spaces: set[str] = set()

    def add(self, name: str, space: Space, weights: Sequence[Rows], makes: Sequence[Rows]) -> None:
        self.units[name] = Units(self.model, self.graph, space.name, weights, makes)
        self.slots[name] = slot_of(self.graph, space, [rows.tensor for rows in makes])
        self.spaces.add(space.name)


class _Others:
    """Spaces that are tried by all parameters that make them, those of one module first."""

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        trial: Trial,
        normed: bool,
        sums: bool,
        tried: set[tuple[str, frozenset[str]]],
    ) -> None:
        self.graph, self.model, self.trial = graph, model, trial
        self.normed, self.sums, self.tried = normed, sums, tried

    def select(self, space: Space, selected: _Selection) -> str | None:
        """Add the units of `space`, if they can be silenced, or return why not."""
        told: str | None = _NO_NORM if self.normed else "no learnt parameter makes its units"
        for name, weights in self._candidates(space):
            if (space.name, frozenset(rows.tensor for rows in weights)) in self.tried:
                continue
            reason = _frozen(self.model, weights)
            if not all(even(rows, space.size) for rows in weights):
                reason = "its units have unequal numbers of entries"
            reason = reason or self.trial.refusal([Silence(space.name, tuple(weights))])
            if reason is None:
                matrices = [rows for rows in weights if self.model.get_parameter(rows.tensor).ndim > 1]
                free = name and not space.layers and name not in selected.units
                selected.add(name if free else space.name, space, weights, matrices or weights[:1])
                return None
            told = reason
        return told

    def _candidates(self, space: Space) -> Iterator[tuple[str, tuple[Rows, ...]]]:
        groups = maker_groups(self.graph, self.model, space)
        modules: Mapping[str, nn.Module] = dict(self.model.named_modules(remove_duplicate=False))
        norms = nn.modules.batchnorm._NormBase
        if self.normed:
            yield from ((name, rows) for name, rows in groups.items() if isinstance(modules[name], norms))
            return
        yield from groups.items()
        if len(groups) > 1 and (self.sums or len(space.layers) < 2):
            yield next(filter(None, groups), ""), tuple(rows for group in groups.values() for rows in group)


def _frozen(model: nn.Module, rows: Sequence[Rows]) -> str | None:
    held = all(model.get_parameter(item.tensor).requires_grad for item in rows)
    return None if held else "its weights are frozen"


def _rows(graph: Graph, model: nn.Module, place: Place, module: str) -> tuple[Rows, ...]:
    """The weight and the bias of a module, each with the axis of the place's units."""
    named = dict(model.named_parameters(remove_duplicate=False))
    names = [name for key in ("weight", "bias") if (name := f"{module}.{key}") in named]
    dim = graph.find(place.space).dim
    found: list[Rows] = []
    for name in names:
        axes = [axis for axis, other in enumerate(graph.program.tensors[name].dims) if surgery.find(other) is dim]
        found += [Rows(name, axes[0])] if len(axes) == 1 else []
    return tuple(found)
