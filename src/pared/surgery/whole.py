"""All or nothing: whatever stops an operation, an interrupt too, what it had begun is undone."""

from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch

from pared.surgery.axes import Dim, leaves
from pared.surgery.gather import Undo
from pared.surgery.graph import Graph

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Whole:
    """A block that happens whole or not at all: `with Whole() as undo:`, where each change first appends its undoing.

    An undoing has to be right before its change, too. One interrupt, at any line, leaves everything done or everything undone.
    """

    def __init__(self) -> None:
        self.undo: list[Undo] = []

    def __enter__(self) -> list[Undo]:
        return self.undo

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            roll_back(self.undo)


def roll_back(undo: list[Undo]) -> None:
    """Undo what was done, the last first."""
    while undo:
        undo[-1]()
        undo.pop()


def keeps_mode(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Let a call leave gradients switched on or off as they were, wherever it is interrupted.

    An interrupt may fall into the very lines by which torch's own context managers put that back.
    """

    @wraps(function)
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        before = torch.is_grad_enabled()
        try:
            try:
                return function(*args, **kwargs)
            finally:
                torch._C._set_grad_enabled(before)
        finally:
            torch._C._set_grad_enabled(before)  # the interrupt may have come instead of the line above

    return call


def trains(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Let a call make tensors that can be trained with, in `torch.inference_mode()` too.

    Elsewhere torch's switch is left alone: one that an interrupt stops on the way in ends when its error is forgotten, and
    then brings back the modes of long ago.
    """

    @wraps(function)
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return call


def remember(graph: Graph) -> Undo:
    """Return what makes `graph` what it is now, whatever happens to it until then; tensors are not part of it."""
    program = graph.program
    values = [*program.tensors.values(), *(out for step in program.steps for out in step.outs())]
    holders = [graph, program, *graph.spaces, *program.steps, *values]
    attributes = [(vars(one), dict(vars(one))) for one in {id(one): one for one in holders}.values()]
    members: list[list[Any]] = [program.steps, program.outputs]
    lists = [(one, list(one)) for one in members]
    named: list[dict[str, Any]] = [program.tensors, *(step.args for step in program.steps)]
    tables = [(one, dict(one)) for one in named]
    dims = list(
        dict.fromkeys(dim for space in graph.spaces for leaf in leaves(space.dim) for dim in (leaf, *leaf.ragged))
    )
    sizes = [(dim, dim._count, dim.blocks) for dim in dims]

    def restore() -> None:
        for mine, before in attributes:
            mine.update(before)
        for mine, before in lists:
            mine[:] = before
        for mine, before in tables:
            mine.clear()
            mine.update(before)
        _resize(sizes)

    return restore


def _resize(sizes: list[tuple[Dim, int, tuple[int, ...]]]) -> None:
    for dim, count, blocks in sizes:
        dim._count, dim.blocks = count, blocks
