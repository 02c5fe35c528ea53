"""Where units can be removed, tried out before anything depends on it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pared import surgery
from pared.errors import SurgeryError
from pared.methods.rows import Rows
from pared.surgery import Graph, Space, Step
from pared.surgery.prune_masks import plain_copy

SEVERAL, TOGETHER = "its units are made of several spaces", "several of its units die together"
REUSED = "it is used more than once"


@dataclass(frozen=True)
class Place:
    """A layer, the module its units leave by (a norm behind it, else itself), their space, and their axis from the end."""

    layer: str
    anchor: str
    space: str
    units: int
    dim: int


@dataclass(frozen=True)
class Silence:
    """How to switch a unit of `space` off: its entries of `rows` become `value`."""

    space: str
    rows: tuple[Rows, ...]
    value: float = 0.0


def find_places(graph: Graph, model: nn.Module, taken: Collection[str] = ()) -> tuple[list[Place], dict[str, str]]:
    """Return where it can be tried, the spaces `taken` left out, and the layers out of the question with the reason."""
    places: list[Place] = []
    skipped: dict[str, str] = {}
    for layer in graph.made_by:
        space = space_of_layer(graph, layer)
        if space is None:
            skipped[layer] = SEVERAL
            continue
        reason = _reason(graph, model, space, layer)
        if space.name in taken:
            continue
        if reason is not None:
            skipped[layer] = reason
            continue
        anchor, step = _anchor(graph, model, layer)
        axis = next((place for place, dim in enumerate(step.out.dims) if surgery.find(dim) is space.dim), None)
        if axis is None:
            skipped[layer] = TOGETHER
            continue
        places.append(Place(layer, anchor, space.name, space.size, axis - len(step.out.dims)))
    return places, skipped


def choose_places(
    places: Sequence[Place], silences: Mapping[Place, Silence], trial: "Trial", skipped: dict[str, str]
) -> list[Place]:
    """Return one place a space, the last from which a unit can be silenced; the others' reasons go to `skipped`."""
    spaces: dict[str, list[Place]] = {}
    for place in places:
        spaces.setdefault(place.space, []).insert(0, place)
    chosen = [candidates[0] for candidates in spaces.values()]
    if trial.refusal([silences[place] for place in chosen]) is None:
        return chosen
    chosen = []
    for candidates in spaces.values():
        for place in candidates:
            reason = trial.refusal([silences[place]])
            if reason is None:
                chosen.append(place)
                break
            skipped[place.layer] = reason.replace(".layer'", "'")  # under the names it has without switches
    return chosen


def reasons(skipped: Mapping[str, str], graph: Graph, chosen: Collection[str]) -> dict[str, str]:
    """Return what was left out, in order: layers, and spaces that no layer makes; none whose space is `chosen`."""
    told: dict[str, str] = {}
    for layer in graph.made_by:
        spaces = spaces_of_layer(graph, layer)
        if layer not in skipped or any(space.fixed is None and space.name in chosen for space in spaces):
            continue
        open_spaces = [space for space in spaces if space.fixed is None]
        others = [repr(other) for space in open_spaces for other in space.layers if other != layer]
        others = list(dict.fromkeys(others)) if len(spaces) == 1 else []
        named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        tied = f"its units are tied to those of {named}, which one switch does not reach"
        told[layer] = tied if others else skipped[layer]
    return told | {name: reason for name, reason in skipped.items() if name not in graph.made_by}


def spaces_of_layer(graph: Graph, layer: str) -> list[Space]:
    """Return the spaces that the units of `layer` are made of."""
    leaves = set(surgery.leaves_of(graph.made_by[layer]))
    return [space for space in graph.spaces if space.dim in leaves]


def space_of_layer(graph: Graph, layer: str) -> Space | None:
    """Return the one space that the units of `layer` are, if they are."""
    try:
        return graph.find(layer)
    except SurgeryError:
        return None


class Trial:
    """Plan removals on a copy whose weights are in general position: a shift that happens to be 0 now will be learned."""

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph, self.twin = graph, _in_general_position(model)

    @torch.no_grad()
    def refusal(self, silences: Sequence[Silence]) -> str | None:
        """Return why the first units of these, being off, cannot be removed together, if so."""
        tensors = surgery.tensors(self.twin)
        keep = {item.space: range(1, self.graph.find(item.space).size) for item in silences}
        before: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        try:
            for item in silences:
                first = torch.arange(self.graph.find(item.space).size) == 0
                for rows in item.rows:
                    moved = tensors[rows.tensor].movedim(rows.axis, 0)
                    index = rows.mask(first).nonzero().flatten().to(moved.device)
                    before.append((moved, index, moved[index].clone()))
                    moved[index] = item.value
            surgery.make_plan(self.graph, self.twin, keep)
        except SurgeryError as error:
            return str(error)
        finally:
            for moved, index, old in reversed(before):
                moved[index] = old
        return None


@torch.no_grad()
def _in_general_position(model: nn.Module) -> nn.Module:
    twin = plain_copy(surgery.bare(model))
    generator = torch.Generator().manual_seed(0)
    for tensor in surgery.tensors(twin).values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator) * 0.1 + 0.05  # upwards: a variance stays positive
            tensor.add_(noise.to(tensor.device, tensor.dtype))
    return twin


def _reason(graph: Graph, model: nn.Module, space: Space, layer: str) -> str | None:
    """Why a layer is out of the question, if so."""
    if space.fixed is not None:
        return space.fixed
    names = [name for name, module in model.named_modules(remove_duplicate=False) if _is(module, model, layer)]
    if len(names) > 1 or len(_own_steps(graph, layer)) != 1:
        return REUSED
    return None


def _is(module: nn.Module, model: nn.Module, name: str) -> bool:
    return module is model.get_submodule(name)


def _own_steps(graph: Graph, layer: str) -> list[Step]:
    """The products with a weight that `layer` itself takes."""
    steps = (step for step in graph.program.steps if step.layer == layer)
    return [step for step in steps if step.op in ("linear", "addmm") or step.op.startswith("conv")]


def _anchor(graph: Graph, model: nn.Module, layer: str) -> tuple[str, Step]:
    """The module by which the units leave, and the step that gives them there: a norm's, else the layer's."""
    (step,) = _own_steps(graph, layer)
    readers = [other for other in graph.program.steps if any(value is step.out for value in other.values())]
    if len(readers) == 1 and readers[0].op in ("batch_norm", "instance_norm"):
        norm = readers[0]
        module = model.get_submodule(norm.layer)
        alone = sum(_is(other, model, norm.layer) for _, other in model.named_modules(remove_duplicate=False)) == 1
        if alone and isinstance(module, nn.modules.batchnorm._NormBase):
            return norm.layer, norm
    return layer, step
