"""Prove a graph before it is used: grow every space by a few entries and see that the same program comes out.

Reshapes with sizes written in the code, attributes that hold a size, factors computed from a size, entries picked by
number: all of them look innocent in one trace. In the trace of a network grown as the graph says, each makes a
difference, and then its dims are frozen, or the attribute that has to follow is found. Nothing is copied or computed:
the grown network has no content.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.process import forked_random
from pared.surgery.axes import Dim, Kind, describe, find, freeze, leaves, product
from pared.surgery.graph import Attribute, Builder, Consumer, Space, build, name_spaces
from pared.surgery.operators import POINTWISE
from pared.surgery.trace import Example, Step, arguments, evaluating, flat, hollow

_ROUNDS = 12
_TRIALS = 64
_COUNT = re.compile(r"^(n|num|number)_?((attention|attn|query|q|key_value|kv)_)?heads?$|^heads$")

Candidate = tuple[str, str, Dim]  # module, attribute, the dim whose size it may hold


class Rehearsal:
    """The growing of one traced network; `run` freezes what cannot follow, and adds the attributes that must."""

    def __init__(self, model: nn.Module, example: Example, builder: Builder) -> None:
        self.model, self.example, self.builder = model, example, builder
        self.found: dict[tuple[str, ...], tuple[tuple[str, str], ...]] = {}
        self.failed: dict[tuple[str, ...], str] = {}
        self.traced: set[tuple[str, ...]] = set()  # patterns of spaces that were grown alone and traced
        self.served: set[Dim] = set()  # spaces whose attributes were found
        self.device: str | None = "meta"
        if self._runs({}) is not None:  # a forward pass that looks at values needs some
            self.device = None

    def run(self) -> None:
        """Repeat until the grown network traces to the grown program."""
        for _ in range(_ROUNDS):
            # How many entries each factor of a ragged dim stands for is written in a buffer, which is not made up here.
            spaces = [s for s in name_spaces(self.builder) if s.fixed is None and not s.dim.ragged]
            grown = grow(spaces)
            if not grown:
                return
            trouble = self._runs(grown)
            culprits = self._compare(grown) if trouble is None else []
            if trouble is None and not culprits:
                self._count_heads()
                return
            if self._sort_out(spaces, {leaf for dim, _ in culprits for leaf in leaves(dim)}):
                continue
            if culprits:
                self._convict(culprits, grown)
            else:
                self._reconcile(spaces)
        for space in name_spaces(self.builder):
            freeze(space.dim, "growing the network does not give the grown program")

    def _convict(self, culprits: Sequence[tuple[Dim, str]], grown: Mapping[Dim, int]) -> None:
        """Freeze those culprits that make a difference alone, or all of them if only together they do."""
        suspects = {leaf: reason for dim, reason in culprits for leaf in leaves(dim) if leaf in grown}
        guilty = suspects
        if len(suspects) > 1:
            guilty = {leaf: reason for leaf, reason in suspects.items() if self._compare({leaf: grown[leaf]})}
        for leaf, reason in (guilty or suspects).items():
            freeze(leaf, reason)

    def _sort_out(self, spaces: Sequence[Space], suspects: Collection[Dim]) -> bool:
        """Find the spaces that cannot grow alone, and the attributes by which they can; tell whether there were any.

        A size that is written as a number may fit the grown network by luck, as (4, 9) has as many entries as (6, 6).
        So spaces that are reshaped have to trace to the grown program, not only to run.
        """
        looked = {leaf for step in self.builder.program.steps if step.op in _SIZED for leaf in _leaves(step)}
        looked |= set(suspects)
        mended = False
        for space in spaces:
            grown, key = grow([space]), _pattern(space)
            if key in self.failed:
                freeze(space.dim, self.failed[key])
                mended = True
                continue
            trouble = self._alone(space, grown, key, looked)
            if space.dim in self.served or (trouble is None and key not in self.found):
                continue
            chosen = self._search(space, grown, self.found.get(key))
            if chosen is not None:
                self.found[key] = tuple((name, describe(dim)) for _, name, dim in chosen)
                self.builder.attributes += [Attribute(*candidate) for candidate in chosen]
                self.served.add(space.dim)
            elif trouble is not None:
                self.failed[key] = trouble
                freeze(space.dim, trouble)
            mended |= chosen is not None or trouble is not None
        return mended

    def _alone(
        self, space: Space, grown: Mapping[Dim, int], key: tuple[str, ...], looked: Collection[Dim]
    ) -> str | None:
        """Return why the space cannot grow alone, None if it can.

        Of spaces in repeated blocks the first is traced; whether the others are right shows when all grow together.
        """
        trouble = self._runs(grown)
        if trouble is not None:
            where = next((s.where() for s in self._touching(space) if s.op in _SIZED), "the network")
            return f"{where} uses its size as a number ({trouble})"
        if key in self.traced or space.dim not in looked:
            return None
        self.traced.add(key)
        return next((reason for _, reason in self._compare(grown)), None)

    def _reconcile(self, spaces: Sequence[Space]) -> None:
        """Freeze spaces that can grow alone, and not together with those before them."""
        grown: dict[Dim, int] = {}
        for space in spaces if self._runs(grow(spaces)) is not None else ():
            more = {**grown, space.dim: grow(spaces)[space.dim]}
            trouble = self._runs(more)
            if trouble is None:
                grown = more
            else:
                freeze(space.dim, f"it cannot change beside other spaces ({trouble})")

    def _search(
        self, space: Space, grown: Mapping[Dim, int], before: tuple[tuple[str, str], ...] | None
    ) -> tuple[Candidate, ...] | None:
        """Return the fewest attributes which, following the space, let the network run."""
        candidates = self._candidates(space)
        if before is not None:  # what helped a layer of the same kind comes first
            first = tuple(c for c in candidates if (c[1], describe(c[2])) in before)
            if first and self._runs(grown, first) is None:
                return first
        trials = 0
        for count in (1, 2, 3):
            for chosen in combinations(candidates, count):
                if len({(module, name) for module, name, _ in chosen}) < count:
                    continue
                trials += 1
                if trials > _TRIALS:
                    return None
                if self._runs(grown, chosen) is None and self._proved(grown, chosen):
                    more = self._named_alike(space, chosen, candidates)
                    return (*chosen, *more) if more and self._proved(grown, (*chosen, *more)) else chosen
        return None

    def _named_alike(
        self, space: Space, chosen: tuple[Candidate, ...], candidates: Sequence[Candidate]
    ) -> tuple[Candidate, ...]:
        """A number of heads that the forward pass does not need should be true all the same."""
        if space.dim.label != "heads":
            return ()
        taken = {c[1] for c in chosen}
        alike = {c[:2]: c for c in candidates if _COUNT.search(c[1]) and find(c[2]) is space.dim and c[1] not in taken}
        return tuple(alike.values())

    def _proved(self, grown: Mapping[Dim, int], attributes: Sequence[Candidate]) -> bool:
        """Whether the network, grown with these attributes, traces to the grown program; a run alone may be luck."""
        before = list(self.builder.attributes)
        self.builder.attributes += [Attribute(*candidate) for candidate in attributes]
        try:
            return not self._compare(grown)
        finally:
            self.builder.attributes[:] = before

    def _count_heads(self) -> None:
        """Let numbers of heads that the traced path does not read follow, too: another path may."""
        summed = {leaf for c in self.builder.consumers if not c.weight or c.weight.tensor is None for leaf in _of(c)}
        already = {(a.module, a.name) for a in self.builder.attributes}
        found: dict[tuple[str, str], tuple[int, Attribute]] = {}
        for space in name_spaces(self.builder):
            if space.fixed is not None or space.dim in summed or space.dim.ragged or not self._is_factor(space):
                continue
            for module, name, dim in self._candidates(space):
                rank = len(space.slots) + (1000 if space.dim.label == "heads" else 0)
                if _COUNT.search(name) and dim is space.dim and rank > found.get((module, name), (0, None))[0]:
                    found[module, name] = rank, Attribute(module, name, dim)
        chosen = [(a.module, a.name, a.dim) for key, (_, a) in found.items() if key not in already]
        spaces = [space for space in name_spaces(self.builder) if space.fixed is None and not space.dim.ragged]
        if chosen and self._proved(grow(spaces), chosen):
            self.builder.attributes += [Attribute(*candidate) for candidate in chosen]

    def _is_factor(self, space: Space) -> bool:
        """Whether an axis of a parameter is the product of this space and others, as heads are of a projection."""
        dims = [self.builder.program.tensors[slot.tensor].dims[slot.axis] for slot in space.slots]
        return any(space.dim in part.parts for dim in dims for part in _pieces(dim) if part.kind is Kind.PRODUCT)

    def _candidates(self, space: Space) -> list[Candidate]:
        found: dict[tuple[str, str, str, tuple[Dim, ...]], Candidate] = {}
        for step in self._touching(space):
            pieces = [p for v in flat([step.out, *step.args.values()]) for dim in v.dims for p in _pieces(dim)]
            pieces = [piece for piece in pieces if space.dim in leaves(piece)]
            for layer in _enclosing(step.layer):
                for name, number in vars(self.model.get_submodule(layer)).items():
                    if type(number) is not int or name.startswith("_"):
                        continue
                    for dim in pieces:
                        if dim.size == number:
                            key = (layer, name, describe(dim), tuple(leaves(dim)))
                            found.setdefault(key, (layer, name, dim))
        already = {(a.module, a.name) for a in self.builder.attributes}
        return [c for c in found.values() if c[:2] not in already]

    def _touching(self, space: Space) -> Iterator[Step]:
        for step in self.builder.program.steps:
            if any(space.dim in leaves(dim) for value in flat([step.out, *step.args.values()]) for dim in value.dims):
                yield step

    def _runs(self, grown: Mapping[Dim, int], attributes: Sequence[Candidate] = ()) -> str | None:
        """Run the grown network without any content; return what went wrong, None if nothing."""
        try:
            model = self._grown(grown, attributes, self.device)
            args, kwargs = arguments(self._widened(grown, self.device))
            with forked_random(), evaluating(model), torch.no_grad():
                out = model(*args, **kwargs)
        except Exception as error:
            return str(error).strip().split("\n")[0][:160]
        shapes = [tuple(t.shape) for t in _tensors_in(out)]
        wanted = [value.shape for value in self.builder.program.outputs]
        if len(shapes) == len(wanted) and shapes != wanted:
            return f"an output has shape {shapes[0]} instead of {wanted[0]}"
        return None

    def _grown(self, grown: Mapping[Dim, int], attributes: Sequence[Candidate], device: str | None) -> nn.Module:
        sizes = {
            name: tuple(grown_size(dim, grown) for dim in value.dims)
            for name, value in self.builder.program.tensors.items()
        }
        model = hollow(self.model, sizes, device)
        for module, name, dim in (*((a.module, a.name, a.dim) for a in self.builder.attributes), *attributes):
            setattr(model.get_submodule(module), name, grown_size(dim, grown))
        return model

    def _widened(self, grown: Mapping[Dim, int], device: str | None) -> Example:
        """The example, its inputs as large as the grown network takes them."""
        sizes = [tuple(grown_size(dim, grown) for dim in value.dims) for value in self.builder.program.inputs]
        fitting = iter(sizes)

        def fit(tensor: Tensor) -> Tensor:
            shape = next(fitting, tuple(tensor.shape))
            same = shape == tuple(tensor.shape) or len(shape) != tensor.ndim
            wide = tensor if same else tensor.new_zeros(shape)
            return wide if device is None else wide.to(device)

        return changed(self.example, fit)

    def _compare(self, grown: Mapping[Dim, int]) -> list[tuple[Dim, str]]:
        """Trace the grown network; return the dims that did not grow as they should, with the reason."""
        try:
            other = build(self._grown(grown, (), None), self._widened(grown, None), inputs=self.builder.inputs)
        except (SurgeryError, AssertionError) as error:
            return [(dim, f"the grown network cannot be traced ({error})") for dim in grown]
        mine, theirs = self.builder.program, other.program
        for step, twin in zip(mine.steps, theirs.steps, strict=False):
            if step.target is not twin.target:
                return _blame(step, f"{step.where()} does something else when its size changes")
            difference = _difference(step, twin, grown)
            if difference:
                return _blame(step, f"{step.where()} {difference}")
        for name, value in mine.tensors.items():
            for dim, twin in zip(value.dims, theirs.tensors[name].dims, strict=True):
                if not _alike(dim, twin, grown):
                    return [(dim, f"parts of {name!r} are told apart by their place")]
        return []


#: Operators that take a size as a number.
_SIZED = {
    "view",
    "reshape",
    "_unsafe_view",
    "unflatten",
    "expand",
    "split",
    "split_with_sizes",
    "zeros",
    "new_zeros",
    "slice",
}


def _leaves(step: Step) -> Iterator[Dim]:
    for value in flat([step.out, *step.args.values()]):
        for dim in value.dims:
            yield from leaves(dim)


def _of(consumer: Consumer) -> Iterator[Dim]:
    return leaves(consumer.operand.dims[consumer.axis])


def _pieces(dim: Dim) -> Iterator[Dim]:
    """Yield `dim`, and what it is made of: factors, products of neighbouring factors, and parts of a sum."""
    dim = find(dim)
    yield dim
    count = len(dim.parts)
    if dim.kind is Kind.PRODUCT:
        for length in range(count - 1, 1, -1):
            yield from (product(dim.parts[start : start + length]) for start in range(count - length + 1))
    for part in dim.parts:
        yield from _pieces(part)


def _enclosing(path: str) -> Iterator[str]:
    """Yield the name of a module and of those around it, innermost first."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def grow(spaces: Sequence[Space]) -> dict[Dim, int]:
    """Return new sizes for the leaves of `spaces`, each grown by another number, so that a missing tie shows.

    No two numbers differ by one: `chunk` would round that away.
    """
    return {space.dim: space.size + 2 + 3 * (place % 499) for place, space in enumerate(spaces)}


