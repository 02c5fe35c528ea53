"""Where switches go: on the units of every layer that can lose them."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pared import surgery
from pared.errors import SurgeryError
from pared.nn import Switch, Switched
from pared.nn.switch import Init, check_init
from pared.surgery import Example, Graph, Space, Step


@dataclass(frozen=True, eq=False)
class Switches:
    """The switches of a network by name, the layers whose units they scale, the layers without, and why.

    `graph` is that of the network with its switches.
    """

    switches: Mapping[str, Switch]
    layers: Mapping[str, str]
    skipped: Mapping[str, str]
    graph: Graph

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
    before = surgery.graph(model, example)
    with whole(model):
        places, skipped = _places(before, model)
        for place in places:
            _wrap(model, place, init, generator)
        graph = surgery.graph(model, example) if places else before
        chosen = _chosen(graph, model, places, skipped)
        for place in places:
            if place not in chosen:
                _unwrap(model, place.anchor)
        graph = surgery.graph(model, example) if len(chosen) < len(places) else graph
        found = switches_of(model)
        if not found:
            raise SurgeryError(
                "no layer of the network can lose units, so there is nothing to shrink: "
                + ("; ".join(f"{layer}: {reason}" for layer, reason in skipped.items()) or "it has no layers")
            )
    mine = {place.switch: place.layer for place in chosen}
    layers = dict(mine)
    for name in found:
        space = space_of(graph, name)
        layers.setdefault(name, space.name if space else name)
    return Switches(found, layers, _told(skipped, before, {place.space for place in chosen}), graph)


def switches_of(model: nn.Module) -> dict[str, Switch]:
    """Return the switches of `model` by name, in its order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Switch)}


