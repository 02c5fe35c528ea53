"""New tensors from old ones, before anything old is touched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pared.surgery.plan import Gather

Undo = Callable[[], object]
_LAST = torch.channels_last
_Cut = tuple[int, Tensor, Tensor | None]  # axis, where to take from, which are new


@dataclass
class Draft:
    """Everything new, made before anything old is touched."""

    parameters: dict[int, nn.Parameter] = field(default_factory=dict)  # by id of the old one
    buffers: dict[int, Tensor] = field(default_factory=dict)
    biases: dict[str, nn.Parameter] = field(default_factory=dict)  # created where there was none
    cuts: dict[int, list[Gather]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    old: list[Tensor] = field(default_factory=list)  # keeps the ids above alive


class Taker:
    """Gather along axes; index tensors are made once for each index and device, and an index is checked once."""

    def __init__(self) -> None:
        # By identity, as plans share their index tuples, and a parameter, its gradient and state their cuts; what the
        # id belongs to is kept beside, so that it stays its own.
        self._cuts: dict[tuple[int, torch.device], tuple[Sequence[Gather], list[_Cut]]] = {}
        self._made: dict[tuple[int, torch.device], tuple[tuple[int, ...], Tensor, Tensor | None]] = {}
        self._ends: dict[int, tuple[tuple[int, ...], int, int]] = {}

    def __call__(self, tensor: Tensor, items: Sequence[Gather]) -> Tensor:
        """Return `tensor` with entry i of each item's axis taken from its `index[i]`, zero where that is -1."""
        key = (id(items), tensor.device)
        if key not in self._cuts:
            self._cuts[key] = (items, [(item.axis, *self._index(item.index, tensor.device)) for item in items])
        last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=_LAST)
        for axis, where, fresh in self._cuts[key][1]:
            tensor = tensor.index_select(axis, where)
            if fresh is not None:
                tensor.index_fill_(axis, fresh, 0)
        return tensor.contiguous(memory_format=_LAST) if last else tensor

    def _index(self, index: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor | None]:
        key = (id(index), device)
        if key not in self._made:
            where = torch.tensor(index, dtype=torch.long, device=device)
            fresh = (where < 0).nonzero().flatten() if -1 in index else None
            self._made[key] = (index, where if fresh is None else where.clamp(min=0), fresh)
        return self._made[key][1:]

    def ends(self, index: tuple[int, ...]) -> tuple[int, int]:
        """Return the least and the greatest entry, (-2, -2) of an empty index."""
        if id(index) not in self._ends:
            self._ends[id(index)] = (index, min(index, default=-2), max(index, default=-2))
        return self._ends[id(index)][1:]


def gather(tensor: Tensor, axis: int, index: tuple[int, ...]) -> Tensor:
    """Return `tensor` with entry i of `axis` taken from `index[i]`, zero where that is -1."""
    return Taker()(tensor, [Gather("", axis, index)])
