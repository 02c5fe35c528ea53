"""The living connections of one weight: who lives, how large, and who would be next."""

from typing import Protocol

import torch
from torch import Tensor, nn


class Connections(Protocol):
    """Which entries of a weight live. Entries are numbered as in the flat weight; a row makes one unit.

    `rows` and `columns` are the weight's first size and the product of the others.
    """

    rows: int
    columns: int

    @property
    def count(self) -> int:
        """How many live."""
        ...

    def live(self) -> Tensor:
        """Return the numbers of the living, ascending, int64 (count,)."""
        ...

    def values(self) -> Tensor:
        """Return their weights, (count,)."""
        ...

    def gradient(self) -> Tensor:
        """Return the loss's gradient for all entries, dead ones as if they were there, (rows, columns)."""
        ...

    def best(self, k: int | Tensor, worth: Tensor, also: Tensor | None = None) -> Tensor:
        """Return the `k` dead entries, or the `also`, of most `worth` (rows, columns); of each row if k is (rows,)."""
        ...

    def drop(self, index: Tensor) -> None:
        """Let living entries die: their weights are exactly 0 from now on."""
        ...

    def grow(self, index: Tensor, values: Tensor | float = 0.0) -> None:
        """Let dead entries live, with these weights."""
        ...


class Masked:
    """Connections kept in a dense weight, with exact zeros where none is, and a mask beside it."""

    def __init__(self, weight: nn.Parameter, mask: Tensor | None = None) -> None:
        self.weight = weight
        self.mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device) if mask is None else mask
        self.rows, self.columns = len(weight), weight[0].numel()
        self.dense: Tensor | None = None  # the gradient of all entries, while it is kept

    @property
    def count(self) -> int:
        """How many live."""
        return int(self.mask.sum())

    def live(self) -> Tensor:
        """Return the numbers of the living, ascending, int64 (count,)."""
        return self.mask.flatten().nonzero().flatten()

    @torch.no_grad()
    def values(self) -> Tensor:
        """Return their weights, (count,)."""
        return self.weight[self.mask]

    def keep_gradient(self) -> None:
        """Remember the gradient of all entries, before `hold_gradient` takes the dead ones' away."""
        grad = self.weight.grad
        self.dense = torch.zeros_like(self.weight) if grad is None else grad.detach().clone()

    def forget_gradient(self) -> None:
        """Forget it."""
        self.dense = None

    def gradient(self) -> Tensor:
        """Return the gradient that was kept, (rows, columns)."""
        assert self.dense is not None, "the gradient was not kept"
        return self.dense.reshape(self.rows, self.columns)

    @torch.no_grad()
    def hold_gradient(self) -> None:
        """Dead connections have no gradient."""
        if self.weight.grad is not None:
            self.weight.grad.mul_(self.mask)

    @torch.no_grad()
    def hold(self) -> None:
        """Dead connections are exactly 0."""
        self.weight.masked_fill_(~self.mask, 0.0)

    @torch.no_grad()
    def best(self, k: int | Tensor, worth: Tensor, also: Tensor | None = None) -> Tensor:
        """Return the `k` dead entries, or the `also`, of most `worth` (rows, columns); of each row if k is (rows,)."""
        open_ = ~self.mask.flatten()
        if also is not None:
            open_[also] = True
        scores = worth.reshape(self.rows, self.columns).masked_fill(~open_.view(self.rows, self.columns), -torch.inf)
        if isinstance(k, int):
            return scores.flatten().topk(min(k, int(open_.sum()))).indices.sort().values
        order = scores.argsort(dim=1, descending=True, stable=True)
        some = torch.minimum(k.to(order.device), open_.view(self.rows, self.columns).sum(1))
        taken = torch.arange(self.columns, device=order.device) < some.unsqueeze(1)
        first = torch.arange(self.rows, device=order.device).unsqueeze(1) * self.columns
        return (order + first)[taken].sort().values

    @torch.no_grad()
    def drop(self, index: Tensor) -> None:
        """Let living entries die: their weights are exactly 0 from now on."""
        self.mask.view(-1)[index] = False
        self._write(index, 0.0)

    @torch.no_grad()
    def grow(self, index: Tensor, values: Tensor | float = 0.0) -> None:
        """Let dead entries live, with these weights."""
        self.mask.view(-1)[index] = True
        self._write(index, values)

    def _write(self, index: Tensor, values: Tensor | float) -> None:
        places = torch.unravel_index(index, self.weight.shape)  # a weight need not be contiguous
        self.weight[places] = torch.as_tensor(values, dtype=self.weight.dtype, device=self.weight.device)
