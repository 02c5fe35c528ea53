"""What each class of a batch adds to the gradient of a weight."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn import grad
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from pared.errors import ConfigError


@dataclass(frozen=True)
class Use:
    """A layer's input and the gradient of its output, samples first; `conv` are a convolution's settings."""

    x: Tensor
    dy: Tensor
    conv: tuple[Any, ...] | None


class Batch:
    """The classes of some samples, and what a pass over these samples has left, by weight."""

    def __init__(self, y: Tensor) -> None:
        self.y, self.samples = y, len(y)
        self.order = y.argsort(stable=True)
        numbers, counts = y.unique(return_counts=True)
        ends = counts.cumsum(0).tolist()
        self.present = list(zip(numbers.tolist(), [0, *ends], ends, strict=False))
        self.seen: dict[Tensor, list[Use]] = {}

    def see(self, weight: Tensor, x: Tensor, dy: Tensor, conv: tuple[Any, ...] | None) -> None:
        """Keep what a layer was given and what came back."""
        # Detached: the graph behind x knows this batch, and neither would ever be freed.
        self.seen.setdefault(weight, []).append(Use(x.detach(), dy, conv))


class Watch(TorchFunctionMode):
    """Let layers with one of the weights, by `id`, leave what they see in the batch, instead of making a gradient of it."""

    def __init__(self, weights: set[int], batch: Batch) -> None:
        super().__init__()
        self._weights, self._batch = weights, batch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = _KINDS.get(func)
        if kind is not None and torch.is_grad_enabled():
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if id(weight) in self._weights and weight.requires_grad:
                x, weight, *rest = kind.arguments(*args, **kwargs)
                if x.ndim < 1 or len(x) != self._batch.samples:
                    raise ConfigError(
                        f"expected {self._batch.samples} samples, one for each class given, on a layer's first axis; got "
                        f"{tuple(x.shape)}"
                    )
                return kind.apply(self._batch, x, weight, *rest)
        return func(*args, **kwargs)


class _Linear(torch.autograd.Function):
    @staticmethod
    def arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
        """What `F.linear` is called with, in order."""
        return input, weight, bias

    @staticmethod
    def forward(ctx: Any, batch: Batch, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.batch, ctx.weight = batch, weight  # what is saved may come back as a copy
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,) = grad_outputs
        x, weight = (t.to(dy.dtype) for t in ctx.saved_tensors)  # which is another one under autocast
        ctx.batch.see(ctx.weight, x, dy, None)
        needs_x, needs_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[3]
        dx = dy @ weight if needs_x else None
        return None, dx, None, dy.sum(tuple(range(dy.ndim - 1))) if needs_bias else None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def arguments(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> tuple[Any, ...]:
        """What `F.conv2d` is called with, in order, and padding in numbers."""
        if padding == "same":
            wide = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
            input = F.pad(input, [part for total in wide[::-1] for part in (total // 2, total - total // 2)])
        return input, weight, bias, stride, 0 if isinstance(padding, str) else padding, dilation, groups

    @staticmethod
    def forward(ctx: Any, batch: Batch, x: Tensor, weight: Tensor, bias: Tensor | None, *conv: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.batch, ctx.weight, ctx.conv = batch, weight, conv
        return F.conv2d(x, weight, bias, *conv)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,) = grad_outputs
        x, weight = (t.to(dy.dtype) for t in ctx.saved_tensors)
        ctx.batch.see(ctx.weight, x, dy, ctx.conv)
        needs_x, needs_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[3]
        dx = grad.conv2d_input(x.shape, weight, dy, *ctx.conv) if needs_x else None
        return None, dx, None, dy.sum((0, 2, 3)) if needs_bias else None, *[None] * len(ctx.conv)


_KINDS: dict[Callable[..., Any], Any] = {F.linear: _Linear, F.conv2d: _Conv2d}


def shares(seen: Sequence[tuple[Batch, Sequence[Use]]], weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield what the samples of each class that is there add to the gradient: its number and a tensor like `weight`.

    Uses and batches add up, and all classes to the gradient.
    """
    parts: dict[int, list[tuple[Tensor, Tensor, tuple[Any, ...] | None]]] = {}
    for batch, uses in seen:
        for use in uses:
            x, dy = (t.index_select(0, batch.order) for t in (use.x, use.dy))
            for number, begin, end in batch.present:
                parts.setdefault(number, []).append((x[begin:end], dy[begin:end], use.conv))
    for number in sorted(parts):
        found = [_share(x, dy, conv, weight).to(weight.dtype) for x, dy, conv in parts[number]]
        yield number, found[0] if len(found) == 1 else torch.stack(found).sum(0)


def singles(seen: Sequence[tuple[Batch, Sequence[Use]]]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the classes, inputs and output gradients of samples in a linear layer if each is the only one of its class."""
    if len(seen) != 1 or len(seen[0][1]) != 1:
        return None
    batch, (use,) = seen[0]
    if use.conv is not None or use.x.ndim != 2 or len(batch.present) != batch.samples:
        return None
    return batch.y, use.x, use.dy


def _share(x: Tensor, dy: Tensor, conv: tuple[Any, ...] | None, weight: Tensor) -> Tensor:
    if conv is not None:
        return grad.conv2d_weight(x, weight.shape, dy, *conv)
    return dy.flatten(0, -2).t() @ x.flatten(0, -2)
