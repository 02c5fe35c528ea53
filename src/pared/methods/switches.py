"""Where switches go: on the units of every layer that can lose them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pared import surgery
from pared.errors import SurgeryError
from pared.methods.places import Place, Silence, Trial, choose_places, find_places, reasons
from pared.methods.selectors import Selected
from pared.nn import Switch, Switched
from pared.nn.switch import Init, check_init
from pared.surgery import Example, Graph, Slot, Space

#: Makes a switch for so many units, on the axis given, on the device and of the type of a weight.
Make = Callable[[int, int, torch.Tensor], Switch]


@dataclass(frozen=True, eq=False)
class Switches:
    """The switches of a network by name, the layers whose units they scale, the layers without, and why.

    `graph` is that of the network with its switches.
    """

    switches: Mapping[str, Switch]
    layers: Mapping[str, str]
    skipped: Mapping[str, str]
    graph: Graph

    def selected(self) -> Selected:
        """Return the switches as selectors."""
        slots = {name: Slot(f"{name}.theta", 0) for name in self.switches}
        return Selected(self.switches, slots, self.layers, self.skipped, self.graph)

    def __str__(self) -> str:
        told = {layer: f"{self.switches[name].channels} units" for name, layer in self.layers.items()}
        told |= {layer: f"skipped: {reason}" for layer, reason in self.skipped.items()}
        width = max(map(len, told), default=0)
        return "\n".join(f"{layer:<{width}}  {text}" for layer, text in told.items())


def add_switches(
    model: nn.Module, example: Example, *, init: Init = "ones", generator: torch.Generator | None = None
) -> Switches:
    """Put a switch behind every layer of `model` that can lose units, in place, and say which were skipped and why.

    A switch stands behind the batch or instance norm that follows its layer, else behind the layer itself, before the
    activation; never behind the last layer, and never on units that a sum ties to other layers' units. Each place is
    tried out: a unit that is switched off must be removable without changing the network's output. Layer and switch
    become one `pared.nn.Switched` under the layer's name. With `init="ones"` the network computes what it did.

    Args:
        model: any network that `torch.export` can follow; switches it holds already stay and count.
        example: what the forward pass takes, as for `pared.graph`.
        init: how switches start, see `pared.nn.Switch`.
        generator: where random factors are drawn from.

    Raises:
        SurgeryError: the network cannot be traced, or none of its layers can lose units. Nothing was changed.

    Source: ShrinkNets (arXiv 1806.03723), section 2.2 and figure 2: conv, norm, switch, relu.
    """
    check_init(init)
    return place_switches(model, example, lambda units, dim, like: _switch(units, dim, init, generator, like))


def place_switches(model: nn.Module, example: Example, make: Make) -> Switches:
    """Put what `make` makes of a number of units, their axis and a weight like theirs behind every layer that can."""
    before = surgery.graph(model, example)
    with whole(model):
        switched = {space.name for name in switches_of(model) if (space := space_of(before, name))}
        places, skipped = find_places(before, model, switched)
        for place in places:
            _wrap(model, place, make)
        graph = surgery.graph(model, example) if places else before
        fixed = {place: _fixed(graph, _name(place)) for place in places}
        skipped |= {place.layer: reason for place, reason in fixed.items() if reason is not None}
        silences = {place: _silence(graph, model, _name(place)) for place in places if fixed[place] is None}
        chosen = choose_places(list(silences), silences, Trial(graph, model), skipped) if silences else []
        for place in places:
            if place not in chosen:
                _put(model, place.anchor, model.get_submodule(f"{place.anchor}.layer"))
        graph = surgery.graph(model, example) if len(chosen) < len(places) else graph
        found = switches_of(model)
        if not found:
            raise SurgeryError(
                "no layer of the network can lose units, so there is nothing to shrink: "
                + ("; ".join(f"{layer}: {reason}" for layer, reason in skipped.items()) or "it has no layers")
            )
    layers = {_name(place): place.layer for place in chosen}
    for name in found:
        space = space_of(graph, name)
        layers.setdefault(name, space.name if space else name)
    return Switches(found, layers, reasons(skipped, before, {place.space for place in chosen}), graph)


def switches_of(model: nn.Module) -> dict[str, Switch]:
    """Return the switches of `model` by name, in its order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Switch)}


def refusals(graph: Graph, model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Return why each of the switches `names` cannot lose a factor that is off, for those that cannot."""
    found = {name: reason for name in names if (reason := _fixed(graph, name)) is not None}
    silences = {name: _silence(graph, model, name) for name in names if name not in found}
    trial = Trial(graph, model) if silences else None
    if trial is None or trial.refusal(list(silences.values())) is None:
        return found
    return found | {name: reason for name, item in silences.items() if (reason := trial.refusal([item])) is not None}


def space_of(graph: Graph, switch: str) -> Space | None:
    """Return the space of a switch's factors, None where they are made of several."""
    try:
        return graph.at(f"{switch}.theta")
    except SurgeryError:
        return None


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` back where it was if the block fails."""
    before = [(module, dict(module._modules)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, children in before:
            module._modules.clear()
            module._modules.update(children)
        raise


def _name(place: Place) -> str:
    """What the switch at a place is called."""
    return f"{place.anchor}.switch"


def _fixed(graph: Graph, name: str) -> str | None:
    """Why the switch `name` can lose no factor whatever its value, if so."""
    space = space_of(graph, name)
    return "its factors are made of several spaces" if space is None else space.fixed


def _silence(graph: Graph, model: nn.Module, name: str) -> Silence:
    """How to switch a factor of the switch `name` off."""
    switch = model.get_submodule(name)
    assert isinstance(switch, Switch)
    return Silence(graph.at(f"{name}.theta").name, (Slot(f"{name}.theta", 0),), switch.off)


def _switch(units: int, dim: int, init: Init, generator: torch.Generator | None, like: torch.Tensor) -> Switch:
    return Switch(units, dim=dim, init=init, generator=generator, device=like.device, dtype=like.dtype)


def _wrap(model: nn.Module, place: Place, make: Make) -> None:
    like = model.get_submodule(place.layer).weight
    assert isinstance(like, torch.Tensor)
    _put(model, place.anchor, Switched(model.get_submodule(place.anchor), make(place.units, place.dim, like)))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module
