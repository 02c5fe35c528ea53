"""Torch operators of a convolution whose weight is a sparse matrix, as those of `pared.ops.csr` are of products.

The weight (channels out, channels in · positions) is a vector of values and its pattern. Images are (n, channels, height,
width), contiguous; `window` is `Window.numbers()`. The three operators are each other's derivatives: the convolution, its
transpose in the image, and its transpose in the values.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from pared.native import conv as native
from pared.native.csr import serves
from pared.ops import csr_torch
from pared.ops.csr import PATTERN, Both, csr_product, refuse_forwarding
from pared.ops.plain import plain, transformed
from pared.ops.window import Window


def csr_conv(x: Tensor, values: Tensor, bias: Tensor | None, window: Window, *pattern: *Both) -> Tensor:
    """Return the convolution of `x` (n, in, height, width) plus `bias` (out,), (n, out, rows, columns)."""
    if plain(x, values, bias, *pattern[:3]):
        return _conv_now(x, values, bias, window, *pattern[:3])
    if transformed():
        y = csr_product(window.unfold(x), values, bias, *pattern)
        return _images(y, len(x), window.out_size(*x.shape[2:]))
    return _conv(x, values, bias, window.numbers(), *pattern)


def _images(y: Tensor, n: int, size: tuple[int, int]) -> Tensor:
    """(out, n · rows · columns) -> (n, out, rows, columns)."""
    return y.view(len(y), n, *size).transpose(0, 1).contiguous()


def _matrix(y: Tensor) -> Tensor:
    """(n, out, rows, columns) -> (out, n · rows · columns)."""
    return y.transpose(0, 1).flatten(1).contiguous()


def _conv_now(
    x: Tensor, values: Tensor, bias: Tensor | None, window: Window, crow: Tensor, col: Tensor, perm: Tensor | None
) -> Tensor:
    x, values, offset = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    if serves(x):
        return native.product(crow, col, values, offset, x, window)
    y = csr_torch.product(crow, col, perm, values, offset, window.unfold(x))
    return _images(y, len(x), window.out_size(*x.shape[2:]))


@custom_op(
    "pared::csr_conv",
    mutates_args=(),
    schema=f"(Tensor x, Tensor values, Tensor? bias, int[] window, {PATTERN}) -> Tensor",
)
def _conv(x: Tensor, values: Tensor, bias: Tensor | None, window: list[int], *pattern: *Both) -> Tensor:
    refuse_forwarding()
    return _conv_now(x, values, bias, Window.of(window), *pattern[:3])


@custom_op(
    "pared::csr_conv_backward",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor x, Tensor values, int[] window, {PATTERN}) -> (Tensor, Tensor)",
)
def _backward(dy: Tensor, x: Tensor, values: Tensor, window: list[int], *pattern: *Both) -> tuple[Tensor, Tensor]:
    refuse_forwarding()
    over, dy, x, values = Window.of(window), dy.contiguous(), x.contiguous(), values.contiguous()
    if serves(x):
        return native.backward(*pattern[3:], values, dy, x, over)  # pyright: ignore[reportReturnType]
    columns, rows = over.unfold(x), _matrix(dy)
    dx = csr_torch.product(*pattern[3:], values, None, rows)
    return over.fold(dx, len(x), *x.shape[2:]), csr_torch.dots(*pattern[:3], rows, columns)


@custom_op(
    "pared::csr_conv_transposed",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor values, SymInt height, SymInt width, int[] window, {PATTERN}) -> Tensor",
)
def _transposed(dy: Tensor, values: Tensor, height: int, width: int, window: list[int], *pattern: *Both) -> Tensor:
    refuse_forwarding()
    over, dy, values = Window.of(window), dy.contiguous(), values.contiguous()
    if serves(dy):
        like = dy.new_empty((len(dy), (len(pattern[3]) - 1) // over.positions, height, width))
        return native.backward(*pattern[3:], values, dy, like, over, dots=False)[0]  # pyright: ignore[reportReturnType]
    return over.fold(csr_torch.product(*pattern[3:], values, None, _matrix(dy)), len(dy), height, width)


@custom_op("pared::csr_conv_dots", mutates_args=(), schema=f"(Tensor dy, Tensor x, int[] window, {PATTERN}) -> Tensor")
def _dots(dy: Tensor, x: Tensor, window: list[int], *pattern: *Both) -> Tensor:
    refuse_forwarding()
    over, dy, x = Window.of(window), dy.contiguous(), x.contiguous()
    if serves(x):
        return native.backward(*pattern[3:], None, dy, x, over)[1]  # pyright: ignore[reportReturnType]
    return csr_torch.dots(*pattern[:3], _matrix(dy), over.unfold(x))


@_conv.register_fake
def _(x: Tensor, values: Tensor, bias: Tensor | None, window: list[int], *pattern: *Both) -> Tensor:
    size = Window.of(window).out_size(*x.shape[2:])
    return x.new_empty((x.shape[0], pattern[0].shape[0] - 1, *size))


@_backward.register_fake
def _(dy: Tensor, x: Tensor, values: Tensor, window: list[int], *pattern: *Both) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(values, memory_format=torch.contiguous_format)


@_transposed.register_fake
def _(dy: Tensor, values: Tensor, height: int, width: int, window: list[int], *pattern: *Both) -> Tensor:
    channels = (pattern[3].shape[0] - 1) // Window.of(window).positions
    return dy.new_empty((dy.shape[0], channels, height, width))


@_dots.register_fake
def _(dy: Tensor, x: Tensor, window: list[int], *pattern: *Both) -> Tensor:
    return x.new_empty((pattern[1].shape[0],))


def _save_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, ctx.window, *pattern = inputs
    needs_x, needs_values = ctx.needs_input_grad[:2]
    ctx.size = x.shape[2:]
    ctx.save_for_backward(x if needs_values else None, values if needs_x else None, *pattern)


def _conv_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *pattern = ctx.saved_tensors
    needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
    dx = dvalues = None
    if needs_x and needs_values:
        dx, dvalues = _backward(dy, x, values, ctx.window, *pattern)
    elif needs_x:
        dx = _transposed(dy, values, *ctx.size, ctx.window, *pattern)
    elif needs_values:
        dvalues = _dots(dy, x, ctx.window, *pattern)
    return dx, dvalues, dy.sum((2, 3)).sum(0) if needs_bias else None, *[None] * 7


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, x, values, ctx.window, *pattern = inputs
    ctx.save_for_backward(dy, x, values, *pattern)


def _backward_backward(ctx: Any, gx: Tensor, gvalues: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, values, *pattern = ctx.saved_tensors
    window, (needs_dy, needs_x, needs_values) = ctx.window, ctx.needs_input_grad[:3]
    both = (_conv(gx, values, None, window, *pattern) + _conv(x, gvalues, None, window, *pattern)) if needs_dy else None
    return (
        both,
        _transposed(dy, gvalues, *x.shape[2:], window, *pattern) if needs_x else None,
        _dots(dy, gx, window, *pattern) if needs_values else None,
        *[None] * 7,
    )


def _save_transposed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, values, _, _, ctx.window, *pattern = inputs
    ctx.save_for_backward(dy, values, *pattern)


def _transposed_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    dy, values, *pattern = ctx.saved_tensors
    needs_dy, needs_values = ctx.needs_input_grad[:2]
    return (
        _conv(g, values, None, ctx.window, *pattern) if needs_dy else None,
        _dots(dy, g, ctx.window, *pattern) if needs_values else None,
        *[None] * 9,
    )


def _save_dots(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, x, ctx.window, *pattern = inputs
    ctx.save_for_backward(dy, x, *pattern)


def _dots_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, *pattern = ctx.saved_tensors
    needs_dy, needs_x = ctx.needs_input_grad[:2]
    return (
        _conv(x, g, None, ctx.window, *pattern) if needs_dy else None,
        _transposed(dy, g, *x.shape[2:], ctx.window, *pattern) if needs_x else None,
        *[None] * 7,
    )


_conv.register_autograd(_conv_backward, setup_context=_save_conv)
_backward.register_autograd(_backward_backward, setup_context=_save_backward)
_transposed.register_autograd(_transposed_backward, setup_context=_save_transposed)
_dots.register_autograd(_dots_backward, setup_context=_save_dots)
