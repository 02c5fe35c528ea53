"""Where switches go: on the units of every layer that can lose them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pared import surgery
from pared.errors import SurgeryError
from pared.methods.places import Place, Silence, Trial, choose_places, find_places, reasons
from pared.methods.rows import Rows
from pared.methods.selectors import Selected
from pared.nn import KernelSwitch, Switch, Switched
from pared.nn.switch import Init, check_init
from pared.surgery import Example, Graph, Slot, Space
from pared.surgery.prune_masks import plain_copy

_NO_PLACE = (
    "no layer gives its units to others alone, after which a switch could stand (a recurrent layer reads them itself, a raw "
    "parameter has no module); GroupLasso and Prune press on its weights"
)

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
    model: nn.Module,
    example: Example,
    *,
    init: Init = "ones",
    sums: bool = False,
    generator: torch.Generator | None = None,
) -> Switches:
    """Put a switch behind every layer of `model` that can lose units, in place, and say which were skipped and why.

    A switch stands behind the batch or instance norm that follows its layer, else behind the layer itself, before the
    activation; never behind the last layer, and on units that a sum ties to other layers' only with `sums`: then all
    layers that are summed share one switch's factors. Each place is tried out: a unit that is switched off must be
    removable without changing the network's output. Layer and switch become one `pared.nn.Switched` under the layer's
    name. With `init="ones"` the network computes what it did.

    Args:
        model: any network that `torch.export` can follow; switches it holds already stay and count.
        example: what the forward pass takes, as for `pared.graph`.
        init: how switches start, see `pared.nn.Switch`.
        sums: whether residual sums are switched too, each as one.
        generator: where random factors are drawn from.

    Raises:
        SurgeryError: the network cannot be traced, or none of its layers can lose units. Nothing was changed.

    Source: ShrinkNets (arXiv 1806.03723), section 2.2 and figure 2: conv, norm, switch, relu.
    """
    check_init(init)
    return place_switches(
        model, example, lambda units, dim, like: _switch(units, dim, init, generator, like), sums=sums
    )


def place_switches(model: nn.Module, example: Example, make: Make, *, sums: bool = False) -> Switches:
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
        trial = Trial(graph, model) if silences else None
        chosen = choose_places(list(silences), silences, trial, skipped) if trial else []
        shared = _shared(silences, {place.space for place in chosen}, trial) if trial and sums else []
        stuck = _unfoldable(model, graph, [*chosen, *(place for group in shared for place in group)])
        skipped |= {place.layer: "a switch behind it could not be folded away in the end" for place in stuck}
        shared = [group for group in shared if not stuck & set(group)]
        used = {*chosen, *(place for group in shared for place in group)} - stuck
        for place in places:
            if place not in used:
                _put(model, place.anchor, model.get_submodule(f"{place.anchor}.layer"))
        for group in shared:
            _tie(model, group)
        graph = surgery.graph(model, example) if len(used) < len(places) or shared else graph
        found = switches_of(model)
        if not found:
            raise SurgeryError(
                "no layer of the network can lose units, so there is nothing to shrink: "
                + ("; ".join(f"{layer}: {reason}" for layer, reason in skipped.items()) or "it has no layers")
            )
    surgery.unnest(model)
    layers = titles(found, model, graph, {_name(place): place.layer for place in used})
    pressed = {place.space for place in used} | switched
    skipped |= {space.name: _NO_PLACE for space in before.removable() if not space.layers and space.name not in pressed}
    return Switches(found, layers, reasons(skipped, before, pressed), graph)


def _unfoldable(model: nn.Module, graph: Graph, used: Collection[Place]) -> set[Place]:
    """Those of the places whose switch would stay in a realised network: where code computes with a layer's weight, say."""
    twin = plain_copy(model)
    with torch.no_grad():
        for switch in switches_of(twin).values():
            switch.theta.copy_(-1.0 - torch.arange(len(switch.theta)) / len(switch.theta))  # no relu lets these pass
    left = surgery.fold_(twin, graph)
    return {place for place in used if _name(place) in left}


def switches_of(model: nn.Module) -> dict[str, Switch]:
    """Return the switches on units of `model` by name, in its order; of those that share their factors the first."""
    found: dict[int, tuple[str, Switch]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Switch) and not isinstance(module, KernelSwitch):
            found.setdefault(id(module.theta), (name, module))
    return dict(found.values())


def _shared(silences: Mapping[Place, Silence], taken: Collection[str], trial: Trial) -> list[list[Place]]:
    """The places of each space that none alone but all together can silence."""
    spaces: dict[str, list[Place]] = {}
    for place in silences:
        if place.space not in taken:
            spaces.setdefault(place.space, []).append(place)
    return [group for group in spaces.values() if trial.refusal([_together(group, silences)]) is None]


def _together(group: Sequence[Place], silences: Mapping[Place, Silence]) -> Silence:
    rows = tuple(rows for place in group for rows in silences[place].rows)
    return Silence(silences[group[0]].space, rows)


def _tie(model: nn.Module, group: Sequence[Place]) -> None:
    """Let all switches of a group have the factors of the first."""
    first, *others = (model.get_submodule(_name(place)) for place in group)
    assert isinstance(first, Switch)
    for other in others:
        assert isinstance(other, Switch)
        other.theta = first.theta
        other.alive = first.alive


def titles(
    switches: Mapping[str, Switch], model: nn.Module, graph: Graph, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return what to call each switch: the layer it is `known` to stand behind, else its space; several share one."""
    told: dict[str, str] = {}
    for name, switch in switches.items():
        others = sum(isinstance(m, Switch) and m.theta is switch.theta for m in model.modules()) - 1
        layer = (known or {}).get(name) or getattr(space_of(graph, name), "name", name)
        told[name] = f"{layer} and {others} more" if others else layer
    return told


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
    """Put every module of `model` back where it was, and as what it was, if the block fails."""
    before = [(module, type(module), dict(module._modules)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, kind, children in before:
            module.__class__ = kind
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
    return Silence(graph.at(f"{name}.theta").name, (Rows(f"{name}.{switch.off_in}", 0),), switch.off)


def _switch(units: int, dim: int, init: Init, generator: torch.Generator | None, like: torch.Tensor) -> Switch:
    return Switch(units, dim=dim, init=init, generator=generator, device=like.device, dtype=like.dtype)


def _wrap(model: nn.Module, place: Place, make: Make) -> None:
    like = model.get_submodule(place.layer).weight
    assert isinstance(like, torch.Tensor)
    _put(model, place.anchor, Switched(model.get_submodule(place.anchor), make(place.units, place.dim, like)))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module
