"""Modules whose results no one reads any more, as the layers before a branch that has died."""

import inspect
from collections.abc import Iterable

import torch
from torch import nn

from pared.nn import Gated
from pared.surgery.apply import bare
from pared.surgery.graph import Graph
from pared.surgery.optimizers import Optimizers
from pared.surgery.stand_in import replace_modules
from pared.surgery.trace import Program, Step
from pared.surgery.whole import Whole, keeps_mode, remember


def leading_to(program: Program, name: str) -> list[Step]:
    """Return the steps of module `name` and those whose results it alone reads, directly or not, in order."""
    return idle_steps(program, {id(step) for step in program.steps if within(step.layer, name)})


def idle_steps(program: Program, unread: Iterable[int] = ()) -> list[Step]:
    """Return the steps whose results no one reads but others of these; those with ids `unread` are among them."""
    told = {id(value) for value in program.outputs}
    idle, needed = set(unread), set(told)
    found: list[Step] = []
    for step in reversed(program.steps):
        writes = step.inplace and any(id(value) in needed for value in step.values())
        if id(step) in idle or not (writes or any(id(value) in needed for value in step.outs())):
            found.append(step)
        else:
            needed.update(id(value) for value in step.values())
    return found[::-1]


@keeps_mode
@torch.no_grad()
def remove_idle(
    model: nn.Module, *, graph: Graph, optimizer: Optimizers = None, ema: Iterable[nn.Module] = ()
) -> list[str]:
    """Put the identity where modules with parameters work for nothing, and return their names; the graph stays true.

    In the place of `nn.MultiheadAttention` there is zero.

    The forward pass still calls what stands in their place, and whoever does nothing with it. Modules that take or give more
    than one tensor are left as they are.
    """
    model, program = bare(model), graph.program
    idle = idle_steps(program)
    if not idle:
        return []
    ids = {id(step) for step in idle}
    busy = {step.layer for step in program.steps if id(step) not in ids}
    used = {step.layer for step in idle}
    names: list[str] = []
    for name, module in model.named_modules():
        whole = name and not any(within(layer, name) for layer in busy) and any(within(layer, name) for layer in used)
        single = _takes_one(program, name) and not any(within(name, other) for other in names)
        simple = isinstance(module, nn.MultiheadAttention) or count_arguments(module) <= 1
        if whole and single and simple and next(module.parameters(), None) is not None:
            names.append(name)
    with Whole() as undo:
        undo.append(remember(graph))
        replace_modules(dict.fromkeys(names, "identity"), model, undo, optimizer=optimizer, ema=ema)
        for name in names:
            mine = {id(step) for step in idle if within(step.layer, name)}
            program.steps[:] = [step for step in program.steps if id(step) not in mine]
            graph.forget(name, mine, [])
    return names


def count_arguments(module: nn.Module) -> int:
    """Return how many arguments the forward pass of `module` names; of one with a gate, that of its layer."""
    module = module.layer if isinstance(module, Gated) else module
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(parameter.kind not in kinds for parameter in inspect.signature(module.forward).parameters.values())


def within(layer: str, name: str) -> bool:
    """Whether `layer` is the module `name` or inside of it."""
    return layer == name or layer.startswith(f"{name}.")


def _takes_one(program: Program, name: str) -> bool:
    """Whether a module takes one tensor and gives one."""
    own = [step for step in program.steps if within(step.layer, name)]
    ids = {id(step) for step in own}
    made = {id(value) for step in own if step.op != "getitem" for value in step.outs()}
    taken = {id(value) for step in own for value in step.values() if id(value) not in made and value.tensor is None}
    others = (step for step in program.steps if id(step) not in ids and step.op != "getitem")
    given = {id(value) for step in others for value in step.values()} & made
    return len(taken) == 1 and len(given) <= 1
