"""Take whole blocks out of a network: those that give back what they take, and branches that give nothing."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pared.errors import SurgeryError
from pared.surgery.apply import bare
from pared.surgery.axes import Cut
from pared.surgery.constants import Constants
from pared.surgery.graph import Graph
from pared.surgery.idle import count_arguments
from pared.surgery.operators import AVERAGES, MOVES, POSITIVE, SAME
from pared.surgery.optimizers import Optimizers
from pared.surgery.prune_masks import plain_view
from pared.surgery.stand_in import Kind, replace_modules
from pared.surgery.trace import Step, Value, tensors
from pared.surgery.whole import Whole, keeps_mode, remember

_POSITIVE_RESULT = ("relu", "relu6", "sigmoid", "softplus", "abs", "square", "exp", "softmax", "hardsigmoid")


@keeps_mode
@torch.no_grad()
def remove_blocks(
    model: nn.Module,
    names: Sequence[str],
    *,
    graph: Graph,
    silent: Sequence[str] = (),
    optimizer: Optimizers = None,
    ema: Iterable[nn.Module] = (),
) -> dict[str, Kind]:
    """Take the modules `names` out of `model`, its optimizer and averaged copies; return what stands in their place.

    A module whose result is its input, for every input, becomes `nn.Identity`: a residual block whose branch ends in
    zero weights, a zero gate or a zero norm. A branch whose result is zero and only added to something becomes
    `pared.nn.Zero`, which costs nothing. Parameters that are not used elsewhere leave the optimizer with their state.
    What the modules `silent` give is zero by the caller's word, as that of a gated one whose share is gone for good.
    All or nothing; call it between `optimizer.step()` and the next forward pass. The graph stays true.

    Raises:
        SurgeryError: no such module, one that is used more than once, one that takes more than one argument and is not
            zero, or one that still does something, with the reason.
    """
    model = bare(model)
    blocks = [_Block(graph, model, name) for name in names]
    zeros = _zero_summands(graph, model, {id(v) for name in silent for v in _Block(graph, model, name).results()})
    chosen: dict[str, Kind] = {block.name: block.kind(zeros) for block in blocks}
    with Whole() as undo:
        undo.append(remember(graph))
        replace_modules(chosen, model, undo, optimizer=optimizer, ema=ema)
        for block in blocks:
            block.leave(chosen[block.name])
    return chosen


def why_stays(graph: Graph, model: nn.Module, name: str) -> str | None:
    """Return why the module `name` and all modules around it have to stay although it gives 0; None if one can leave."""
    model, parts = bare(model), name.split(".")
    try:
        block = _Block(graph, model, name)
    except SurgeryError as error:
        return str(error)
    silent = {id(value) for value in block.results()}
    zeros = {id(s): [id(v) in silent for v in s.values()] for s in graph.program.steps if s.op in ("add", "sub")}
    for end in range(len(parts), 0, -1):
        try:
            _Block(graph, model, ".".join(parts[:end])).kind(zeros)
        except SurgeryError:
            continue
        return None
    readers = [f"{step.where()} ({step.op})" for step in block._readers(block.results()[-1])]
    who = f"{' and '.join(readers[:2])} reads" if readers else "the caller of the network gets"
    return f"module {name!r} stays at a share of 0: {who} its result, where a zero is not the same as nothing"


def results_of(graph: Graph, model: nn.Module, name: str) -> list[Value]:
    """Return what the module `name` gives, and what is made of that by steps that hand it on as it is.

    Raises:
        SurgeryError: it is called more than once, or gives several tensors.
    """
    return _Block(graph, bare(model), name).results()


def _zero_summands(graph: Graph, model: nn.Module, silent: Collection[int]) -> dict[int, list[bool]]:
    """For every addition, by the id of its step, whether each tensor it takes is zero at that time."""
    found: dict[int, list[bool]] = {}

    def watch(known: Constants, step: Step) -> None:
        if step.op in ("add", "sub"):
            found[id(step)] = [id(value) in silent or known.vanishes(value) for value in step.values()]

    Constants(graph.program, tensors(plain_view(model)), Cut({space.dim: () for space in graph.spaces}), watch)
    return found


def _spoilt(steps: Sequence[Step]) -> set[int]:
    """The values that are read, under one name or another, after something was written into them."""
    root: dict[int, int] = {}
    last: dict[int, int] = {}
    spoilt: set[int] = set()
    for place, step in enumerate(steps):
        for value in step.values():
            last[id(value)] = place
        if step.op in MOVES or step.op in SAME or step.inplace:
            root.update(
                {id(out): root.get(id(source), id(source)) for source in step.values()[:1] for out in step.outs()}
            )
    for place, step in enumerate(steps):
        if step.inplace:
            source = id(step.values()[0])
            same = {value for value in last if root.get(value, value) == root.get(source, source)}
            made_later = {id(out) for later in steps[place:] for out in later.outs()}
            spoilt |= {value for value in same - made_later if last[value] > place}
    return spoilt


class _Block:
    """A module as part of the program: its steps, the one value it takes, the one it gives."""

    def __init__(self, graph: Graph, model: nn.Module, name: str) -> None:
        self.graph, self.name = graph, name
        module = dict(model.named_modules()).get(name)
        paths = [path for path, other in model.named_modules(remove_duplicate=False) if other is module]
        if module is None or not name:
            raise SurgeryError(f"there is no module {name!r} to remove; name one of model.named_modules()")
        program = graph.program
        self.steps = [s for s in program.steps if s.layer == name or s.layer.startswith(f"{name}.")]
        inside = {id(value) for step in self.steps if step.op != "getitem" for value in step.outs()}
        taken = {id(v): v for s in self.steps for v in s.values() if id(v) not in inside and v.tensor is None}
        own = {id(step) for step in self.steps}
        read = {id(v) for s in program.steps if id(s) not in own and s.op != "getitem" for v in s.values()}
        read |= {id(value) for value in program.outputs}
        given = {id(v): v for s in self.steps for v in s.outs() if id(v) in read and id(v) in inside}
        arguments = count_arguments(module)
        if len(paths) > 1 or not taken or len(given) != 1:
            raise SurgeryError(
                f"module {name!r} cannot be removed: expected one that is used once, takes a tensor and gives one; it "
                f"has {len(paths)} names, {arguments} arguments, reads {len(taken)} and gives {len(given)} tensors"
            )
        # Zero needs no more; only what takes one tensor, and nothing else, can be the identity.
        self.single = len(taken) == 1 and arguments <= 1
        several = "" if self.single else f" (it has {arguments} arguments and reads {len(taken)} tensors)"
        self.told = f"its result is neither its input{several} nor zero for every input"
        (self.x, *_), (self.y,) = taken.values(), given.values()
        self.made = {id(value): step for step in program.steps if step.op != "getitem" for value in step.outs()}
        self.inside, self.spoilt = inside, _spoilt(program.steps)
        written = {id(step.values()[0]) for step in self.steps if step.inplace}
        if taken.keys() & (self.spoilt | written):
            raise SurgeryError(f"module {name!r} cannot be removed: it writes into what it takes")

    def results(self) -> list[Value]:
        """Return what the block gives, and what is made of that by steps that hand it on as it is, as dropout does."""
        return [self.y, *(step.out for step in self._tail())]

    def _tail(self) -> list[Step]:
        found: list[Step] = []
        value = self.y
        while id(value) not in map(id, self.graph.program.outputs):
            readers = self._readers(value)
            if len(readers) != 1 or readers[0].op not in SAME or readers[0].inplace or readers[0].op.endswith("_like"):
                break
            found += readers
            value = readers[0].out
        return found

    def kind(self, zeros: Mapping[int, Sequence[bool]]) -> Kind:
        """Return what the block can be replaced by.

        Raises:
            SurgeryError: it does something.
        """
        readers = self._readers(self.results()[-1])
        if readers and all(self._adds_nothing(step, zeros) for step in readers):
            return "zero"
        if self.single and self._source(self.y, zeros) is self.x:
            return "identity"
        raise SurgeryError(
            f"module {self.name!r} cannot be removed: {self.told}; let what "
            "it adds die first (its last norm, weights or gate at zero), or remove its units"
        )

    def _adds_nothing(self, step: Step, zeros: Mapping[int, Sequence[bool]]) -> bool:
        last = self.results()[-1]
        mine = [zero for value, zero in zip(step.values(), zeros.get(id(step), ()), strict=False) if value is last]
        return bool(mine) and all(mine) and self._other(step) is not None

    def _readers(self, value: Value) -> list[Step]:
        inside = {id(step) for step in self.steps}
        return [s for s in self.graph.program.steps if id(s) not in inside and any(v is value for v in s.values())]

    def _other(self, step: Step) -> Value | None:
        """What a step gives when the block gives zero: the other summand."""
        last = self.results()[-1]
        if step.op != "add" or not isinstance(step["other"], Value) or id(last) in map(id, self.graph.program.outputs):
            return None
        first, second = step["self"], step["other"]
        if step.inplace and first is last:
            return None  # what stands in its place has no room for a sum
        other = second if first is last and step.get("alpha", 1) == 1 else first
        return other if other is not last and (other.shape == step.out.shape or self._spread(other, step)) else None

    def _spread(self, other: Value, step: Step) -> bool:
        """Whether `other` is a number, as of a branch that is gone, that is added to a tensor shaped as what `step` gives."""
        return not other.shape and self._may_be_number(step.out)

    def _may_be_number(self, out: Value) -> bool:
        """Whether all that read `out` give what they did if it is a number: sums with tensors, at once or further on."""
        readers = self._readers(out)
        told = any(value is out for value in self.graph.program.outputs)
        return bool(readers) and not told and all(self._keeps_shape(reader, out) for reader in readers)

    def _keeps_shape(self, reader: Step, out: Value) -> bool:
        others = [value for value in reader.values() if value is not out]
        if reader.op != "add" or (reader.inplace and reader["self"] is out):
            return False
        return any(value.shape == reader.out.shape for value in others) or (
            not any(value.shape for value in others) and self._may_be_number(reader.out)
        )

    def _source(self, value: Value, zeros: Mapping[int, Sequence[bool]]) -> Value:
        """The value that `value` always equals, as far back as can be told."""
        step = self.made.get(id(value))
        if value is self.x or step is None or id(value) not in self.inside or id(value) in self.spoilt:
            return value
        values = step.values()
        if step.op in SAME and not step.op.endswith("_like"):
            return self._source(values[0], zeros)
        if step.op == "relu":
            source = self._source(values[0], zeros)
            return source if self._positive(source) else value
        if step.op in ("add", "sub") and len(values) == 2 and step.get("alpha", 1) == 1:
            alive = [place for place, zero in enumerate(zeros[id(step)]) if not zero]
            if alive in ([0], [1]) and values[alive[0]].shape == value.shape and (step.op == "add" or alive == [0]):
                return self._source(values[alive[0]], zeros)
        return value

    def _positive(self, value: Value) -> bool:
        """Whether no entry of `value` is ever below zero."""
        step = self.made.get(id(value))
        if step is None or id(value) in self.spoilt:
            return False
        if step.op in _POSITIVE_RESULT:
            return True
        same = step.op in SAME and not step.op.endswith("_like")
        passes = same or step.op in MOVES or step.op in AVERAGES or step.op in POSITIVE
        passes = passes or step.op in ("add", "mul", "pad", "constant_pad_nd")
        numbers = [v for k, v in step.args.items() if k in ("other", "value", "alpha") and isinstance(v, int | float)]
        return passes and all(map(self._positive, step.values())) and all(number >= 0 for number in numbers)

    def leave(self, kind: str) -> None:
        """Take the block out of the graph: whoever read its result reads its input; what it was added to stays alone."""
        program, gone = self.graph.program, {id(step) for step in self.steps}
        swaps = [(self.y, self.x)]
        if kind == "zero":
            readers = self._readers(self.results()[-1])
            swaps = [(step.out, other) for step in readers if (other := self._other(step)) is not None]
            gone |= {id(step) for step in (*readers, *self._tail())}
        program.steps[:] = [step for step in program.steps if id(step) not in gone]
        for old, new in swaps:
            for step in program.steps:
                for key, value in list(step.args.items()):
                    step.put(key, _swapped(value, old, new))
            program.outputs[:] = [new if value is old else value for value in program.outputs]
        for step in program.steps:
            if step.op == "add" and not any(value.shape for value in step.values()):
                step.out.dims = ()  # a sum of branches that are all gone
        self.graph.forget(self.name, gone, swaps)


def _swapped(item: Any, old: Value, new: Any) -> Any:
    if isinstance(item, list | tuple):
        return [_swapped(part, old, new) for part in item]
    return new if item is old else item
