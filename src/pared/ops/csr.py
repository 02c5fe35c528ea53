"""Torch operators of a sparse matrix times a dense one, which autograd, `torch.compile` and `torch.export` see.

A matrix A (rows, columns) is a vector of values and its pattern, twice: (crow, col, perm) by rows and (crow_t, col_t,
perm_t) by columns, each in CSR. Entry i of either has the number perm[i] in the values, or i where that is None: the
transpose is the two swapped, and no value is ever copied. Dense matrices are (features, batch). All derivatives are made of
these same operators, so that they can be derived as often as one likes. They carry no derivatives forward, and torch lets
none of its functions derive them; where that is asked for, as by `torch.func.jvp` or `grad`, the functions here compute with
torch's own operators instead, which need memory for a row of the dense matrix per entry.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from pared.errors import ConfigError
from pared.native import csr as native
from pared.ops import csr_torch
from pared.ops.pattern import rows_of
from pared.ops.plain import forwarding, plain, transformed

#: A pattern, by rows and by columns: what comes last in every function here.
Both = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]
#: The same in an operator's schema.
PATTERN = "Tensor crow, Tensor col, Tensor? perm, Tensor crow_t, Tensor col_t, Tensor? perm_t"


def csr_product(x: Tensor, values: Tensor, bias: Tensor | None, *pattern: *Both) -> Tensor:
    """Return A x + bias, (rows, batch), for `x` (columns, batch), `values` (entries,) and `bias` (rows,)."""
    if plain(x, values, bias, *pattern[:3]):
        return _product_now(x, values, bias, *pattern[:3])
    return (_plain_product if transformed() else _product)(x, values, bias, *pattern)


def csr_dots(dy: Tensor, x: Tensor, *pattern: *Both) -> Tensor:
    """Return <dy[row], x[column]> for each entry, (entries,), for `dy` (rows, batch) and `x` (columns, batch)."""
    return (_plain_dots if transformed() else _dots)(dy, x, *pattern)


def csr_backward(dy: Tensor, x: Tensor, values: Tensor, *pattern: *Both) -> tuple[Tensor, Tensor]:
    """Return the transpose of A times `dy`, (columns, batch), and `csr_dots`, (entries,), at once."""
    if transformed():
        return csr_product(dy, values, None, *_transposed(pattern)), csr_dots(dy, x, *pattern)
    return _backward(dy, x, values, *pattern)


def refuse_forwarding() -> None:
    """Make sure that an operator that was called as such does not lose derivatives: torch would take them to be 0."""
    if forwarding():
        raise ConfigError(
            "pared's operators carry no derivatives forward, as torch.func.jvp asks for; call pared.ops.sparse_linear or "
            "a sparse layer, uncompiled"
        )


def _plain_product(x: Tensor, values: Tensor, bias: Tensor | None, *pattern: *Both) -> Tensor:
    crow, col, perm, *_ = pattern
    ordered = values if perm is None else values.index_select(0, perm)
    terms = ordered.unsqueeze(1) * x.index_select(0, col)
    out = terms.new_zeros((crow.shape[0] - 1, x.shape[1])).index_add(0, rows_of(crow, col.shape[0]), terms)
    return out if bias is None else out + bias.unsqueeze(1)


def _plain_dots(dy: Tensor, x: Tensor, *pattern: *Both) -> Tensor:
    crow, col, perm, *_ = pattern
    found = (dy.index_select(0, rows_of(crow, col.shape[0])) * x.index_select(0, col)).sum(1)
    return found if perm is None else torch.zeros_like(found).index_copy(0, perm.long(), found)


def _product_now(
    x: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, perm: Tensor | None
) -> Tensor:
    kernels = native if native.serves(x) else csr_torch
    offset = None if bias is None else bias.contiguous()
    return kernels.product(crow, col, perm, values.contiguous(), offset, x.contiguous())


@custom_op(
    "pared::csr_product", mutates_args=(), schema=f"(Tensor x, Tensor values, Tensor? bias, {PATTERN}) -> Tensor"
)
def _product(x: Tensor, values: Tensor, bias: Tensor | None, *pattern: *Both) -> Tensor:
    refuse_forwarding()
    return _product_now(x, values, bias, *pattern[:3])


@custom_op("pared::csr_dots", mutates_args=(), schema=f"(Tensor dy, Tensor x, {PATTERN}) -> Tensor")
def _dots(dy: Tensor, x: Tensor, *pattern: *Both) -> Tensor:
    refuse_forwarding()
    kernels = native if native.serves(x) else csr_torch
    return kernels.dots(*pattern[:3], dy.contiguous(), x.contiguous())


@custom_op(
    "pared::csr_backward",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor x, Tensor values, {PATTERN}) -> (Tensor, Tensor)",
)
def _backward(dy: Tensor, x: Tensor, values: Tensor, *pattern: *Both) -> tuple[Tensor, Tensor]:
    refuse_forwarding()
    dy, x, values = dy.contiguous(), x.contiguous(), values.contiguous()
    if native.serves(x):
        return native.backward(*pattern[3:], values, x, dy)
    return csr_torch.product(*pattern[3:], values, None, dy), csr_torch.dots(*pattern[:3], dy, x)


@_product.register_fake
def _(x: Tensor, values: Tensor, bias: Tensor | None, *pattern: *Both) -> Tensor:
    return x.new_empty((pattern[0].shape[0] - 1, x.shape[1]))


@_dots.register_fake
def _(dy: Tensor, x: Tensor, *pattern: *Both) -> Tensor:
    return x.new_empty((pattern[1].shape[0],))


@_backward.register_fake
def _(dy: Tensor, x: Tensor, values: Tensor, *pattern: *Both) -> tuple[Tensor, Tensor]:
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


def _transposed(pattern: Any) -> Any:
    return (*pattern[3:], *pattern[:3])


_product.register_autograd(_product_backward, setup_context=_save_product)
_dots.register_autograd(_dots_backward, setup_context=_save_all)
_backward.register_autograd(_backward_backward, setup_context=_save_all)
