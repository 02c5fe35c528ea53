"""Connections of a sparse layer, of which nothing is kept that is dead."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pared.nn.sparse_layer import SparseLayer, gather
from pared.ops.pattern import Pattern, choose
from pared.topology.connections import Carry, Follower

#: Numbers of a gradient of dead connections that are in memory at a time.
BLOCK = 1 << 22


class Compressed:
    """Connections of a sparse layer: living weights and where they are, and no more.

    Gradients of dead connections are made of what the layer saw and what came back to it, a block of rows at a time.
    `watch` has to be called before the forward pass, so that these are kept.

    Args:
        layer: the layer.
        block: how many numbers of a gradient are in memory at a time, at least a row's.
    """

    def __init__(self, layer: SparseLayer, block: int = BLOCK) -> None:
        self.layer, self.block = layer, block
        self.shape = layer.shape
        self.rows, self.columns = self.shape[0], self.shape[1:].numel()
        self.reduce: Callable[[Tensor], object] | None = None  # the mean of all processes, in place

    @property
    def weight(self) -> nn.Parameter:
        """The living weights, (count,)."""
        return self.layer.values

    @property
    def count(self) -> int:
        """How many live."""
        return self.layer.count

    def live(self) -> Tensor:
        """Return the numbers of the living, ascending, int64 (count,)."""
        return self.layer.pattern.entries()

    def values(self) -> Tensor:
        """Return their weights, (count,)."""
        return self.layer.values.detach()

    def entries(self, where: Tensor) -> Tensor:
        """Return the numbers of the living at which `where`, boolean (count,), is true."""
        return self.live()[where]

    def places(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return where in `weight` living entries are."""
        return (torch.searchsorted(self.live(), index),)

    # --- gradients ---

    def attach(self) -> None:
        """Do nothing: dead connections have no gradient."""

    def detach(self) -> None:
        """Forget what was kept."""
        self.forget_gradient()

    def watch(self) -> None:
        """Keep what the next backward passes need for the gradients of dead connections."""
        self.layer.witness.start(self.weight)

    def keep_gradient(self) -> None:
        """Make sure that gradients can be made when they are asked for."""
        self.layer.witness.check()

    def forget_gradient(self) -> None:
        """Forget what was kept."""
        self.layer.witness.stop()

    def hold_gradient(self) -> None:
        """Do nothing: dead connections have none."""

    def hold(self) -> None:
        """Do nothing: dead connections are not there."""

    @torch.no_grad()
    def gradient_at(self, index: Tensor) -> Tensor:
        """Return the gradient of entries, dead ones as if they were there; like `index`."""
        row, column = index // self.columns, index % self.columns
        found = self.weight.new_zeros(len(index))
        for x, dy in self.layer.seen(self.block):
            step = max(1, self.block // max(1, x.shape[1]))
            for part in range(0, len(index), step):
                some = slice(part, part + step)
                found[some] += (dy[row[some]] * x[column[some]]).sum(1)
        return self._reduced(found)

    @torch.no_grad()
    def steepest(self, k: int | Tensor, also: Tensor) -> Tensor:
        """Return the `k` dead entries, or the `also`, of largest gradient; of each row if k is (rows,)."""
        chosen = self._steepest(k, also) if isinstance(k, int) else self._steepest_of_rows(k, also)
        return chosen.sort().values

    def _steepest(self, k: int, also: Tensor) -> Tensor:
        best, scores = torch.empty(0, dtype=torch.long), torch.empty(0)
        for first, open_, size in self._blocks(also):
            found = size.flatten().masked_fill_(~open_.flatten(), -torch.inf)
            top = found.topk(min(k, int(open_.sum())))
            best = torch.cat([best.to(found.device), top.indices + first * self.columns])
            scores = torch.cat([scores.to(found), top.values])
            kept = scores.topk(min(k, len(scores))).indices
            best, scores = best[kept], scores[kept]
        return best

    def _steepest_of_rows(self, k: Tensor, also: Tensor) -> Tensor:
        chosen = []
        for first, open_, size in self._blocks(also):
            order = size.masked_fill_(~open_, -torch.inf).argsort(dim=1, descending=True, stable=True)  # as masks do
            some = torch.minimum(k.to(order.device)[first : first + len(size)], open_.sum(1))
            taken = torch.arange(self.columns, device=order.device) < some.unsqueeze(1)
            start = torch.arange(first, first + len(size), device=order.device).unsqueeze(1) * self.columns
            chosen.append((order + start)[taken])
        return torch.cat(chosen)

    def _blocks(self, also: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield, a block of rows at a time: the first row, which entries are dead or the `also`, and |gradient|."""
        live, also = self.live(), also.sort().values
        step = max(1, self.block // self.columns)
        for first in range(0, self.rows, step):
            last = min(first + step, self.rows)
            open_ = torch.ones((last - first) * self.columns, dtype=torch.bool, device=live.device)
            bounds = torch.tensor([first, last], device=live.device) * self.columns
            for numbers, value in ((live, False), (also, True)):
                start, stop = torch.searchsorted(numbers, bounds).tolist()
                open_[numbers[start:stop] - first * self.columns] = value
            size = self.weight.new_zeros(last - first, self.columns)
            for x, dy in self.layer.seen(self.block):
                size += dy[first:last] @ x.t()
            yield first, open_.view(-1, self.columns), self._reduced(size).abs_()

    def _reduced(self, found: Tensor) -> Tensor:
        if self.reduce is not None:
            self.reduce(found)
        return found

    def anywhere(self, k: int, generator: torch.Generator, also: Tensor) -> Tensor:
        """Return `k` dead entries, or the `also`, at random, by a generator of the CPU."""
        live = self.live()
        closed = live[~torch.isin(live, also)]
        free = self.shape.numel() - len(closed)
        rank = choose(free, min(k, free), generator).to(live.device)
        # The free entry of rank r is r plus the number of closed ones before it.
        return rank + torch.searchsorted(closed - torch.arange(len(closed), device=live.device), rank, right=True)

    # --- changes ---

    def begin(self) -> Carry:
        """Return what carries tensors over no change: nothing is kept of dead weights."""
        return lambda tensor, fresh: tensor

    @torch.no_grad()
    def change(self, drop: Tensor, grow: Tensor, values: Tensor | float = 0.0) -> Carry:
        """Let living entries `drop` die, and then dead entries `grow` live with these values."""
        live = self.live()
        stay = (~torch.isin(live, drop)).nonzero().flatten()
        entries, order = torch.cat([live[stay], grow]).sort()
        source = torch.cat([stay, torch.full_like(grow, -1)])[order]
        self.layer.repattern(Pattern.from_entries(entries, self.rows, self.columns), source)
        new = source < 0
        values = torch.as_tensor(values, dtype=self.weight.dtype, device=self.weight.device).expand(len(grow))
        self.weight[new] = torch.cat([values.new_zeros(len(stay)), values])[order][new]

        def carry(tensor: Tensor, fresh: float) -> Tensor:
            return gather(tensor, source).masked_fill_(new, fresh)

        return carry

    def tell(self, follower: Follower, grow: Tensor) -> None:
        """Tell who lives after a change, and that living entries `grow` are new; its tensors were carried already."""
        source = torch.arange(self.count, device=self.weight.device)
        source[self.places(grow)] = -1
        follower.pattern_changed(self.weight, self.layer.crow, source)

    @torch.no_grad()
    def mirror(self, model: nn.Module, name: str) -> None:
        """Let the weight called `name` of an averaged copy have the same connections; new ones are 0 there."""
        layer = model.get_submodule(name.rpartition(".")[0])
        assert isinstance(layer, SparseLayer)
        layer.repattern(self.layer.pattern)
