"""What an axis is made of: leaves that live and die entry by entry, their products and their sums.

The channels of a convolution are a leaf. Flattened with a 7 x 7 image they become the product of three dims, the two
of the image fixed; concatenated with others, a sum. A fused query-key-value projection is a sum of three products of
heads and head size. `unify` says that two axes are the same, entry by entry, and works out what this means for the
leaves; whatever cannot be said in this algebra is frozen, with the reason, so that nothing is ever guessed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum


class Kind(Enum):
    """How a dim is made."""

    LEAF = "leaf"
    PRODUCT = "product"  # row-major, the first factor slowest
    SUM = "sum"  # one part after the other
    RAGGED = "ragged"  # entry j of one leaf stands for `blocks[j]` neighbouring entries


class Dim:
    """One axis, or a part of one.

    `fixed` says why no entry of a leaf can be removed, `label` what the entries are ("heads"), if that is known.
    """

    __slots__ = ("_count", "_link", "blocks", "fixed", "kind", "label", "parts", "ragged")

    def __init__(
        self,
        count: int = 0,
        *,
        kind: Kind = Kind.LEAF,
        parts: Sequence["Dim"] = (),
        blocks: Sequence[int] = (),
        fixed: str | None = None,
    ) -> None:
        self._count, self.kind, self.parts, self.blocks = count, kind, tuple(parts), tuple(blocks)
        self.fixed, self.label = fixed, ""
        self.ragged: list[Dim] = []  # the ragged dims of this leaf, whose blocks follow it
        self._link: Dim | None = None

    @property
    def size(self) -> int:
        """The number of entries, as of now."""
        dim = find(self)
        if dim.kind is Kind.LEAF:
            return dim._count
        if dim.kind is Kind.RAGGED:
            return sum(dim.blocks)
        sizes = [part.size for part in dim.parts]
        if dim.kind is Kind.SUM:
            return sum(sizes)
        total = 1
        for size in sizes:
            total *= size
        return total

    def shrink(self, keep: Sequence[int]) -> None:
        """Let this leaf have the entries `keep` only, of those it had."""
        self._count = len(keep)
        for dim in self.ragged:
            dim.blocks = tuple(dim.blocks[entry] for entry in keep)

    def become(self, other: "Dim") -> None:
        """Be the same dim as `other` from now on."""
        if other is not self:
            self._link = other


def find(dim: Dim) -> Dim:
    """Return the dim that stands for all those unified with `dim`."""
    while dim._link is not None:
        if dim._link._link is not None:
            dim._link = dim._link._link
        dim = dim._link
    return dim


def leaves(dim: Dim) -> Iterator[Dim]:
    """Yield the leaves that `dim` is made of, first to last; one that occurs twice comes twice."""
    dim = find(dim)
    if dim.kind is Kind.LEAF:
        yield dim
    for part in dim.parts:
        yield from leaves(part)


def freeze(dim: Dim, reason: str) -> None:
    """Let no entry of `dim` be removed any more, for `reason`; an earlier reason stands."""
    for leaf in leaves(dim):
        leaf.fixed = leaf.fixed or reason


def product(dims: Iterable[Dim]) -> Dim:
    """Return the row-major product of `dims`; those of size 1 do not count."""
    factors: list[Dim] = []
    for dim in map(find, dims):
        if dim.size != 1:
            factors += dim.parts if dim.kind is Kind.PRODUCT else (dim,)
    if not factors:
        return Dim(1)
    return factors[0] if len(factors) == 1 else Dim(kind=Kind.PRODUCT, parts=factors)


def total(dims: Iterable[Dim]) -> Dim:
    """Return the sum of `dims`, one after the other."""
    parts: list[Dim] = []
    for dim in map(find, dims):
        parts += dim.parts if dim.kind is Kind.SUM else (dim,) if dim.size else ()
    return parts[0] if len(parts) == 1 else Dim(kind=Kind.SUM, parts=parts)


def ragged(dim: Dim, blocks: Sequence[int]) -> Dim:
    """Return the dim in which entry j of `dim`, a leaf, stands for `blocks[j]` neighbours; frozen if it is none."""
    dim = find(dim)
    made = Dim(kind=Kind.RAGGED, parts=(dim,), blocks=blocks)
    if dim.kind is not Kind.LEAF:
        freeze(dim, "each of its entries stands for several others")
    dim.ragged.append(made)
    return made


def unify(first: Dim, second: Dim) -> None:
    """Say that two dims of one size are the same, entry by entry."""
    a, b = find(first), find(second)
    if a is b:
        return
    if a.size != b.size:
        raise AssertionError(f"dims of size {a.size} and {b.size} cannot be the same")
    if b.kind is Kind.LEAF and a.kind is not Kind.LEAF:
        a, b = b, a
    if a.kind is Kind.LEAF:
        if b.kind is Kind.LEAF:  # the older one stands, so that names stay where they were first given
            a, b = b, a
        if a.fixed:
            freeze(b, a.fixed)
        b.label = b.label or a.label
        b.ragged += a.ragged
        a.become(b)
    elif a.kind is Kind.SUM and b.kind is Kind.SUM:
        _align(a, b)
    elif a.kind is Kind.PRODUCT and b.kind is Kind.PRODUCT:
        _factor(a, b)
    elif Kind.SUM in (a.kind, b.kind) and Kind.PRODUCT in (a.kind, b.kind):
        _distribute(*((a, b) if a.kind is Kind.SUM else (b, a)))
    elif a.kind is Kind.RAGGED and b.kind is Kind.RAGGED and a.blocks == b.blocks:
        unify(a.parts[0], b.parts[0])
        a.become(b)
    else:
        _give_up(a, b)


def _give_up(*dims: Dim) -> None:
    for dim in dims:
        freeze(dim, "its entries are arranged in two ways that do not fit together")


def _align(a: Dim, b: Dim) -> None:
    """Two sums: cut both at the boundaries of either."""
    left, right = list(a.parts), list(b.parts)
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if x.size > y.size:
            x, rest = cut(x, y.size)
            left.insert(0, rest)
        elif y.size > x.size:
            y, rest = cut(y, x.size)
            right.insert(0, rest)
        unify(x, y)


def _factor(a: Dim, b: Dim) -> None:
    """Two products: factor the coarser one."""
    left, right = list(a.parts), list(b.parts)
    while left and right:
        x, y = find(left.pop(0)), find(right.pop(0))
        if x.size > y.size:
            halves = split(x, y.size)
            rest, other = left, right
        elif y.size > x.size:
            halves = split(y, x.size)
            rest, other = right, left
        else:
            unify(x, y)
            continue
        if halves is None:
            _give_up(a, b)
            return
        rest[:0] = halves
        other.insert(0, y if x.size > y.size else x)


def _distribute(added: Dim, multiplied: Dim) -> None:
    """A sum that is also a product: each part of the sum is the product with a part of the first factor."""
    rest: Dim | None = multiplied
    for part in added.parts:
        if rest is None:
            return
        if part.size == rest.size:
            unify(part, rest)
            rest = None
        else:
            piece, rest = cut(rest, part.size)
            unify(piece, part)


def split(dim: Dim, outer: int) -> tuple[Dim, Dim] | None:
    """Factor `dim` into `outer` and what is left, None where that cannot be said."""
    dim = find(dim)
    if dim.size % outer:
        return None
    if dim.kind is Kind.LEAF:
        halves = Dim(outer, fixed=dim.fixed), Dim(dim.size // outer, fixed=dim.fixed)
        dim.become(Dim(kind=Kind.PRODUCT, parts=halves))
        return halves
    if dim.kind is Kind.PRODUCT:
        taken: list[Dim] = []
        left = list(dim.parts)
        while outer > 1:
            first = find(left.pop(0))
            if outer % first.size:
                halves = split(first, outer)
                if halves is None:
                    return None
                first = halves[0]
                left.insert(0, halves[1])
            outer //= first.size
            taken.append(first)
        return product(taken), product(left)
    if dim.kind is Kind.SUM:
        size, pieces, rest = dim.size // outer, [], dim
        for _ in range(outer - 1):
            piece, rest = cut(rest, size)
            pieces.append(piece)
        for piece in pieces:
            unify(piece, rest)
        return Dim(outer, fixed="its entries are copies of one another"), rest
    return None


def cut(dim: Dim, at: int) -> tuple[Dim, Dim]:
    """Cut `dim` in two at position `at`, 0 < at < size; both halves are frozen where that cannot be said."""
    dim = find(dim)
    if dim.kind is Kind.LEAF:
        halves = Dim(at, fixed=dim.fixed), Dim(dim.size - at, fixed=dim.fixed)
        dim.become(Dim(kind=Kind.SUM, parts=halves))
        return halves
    if dim.kind is Kind.SUM:
        before: list[Dim] = []
        after = list(dim.parts)
        while at:
            part = after.pop(0)
            if part.size > at:
                part, rest = cut(part, at)
                after.insert(0, rest)
            before.append(part)
            at -= part.size
        return total(before), total(after)
    if dim.kind is Kind.PRODUCT:
        first, inner = dim.parts[0], dim.parts[1:]
        stride = product(inner).size
        if at % stride == 0:
            head, tail = cut(first, at // stride)
            return product((head, *inner)), product((tail, *inner))
    size = dim.size
    reason = "it is cut at a place that does not fit how its entries are arranged"
    freeze(dim, reason)
    return Dim(at, fixed=reason), Dim(size - at, fixed=reason)


def positions(dim: Dim, keep: Mapping[Dim, Sequence[int]]) -> list[int]:
    """Return which entries of `dim` are left, in order, when of each leaf in `keep` only those entries are."""
    dim = find(dim)
    if dim.kind is Kind.LEAF:
        return list(keep.get(dim, range(dim.size)))
    if dim.kind is Kind.RAGGED:
        starts = [0]
        for block in dim.blocks:
            starts.append(starts[-1] + block)
        return [i for j in positions(dim.parts[0], keep) for i in range(starts[j], starts[j + 1])]
    if dim.kind is Kind.SUM:
        found, start = [], 0
        for part in dim.parts:
            found += [start + i for i in positions(part, keep)]
            start += part.size
        return found
    found = [0]
    for part in dim.parts:
        size, inner = part.size, positions(part, keep)
        found = [outer * size + i for outer in found for i in inner]
    return found


def locate(dim: Dim, entry: int) -> Iterator[tuple[Dim, int]]:
    """Yield the entries of leaves that entry `entry` of `dim` stands for: one, or one of every factor of a product."""
    dim = find(dim)
    if dim.kind is Kind.LEAF:
        yield dim, entry
    elif dim.kind is Kind.PRODUCT:
        stride = dim.size
        for part in dim.parts:
            stride //= part.size
            yield from locate(part, entry // stride % part.size)
    else:
        for place, size in enumerate(dim.blocks if dim.kind is Kind.RAGGED else [part.size for part in dim.parts]):
            if entry < size:
                yield from locate(dim.parts[0], place) if dim.kind is Kind.RAGGED else locate(dim.parts[place], entry)
                return
            entry -= size


def describe(dim: Dim) -> str:
    """Return the structure of `dim` in short, as "(3 x (8 + 8))"."""
    dim = find(dim)
    if dim.kind is Kind.LEAF:
        return str(dim.size)
    if dim.kind is Kind.RAGGED:
        return f"blocks{list(dim.blocks)}"
    sign = " x " if dim.kind is Kind.PRODUCT else " + "
    return f"({sign.join(describe(part) for part in dim.parts)})"


class Cut:
    """Which entries stay of every dim, when only the entries `keep` of some leaves do; each worked out once."""

    def __init__(self, keep: Mapping[Dim, Sequence[int]]) -> None:
        self.keep = keep
        self._touched: dict[Dim, bool] = {}
        self._kept: dict[Dim, tuple[int, ...]] = {}

    def touches(self, dim: Dim) -> bool:
        """Tell whether `dim` loses entries."""
        dim = find(dim)
        if dim not in self._touched:
            self._touched[dim] = any(leaf in self.keep for leaf in leaves(dim))
        return self._touched[dim]

    def kept(self, dim: Dim) -> tuple[int, ...]:
        """Return the entries of `dim` that stay, in order."""
        dim = find(dim)
        if dim not in self._kept:
            self._kept[dim] = tuple(positions(dim, self.keep))
        return self._kept[dim]
