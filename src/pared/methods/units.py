"""The units of a network's layers as they are: selectors that put nothing into it."""

from torch import nn

from pared import surgery
from pared.errors import SurgeryError
from pared.methods.places import Place, Silence, Trial, choose_places, find_places, reasons
from pared.methods.selectors import Selected, Units
from pared.surgery import Example, Graph, Slot


def find_units(model: nn.Module, example: Example, *, normed: bool = False) -> Selected:
    """Return the units of every layer of `model` that can lose some, by the layer's name; the network is left as it is.

    Each layer is tried out, as for switches: a unit whose values are 0 must be removable without changing the network's
    output.

    Args:
        model: any network that `torch.export` can follow.
        example: what the forward pass takes, as for `pared.graph`.
        normed: whether only layers count whose units leave by a norm with a weight of its own.

    Raises:
        SurgeryError: the network cannot be traced, or none of its layers can lose units.
    """
    graph = surgery.graph(model, example)
    places, skipped = find_places(graph, model)
    silences: dict[Place, Silence] = {}
    for place in places:
        slots = _slots(graph, model, place, place.anchor)
        reason = None
        if normed and (place.anchor == place.layer or not slots):
            reason = "no norm with a weight of its own stands behind it"
        slots = slots or _slots(graph, model, place, place.layer)
        if not all(model.get_parameter(slot.tensor).requires_grad for slot in slots):
            reason = "its weights are frozen"
        if reason is None:
            silences[place] = Silence(place.space, slots)
        else:
            skipped[place.layer] = reason
    chosen = choose_places(list(silences), silences, Trial(graph, model), skipped) if silences else []
    if not chosen:
        told = "; ".join(f"{layer}: {reason}" for layer, reason in skipped.items()) or "it has no layers"
        raise SurgeryError(f"no layer of the network can lose units, so there is nothing to shrink: {told}")
    units = {place.layer: Units(model, place.layer, silences[place].slots, place.units) for place in chosen}
    slots = {place.layer: _slots(graph, model, place, place.layer)[0] for place in chosen}
    told = reasons(skipped, graph, {place.space for place in chosen})
    return Selected(units, slots, {name: name for name in units}, told, graph)


def _slots(graph: Graph, model: nn.Module, place: Place, module: str) -> tuple[Slot, ...]:
    """The weight and the bias of a module, each with the axis of the place's units."""
    named = dict(model.named_parameters(remove_duplicate=False))
    names = [name for key in ("weight", "bias") if (name := f"{module}.{key}") in named]
    dim = graph.find(place.space).dim
    found = []
    for name in names:
        axes = [axis for axis, other in enumerate(graph.program.tensors[name].dims) if surgery.find(other) is dim]
        found += [Slot(name, axes[0])] if len(axes) == 1 else []
    return tuple(found)
