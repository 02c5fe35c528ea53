"""The living connections of one weight: who lives, how large, and who would be next."""

import math
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pared.ops.processes import BITS

#: Carries a tensor that belongs to a weight, entry by entry, over a change; what is new begins at the number.
Carry = Callable[[Tensor, float], Tensor]


class Follower(Protocol):
    """What depends on which entries of a weight live, as an optimizer does that holds rows on a sphere."""

    def connections_changed(self, param: Tensor, mask: Tensor, fresh: Tensor) -> None:
        """Follow a change of the living entries of a whole weight, boolean each, of which `fresh` have just come to life."""
        ...

    def pattern_changed(self, param: Tensor, crow: Tensor, source: Tensor) -> None:
        """Follow a change of the pattern in CSR of living weights, of which number i was number source[i], or is new (-1)."""
        ...


class Connections(Protocol):
    """Which entries of a weight live. Entries are numbered as in the flat weight, its units' axis first; a row makes one unit.

    `weight` is the parameter that holds the numbers: all of them, or those of the living, in their order. `shape` is that of
    the whole weight with the axis of units in front, `rows` its first size and `columns` the product of the others.
    """

    shape: torch.Size
    rows: int
    columns: int
    reduce: Callable[[Tensor], object] | None  # the mean of all processes, in place

    @property
    def weight(self) -> nn.Parameter:
        """The parameter that holds the numbers."""
        ...

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

    def entries(self, where: Tensor) -> Tensor:
        """Return the numbers of the living at which `where`, boolean of `weight`'s shape, is true."""
        ...

    def places(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return where in `weight` living entries are."""
        ...

    def attach(self) -> None:
        """Let dead entries have no gradient from the end of each backward pass on; twice is once."""
        ...

    def detach(self) -> None:
        """Take back what `attach` and `watch` did, and forget the gradient."""
        ...

    def watch(self) -> None:
        """Keep the gradient of all entries of the backward passes to come, added up as `grad` adds them up."""
        ...

    def keep_gradient(self) -> None:
        """Make sure of the gradient of all entries, before the step."""
        ...

    def forget_gradient(self) -> None:
        """Forget it."""
        ...

    def hold_gradient(self) -> None:
        """Let dead entries have no gradient."""
        ...

    def hold(self) -> None:
        """Let dead entries be exactly 0."""
        ...

    def gradient_at(self, index: Tensor) -> Tensor:
        """Return the loss's gradient of entries, dead ones as if they were there; like `index`."""
        ...

    def steepest(self, k: int | Tensor, also: Tensor) -> Tensor:
        """Return the `k` dead entries, or the `also`, of largest gradient; of each row if k is (rows,)."""
        ...

    def anywhere(self, k: int, generator: torch.Generator, also: Tensor) -> Tensor:
        """Return `k` dead entries, or the `also`, at random, by a generator of the CPU."""
        ...

    def begin(self) -> Carry:
        """Make dead weights 0, and what belongs to them too."""
        ...

    def change(self, drop: Tensor, grow: Tensor, values: Tensor | float = 0.0) -> Carry:
        """Let living entries `drop` die, and then dead entries `grow` live with these values."""
        ...

    def tell(self, follower: Follower, grow: Tensor) -> None:
        """Tell who lives after a change, and that living entries `grow` are new; its tensors were carried already."""
        ...

    def mirror(self, model: nn.Module, name: str) -> None:
        """Let the weight called `name` of an averaged copy have the same connections; new ones are 0 there."""
        ...


class Masked:
    """Connections kept in a dense weight, with exact zeros where none is, and a mask beside it.

    Once attached, dead entries of the weight's `grad` are 0 after every backward pass, so that what clips, logs or scales
    gradients sees those of the living, as it does in a sparse layer. Changes to `grad` that a loop makes itself are seen at the
    step only. Copies of this are not attached.

    `axis` is that of the weight's units; tensors of the weight's shape, as the mask is, keep it where it is.
    """

    def __init__(self, weight: nn.Parameter, mask: Tensor | None = None, axis: int = 0) -> None:
        self.weight, self.axis, self.shape = weight, axis, weight.movedim(axis, 0).shape
        self.mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device) if mask is None else mask
        self.rows, self.columns = self.shape[0], self.shape[1:].numel()
        self.dense: Tensor | None = None  # the gradient of all entries, while it is kept
        self.reduce: Callable[[Tensor], object] | None = None
        self._begin()

    def _begin(self) -> None:
        self._hook: Any = None
        self._watch: Any = None
        self._fresh = True
        self._living: tuple[Tensor | None, int, Tensor] = (None, 0, self.mask)  # as bits, and of which mask

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_hook", "_watch", "_fresh", "_living")  # a copied parameter has no hooks
        return {key: value for key, value in vars(self).items() if key not in left_out} | {"dense": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    @property
    def count(self) -> int:
        """How many live."""
        return int(self.mask.sum())

    def live(self) -> Tensor:
        """Return the numbers of the living, ascending, int64 (count,)."""
        return self.numbers(self.mask)

    def numbers(self, where: Tensor) -> Tensor:
        """Return the numbers of entries at which `where`, boolean of `weight`'s shape, is true, ascending."""
        return where.movedim(self.axis, 0).flatten().nonzero().flatten()

    @torch.no_grad()
    def values(self) -> Tensor:
        """Return their weights, (count,)."""
        return self.weight.movedim(self.axis, 0)[self.mask.movedim(self.axis, 0)]

    def entries(self, where: Tensor) -> Tensor:
        """Return the numbers of the living at which `where`, boolean of `weight`'s shape, is true."""
        return self.numbers(self.mask & where)

    def places(self, index: Tensor) -> tuple[Tensor, ...]:
        """Return where in `weight` entries are."""
        units, *inputs = torch.unravel_index(index, self.shape)  # a weight need not be contiguous
        return (*inputs[: self.axis], units, *inputs[self.axis :])

    # --- gradients ---

    def attach(self) -> None:
        """Let dead entries have no gradient from the end of each backward pass on; twice is once."""
        if self._hook is None and self.weight.requires_grad:
            me = weakref.ref(self)  # a weight outlives the session that let it be masked

            def accumulated(weight: Tensor) -> None:
                one = me()
                if one is not None:
                    one._accumulated(weight)

            self._hook = self.weight.register_post_accumulate_grad_hook(accumulated)

    def detach(self) -> None:
        """Take back what `attach` and `watch` did, and forget the gradient."""
        self.forget_gradient()
        if self._hook is not None:
            self._hook.remove()
        self._begin()

    def watch(self) -> None:
        """Keep the gradient of all entries of the backward passes to come, added up as `grad` adds them up."""
        if self._watch is None and self.weight.requires_grad:
            me = weakref.ref(self)

            def arrives(_: Tensor) -> None:
                one = me()
                if one is not None:
                    grad = one.weight.grad
                    one._fresh = grad is None or not bool(grad.any())

            self._watch = self.weight.register_hook(arrives)

    def _accumulated(self, weight: Tensor) -> None:
        """What arrives at dead entries is that of the last backward pass alone, as they were 0 before."""
        grad = weight.grad
        if grad is None or grad.shape != self.mask.shape:
            return
        if self._watch is not None:
            whole = grad.detach().clone()
            if self.dense is not None and not self._fresh:
                whole += torch.where(self.mask, 0.0, self.dense)
            self.dense = whole
        if grad.requires_grad:  # create_graph=True: the graph goes on from here, and what it saved stays as it is
            weight.grad = torch.where(self.mask, grad, 0.0)
        else:
            self._silence(grad)

    @torch.no_grad()
    def _silence(self, tensor: Tensor) -> None:
        """Make dead entries 0, whatever they are: no NaN stays, and on the CPU bits are ten times faster than a choice."""
        kind = BITS.get(tensor.itemsize)
        if kind is None or self.mask.is_inference():
            tensor.masked_fill_(~self.mask, 0.0)
            return
        mask, version, living = self._living
        if mask is not self.mask or version != self.mask._version or living.dtype != kind:
            living = self.mask.to(kind).neg_()  # all bits of the living
            self._living = self.mask, self.mask._version, living
        tensor.detach().view(kind).bitwise_and_(living)

    def keep_gradient(self) -> None:
        """Make sure of the gradient of all entries: what backward passes left, or else what the loop wrote into `grad`.

        It is the mean of all processes, and is scaled as the living's has been since (by a clipping, or a scaler's turn).
        """
        grad = self.weight.grad
        if self.dense is None:
            self.dense = torch.zeros_like(self.weight) if grad is None else grad.detach().clone()
        if self.reduce is not None:
            self.reduce(self.dense)
        if grad is not None:
            factor = self._scale(grad, self.dense)
            self.dense = self.dense if factor == 1.0 else self.dense * factor

    @torch.no_grad()
    def _scale(self, grad: Tensor, whole: Tensor) -> float:
        wide = torch.promote_types(grad.dtype, torch.float32)
        living = (whole * self.mask).flatten().to(wide)
        size = float(living.square().sum())
        factor = float((grad.flatten().to(wide) * living).sum()) / size if 0.0 < size < math.inf else 1.0
        return factor if math.isfinite(factor) and factor > 0.0 else 1.0

    def forget_gradient(self) -> None:
        """Forget it."""
        if self._watch is not None:
            self._watch.remove()
        self.dense, self._watch, self._fresh = None, None, True

    def gradient(self) -> Tensor:
        """Return the gradient that was kept, (rows, columns)."""
        assert self.dense is not None, "the gradient was not kept"
        return self.dense.movedim(self.axis, 0).reshape(self.rows, self.columns)

    def gradient_at(self, index: Tensor) -> Tensor:
        """Return the gradient that was kept of entries; like `index`."""
        return self.gradient().flatten()[index]

    @torch.no_grad()
    def hold_gradient(self) -> None:
        """Dead connections have no gradient, not even one that the loop wrote itself."""
        if self.weight.grad is not None:
            self._silence(self.weight.grad)

    @torch.no_grad()
    def hold(self) -> None:
        """Dead connections are exactly 0."""
        self._silence(self.weight)

    @torch.no_grad()
    def best(self, k: int | Tensor, worth: Tensor, also: Tensor | None = None) -> Tensor:
        """Return the `k` dead entries, or the `also`, of most `worth` (rows, columns); of each row if k is (rows,)."""
        open_ = ~self.mask.movedim(self.axis, 0).flatten()
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

    def steepest(self, k: int | Tensor, also: Tensor) -> Tensor:
        """Return the `k` dead entries, or the `also`, of largest gradient; of each row if k is (rows,)."""
        return self.best(k, self.gradient().abs(), also)

    def anywhere(self, k: int, generator: torch.Generator, also: Tensor) -> Tensor:
        """Return `k` dead entries, or the `also`, at random, by a generator of the CPU."""
        drawn = torch.rand(self.rows, self.columns, generator=generator)
        return self.best(k, drawn.to(self.mask.device), also)

    def begin(self) -> Carry:
        """Make dead weights 0, and what belongs to them too."""
        self.hold()
        return self._carry(self.numbers(~self.mask))

    @torch.no_grad()
    def change(self, drop: Tensor, grow: Tensor, values: Tensor | float = 0.0) -> Carry:
        """Let living entries `drop` die, and then dead entries `grow` live with these values."""
        self.mask[self.places(drop)] = False
        self.mask[self.places(grow)] = True
        self.weight[self.places(drop)] = 0.0
        values = torch.as_tensor(values, dtype=self.weight.dtype, device=self.weight.device)
        self.weight[self.places(grow)] = values
        return self._carry(torch.cat([drop, grow]))

    def tell(self, follower: Follower, grow: Tensor) -> None:
        """Tell who lives after a change, and that living entries `grow` are new; its tensors were carried already."""
        fresh = torch.zeros_like(self.mask)
        fresh[self.places(grow)] = True
        follower.connections_changed(self.weight, self.mask, fresh)

    @torch.no_grad()
    def mirror(self, model: nn.Module, name: str) -> None:
        """Let the weight called `name` of an averaged copy be 0 where this one is dead."""
        model.get_parameter(name).masked_fill_(~self.mask, 0.0)

    def _carry(self, index: Tensor) -> Carry:
        places = self.places(index)

        def carry(tensor: Tensor, fresh: float) -> Tensor:
            tensor[places] = fresh
            return tensor

        return carry
