"""The processes that train one network together, and what they agree on."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

#: Integers as wide as numbers are, by bytes.
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Processes:
    """`size` processes, of which this is number `rank`; alone it is 0 of 1, and nothing is sent.

    `wrapped` says whether a `DistributedDataParallel` keeps their networks equal.
    """

    group: Any = None
    rank: int = 0
    size: int = 1
    wrapped: bool = False

    @classmethod
    def of(cls, model: nn.Module | None = None) -> "Processes":
        """Return those of a `DistributedDataParallel`, else all of the process group that was initialised, if one was."""
        wrapped = isinstance(model, DistributedDataParallel)
        if not wrapped and not (dist.is_available() and dist.is_initialized()):
            return cls()
        group = model.process_group if wrapped else None
        return cls(group, dist.get_rank(group), dist.get_world_size(group), wrapped)

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def mean_(self, tensor: Tensor) -> Tensor:
        """Make `tensor` the mean of all processes, in place."""
        if self.several:
            dist.all_reduce(tensor, group=self.group)
            tensor /= self.size
        return tensor

    def most_(self, tensor: Tensor) -> Tensor:
        """Make each entry of `tensor` the largest of all processes, in place."""
        if self.several:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def first(self, number: int, device: torch.device) -> int:
        """Return the number of process 0."""
        if not self.several:
            return number
        told = torch.tensor([number], device=device)
        dist.broadcast(told, group=self.group, group_src=0)
        return int(told)

    @torch.no_grad()
    def unlike(self, tensors: dict[str, Tensor]) -> str | None:
        """Return the name of the first of the tensors whose bits are not the same in all processes, None if all are."""
        if not self.several or not tensors:
            return None
        sums = [_bits(tensor).sum(dtype=torch.int64) for tensor in tensors.values()]
        mine = torch.stack([one.to(sums[0].device) for one in sums])
        both = self.most_(torch.cat([mine, -mine]))
        differs = both[: len(mine)] != -both[len(mine) :]
        return next((name for name, other in zip(tensors, differs.tolist(), strict=True) if other), None)


def _bits(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.detach().view(BITS[tensor.itemsize])