def refusals(graph: Graph, model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Return why each of the switches `names` cannot lose a factor that is off, for those that cannot."""
    if not names:
        return {}
    trial = _Trial(graph, model)
    if trial.refusal(names) is None:
        return {}
    return {name: reason for name in names if (reason := trial.refusal([name])) is not None}


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


@dataclass(frozen=True)
class _Place:
    """A layer, the module behind which its switch goes, the space of its units, and their axis from the end."""

    layer: str
    anchor: str
    space: str
    units: int
    dim: int

    @property
    def switch(self) -> str:
        """The name of the switch there."""
        return f"{self.anchor}.switch"


def _places(graph: Graph, model: nn.Module) -> tuple[list[_Place], dict[str, str]]:
    """Where switches can be tried, and the layers that are out of the question, with the reason."""
    places: list[_Place] = []
    skipped: dict[str, str] = {}
    switched = {space.name for name in switches_of(model) if (space := space_of(graph, name))}
    for layer in graph.made_by:
        space = _space(graph, layer)
        if space is None:
            skipped[layer] = "its units are made of several spaces"
            continue
        reason = _reason(graph, model, space, layer)
        if space.name in switched:
            continue
        if reason is not None:
            skipped[layer] = reason
            continue
        anchor, step = _anchor(graph, model, layer)
        axis = next((place for place, dim in enumerate(step.out.dims) if surgery.find(dim) is space.dim), None)
        if axis is None:
            skipped[layer] = "several of its units die together"
            continue
        places.append(_Place(layer, anchor, space.name, space.size, axis - len(step.out.dims)))
    return places, skipped


def _reason(graph: Graph, model: nn.Module, space: Space, layer: str) -> str | None:
    """Why a layer gets no switch, if so."""
    if space.fixed is not None:
        return space.fixed
    names = [name for name, module in model.named_modules(remove_duplicate=False) if _is(module, model, layer)]
    if len(names) > 1 or len(_own_steps(graph, layer)) != 1:
        return "it is used more than once"
    return None


def _is(module: nn.Module, model: nn.Module, name: str) -> bool:
    return module is model.get_submodule(name)


def _own_steps(graph: Graph, layer: str) -> list[Step]:
    """The products with a weight that `layer` itself takes."""
    steps = (step for step in graph.program.steps if step.layer == layer)
    return [step for step in steps if step.op in ("linear", "addmm") or step.op.startswith("conv")]


def _anchor(graph: Graph, model: nn.Module, layer: str) -> tuple[str, Step]:
    """The module behind which the switch goes, and the step that gives the units there: a norm's, else the layer's."""
    (step,) = _own_steps(graph, layer)
    readers = [other for other in graph.program.steps if any(value is step.out for value in other.values())]
    if len(readers) == 1 and readers[0].op in ("batch_norm", "instance_norm"):
        norm = readers[0]
        module = model.get_submodule(norm.layer)
        alone = sum(_is(other, model, norm.layer) for _, other in model.named_modules(remove_duplicate=False)) == 1
        if alone and isinstance(module, nn.modules.batchnorm._NormBase):
            return norm.layer, norm
    return layer, step


def _wrap(model: nn.Module, place: _Place, init: Init, generator: torch.Generator | None) -> None:
    layer = model.get_submodule(place.anchor)
    like = model.get_submodule(place.layer).weight
    assert isinstance(like, torch.Tensor)
    switch = Switch(place.units, dim=place.dim, init=init, generator=generator, device=like.device, dtype=like.dtype)
    _put(model, place.anchor, Switched(layer, switch))


def _unwrap(model: nn.Module, anchor: str) -> None:
    switched = model.get_submodule(anchor)
    assert isinstance(switched, Switched)
    _put(model, anchor, switched.layer)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module


@torch.no_grad()
def _in_general_position(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(surgery.bare(model))
    generator = torch.Generator().manual_seed(0)
    for tensor in surgery.tensors(twin).values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator) * 0.1 + 0.05  # upwards: a variance stays positive
            tensor.add_(noise.to(tensor.device, tensor.dtype))
    return twin


class _Trial:
    """Plan removals on a copy whose weights are in general position: a shift that happens to be 0 now will be learned."""

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph, self.twin = graph, _in_general_position(model)

    @torch.no_grad()
    def refusal(self, names: Sequence[str]) -> str | None:
        """Return why the first factors of the switches `names`, being off, cannot be removed together, if so."""
        keep: dict[str, range] = {}
        thetas = []
        for name in names:
            space = space_of(self.graph, name)
            if space is None or space.fixed is not None:
                return space.fixed if space and space.fixed else "its factors are made of several spaces"
            keep[space.name] = range(1, space.size)
            thetas.append(self.twin.get_parameter(f"{name}.theta"))
        before = [theta[0].item() for theta in thetas]
        try:
            for theta in thetas:
                theta[0] = 0.0
            surgery.make_plan(self.graph, self.twin, keep)
        except SurgeryError as error:
            return str(error)
        finally:
            for theta, value in zip(thetas, before, strict=True):
                theta[0] = value
        return None


def _chosen(graph: Graph, model: nn.Module, places: Sequence[_Place], skipped: dict[str, str]) -> list[_Place]:
    """One place a space: the last of its layers from which a switch can silence it; the others' reasons go to `skipped`."""
    spaces: dict[str, list[_Place]] = {}
    for place in places:
        spaces.setdefault(place.space, []).insert(0, place)
    trial = _Trial(graph, model) if places else None
    chosen = [candidates[0] for candidates in spaces.values()]
    if trial is None or trial.refusal([place.switch for place in chosen]) is None:
        return chosen
    chosen = []
    for candidates in spaces.values():
        for place in candidates:
            reason = trial.refusal([place.switch])
            if reason is None:
                chosen.append(place)
                break
            skipped[place.layer] = reason.replace(".layer'", "'")  # under the names it has without switches
    return chosen


def _told(skipped: Mapping[str, str], graph: Graph, switched: set[str]) -> dict[str, str]:
    """The layers without a switch in order; one whose units another layer's switch scales is no such layer."""
    told: dict[str, str] = {}
    for layer in graph.made_by:
        if layer not in skipped:
            continue
        space = _space(graph, layer)
        if space is not None and space.fixed is None and space.name in switched:
            continue
        others = [repr(other) for other in space.layers if other != layer] if space and space.fixed is None else []
        named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        tied = f"its units are tied to those of {named}, which one switch does not reach"
        told[layer] = tied if others else skipped[layer]
    return told


def _space(graph: Graph, layer: str) -> Space | None:
    """The one space that the units of `layer` are, if they are."""
    try:
        return graph.find(layer)
    except SurgeryError:
        return None