def grown_size(dim: Dim, grown: Mapping[Dim, int]) -> int:
    """Return the size that `dim` has when its leaves are as large as `grown` says."""
    dim = find(dim)
    if dim.kind in (Kind.LEAF, Kind.RAGGED):
        return grown.get(dim, dim.size)
    sizes = [grown_size(part, grown) for part in dim.parts]
    if dim.kind is Kind.SUM:
        return sum(sizes)
    result = 1
    for size in sizes:
        result *= size
    return result


def _difference(step: Step, twin: Step, grown: Mapping[Dim, int]) -> str | None:
    mine = [tuple(grown_size(dim, grown) for dim in value.dims) for value in flat([step.out])]
    theirs = [value.shape for value in flat([twin.out])]
    if mine != theirs:
        return "gives another shape than expected when its size changes"
    kinds = (int, float) if step.op in POINTWISE else float
    for name, value in step.args.items():
        if isinstance(value, kinds) and value != twin.args.get(name):
            return f"computes a factor from its size ({value:g})"
    return None


def _alike(dim: Dim, twin: Dim, grown: Mapping[Dim, int]) -> bool:
    """Tell whether `twin` is `dim`, grown: the same tree of the same sizes."""
    dim, twin = find(dim), find(twin)
    if grown_size(dim, grown) != twin.size:
        return False
    if not any(leaf in grown for leaf in leaves(dim)):
        return True
    return (
        dim.kind is twin.kind
        and len(dim.parts) == len(twin.parts)
        and all(_alike(one, two, grown) for one, two in zip(dim.parts, twin.parts, strict=True))
    )


def _blame(step: Step, reason: str) -> list[tuple[Dim, str]]:
    return [(dim, reason) for value in flat([step.out, *step.args.values()]) for dim in value.dims]


def _pattern(space: Space) -> tuple[str, ...]:
    """What spaces of the same place in repeated blocks have in common."""
    layer, _, part = space.name.rpartition(":")
    name = f"{re.sub(r'[0-9]+', '#', layer)}:{part}" if layer else re.sub(r"[0-9]+", "#", part)
    return (name, str(space.size), *(f"{re.sub(r'[0-9]+', '#', slot.tensor)}[{slot.axis}]" for slot in space.slots))


def changed(example: Example, change: Callable[[Tensor], Tensor]) -> Any:
    """Return `example` with each of its tensors changed, in their order."""
    if isinstance(example, Tensor):
        return change(example)
    if isinstance(example, Mapping):
        return {key: changed(value, change) for key, value in example.items()}
    if isinstance(example, list | tuple):
        return type(example)(changed(value, change) for value in example)
    return example


def _tensors_in(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _tensors_in(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from _tensors_in(value)
