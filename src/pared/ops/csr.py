"""Torch operators of a sparse matrix times a dense one, which autograd, `torch.compile` and `torch.export` see.

A matrix A (rows, columns) is a vector of values and its pattern, twice: (crow, col, perm) by rows and (crow_t, col_t,
perm_t) by columns, each in CSR. Entry i of either has the number perm[i] in the values, or i where that is None: the
transpose is the two swapped, and no value is ever copied. Dense matrices are (features, batch). All derivatives are made of
these same operators, so that they can be derived as often as one likes.
"""

from typing import Any

import torch
from torch import Tensor

from pared.native import csr as native
from pared.ops import csr_torch


@torch.library.custom_op("pared::csr_product", mutates_args=())
def csr_product(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    perm: Tensor | None,
    crow_t: Tensor,
    col_t: Tensor,
    perm_t: Tensor | None,
) -> Tensor:
    """Return A x + bias, (rows, batch), for `x` (columns, batch), `values` (entries,) and `bias` (rows,)."""
    kernels = native if native.serves(x) else csr_torch
    offset = None if bias is None else bias.contiguous()
    return kernels.product(crow, col, perm, values.contiguous(), offset, x.contiguous())


@torch.library.custom_op("pared::csr_dots", mutates_args=())
def csr_dots(
    dy: Tensor,
    x: Tensor,
    crow: Tensor,
    col: Tensor,
    perm: Tensor | None,
    crow_t: Tensor,
    col_t: Tensor,
    perm_t: Tensor | None,
) -> Tensor:
    """Return <dy[row], x[column]> for each entry, (entries,), for `dy` (rows, batch) and `x` (columns, batch)."""
    kernels = native if native.serves(x) else csr_torch
    return kernels.dots(crow, col, perm, dy.contiguous(), x.contiguous())


@torch.library.custom_op("pared::csr_backward", mutates_args=())
def csr_backward(
    dy: Tensor,
    x: Tensor,
    values: Tensor,
    crow: Tensor,
    col: Tensor,
    perm: Tensor | None,
    crow_t: Tensor,
    col_t: Tensor,
    perm_t: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the transpose of A times `dy`, (columns, batch), and `csr_dots`, (entries,), at once."""
    dy, x, values = dy.contiguous(), x.contiguous(), values.contiguous()
    if native.serves(x):
        return native.backward(crow_t, col_t, perm_t, values, x, dy)
    return csr_torch.product(crow_t, col_t, perm_t, values, None, dy), csr_torch.dots(crow, col, perm, dy, x)


@csr_product.register_fake
def _(x: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, *rest: Tensor | None) -> Tensor:
    return x.new_empty((crow.shape[0] - 1, x.shape[1]))


@csr_dots.register_fake
def _(dy: Tensor, x: Tensor, crow: Tensor, col: Tensor, *rest: Tensor | None) -> Tensor:
    return x.new_empty((col.shape[0],))


@csr_backward.register_fake
def _(dy: Tensor, x: Tensor, values: Tensor, *pattern: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(values)


def _save_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, *pattern = inputs
    needs_x, needs_values = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_values else None, values if needs_x else None, *pattern)


def _product_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, values, *pattern = ctx.saved_tensors
    needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
    dx = dvalues = None
    if needs_x and needs_values:
        dx, dvalues = csr_backward(dy, x, values, *pattern)
    elif needs_x:
        dx = csr_product(dy, values, None, *_transposed(pattern))
    elif needs_values:
        dvalues = csr_dots(dy, x, *pattern)
    return dx, dvalues, dy.sum(1) if needs_bias else None, *[None] * 6


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _dots_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, *pattern = ctx.saved_tensors
    needs_dy, needs_x = ctx.needs_input_grad[:2]
    return (
        csr_product(x, g, None, *pattern) if needs_dy else None,
        csr_product(dy, g, None, *_transposed(pattern)) if needs_x else None,
        *[None] * 6,
    )


def _backward_backward(ctx: Any, gx: Tensor, gvalues: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, values, *pattern = ctx.saved_tensors
    needs_dy, needs_x, needs_values = ctx.needs_input_grad[:3]
    return (
        csr_product(gx, values, None, *pattern) + csr_product(x, gvalues, None, *pattern) if needs_dy else None,
        csr_product(dy, gvalues, None, *_transposed(pattern)) if needs_x else None,
        csr_dots(dy, gx, *pattern) if needs_values else None,
        *[None] * 6,
    )


def _transposed(pattern: list[Tensor | None]) -> list[Any]:
    return [*pattern[3:], *pattern[:3]]


csr_product.register_autograd(_product_backward, setup_context=_save_product)
csr_dots.register_autograd(_dots_backward, setup_context=_save_all)
csr_backward.register_autograd(_backward_backward, setup_context=_save_all)
