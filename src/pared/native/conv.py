"""The compiled convolutions with a sparse weight, checked before any pointer is used; patterns as in `pared.native.csr`.

Images are (n, channels, height, width), contiguous on the CPU. The pattern is that of the weight, (out, in · positions),
forward by its rows, backward by its columns.
"""

import ctypes

from torch import Tensor

from pared.errors import ConfigError
from pared.native.csr import call, check_indices, check_numbers
from pared.ops.window import Window


def product(
    crow: Tensor, col: Tensor, values: Tensor, bias: Tensor | None, x: Tensor, window: Window, *, isa: int = -1
) -> Tensor:
    """Return the convolution of `x` plus `bias` (out,), (n, out, rows, columns).

    Raises:
        ConfigError: a tensor is not what the kernel takes.
    """
    out, size = check_indices(crow, col, None), _size(x, window)
    check_numbers(x, values=(values, col.shape), bias=(bias, (out,)))
    y = x.new_empty((len(x), out, *size))
    sizes = _numbers(x, out, size, window), len(col)
    call("conv", x, sizes, (crow, col, values, bias, x, y), isa, x.shape[1] * window.positions, len(col))
    return y


def backward(
    crow: Tensor,
    col: Tensor,
    perm: Tensor | None,
    values: Tensor | None,
    dy: Tensor,
    x: Tensor,
    window: Window,
    *,
    dots: bool = True,
    isa: int = -1,
) -> tuple[Tensor | None, Tensor | None]:
    """Return what `dy` (n, out, rows, columns) is to images like `x`, if there are `values`, and to these, if `dots`.

    Of `x` only the shape counts without `dots`. The pattern is that of the weight's transpose.

    Raises:
        ConfigError: a tensor is not what the kernel takes.
    """
    size = _size(x, window)
    if len(crow) - 1 != x.shape[1] * window.positions or dy.ndim != 4:
        raise ConfigError(
            f"expected crow ({x.shape[1]} channels · {window.positions} positions + 1,) and dy (n, out, rows, columns), got "
            f"{tuple(crow.shape)} and {tuple(dy.shape)}"
        )
    check_indices(crow, col, perm)
    check_numbers(x, values=(values, col.shape), dy=(dy, (len(x), dy.shape[1], *size)))
    dx, found = None if values is None else x.new_empty(x.shape), x.new_empty(len(col)) if dots else None
    sizes = _numbers(x, dy.shape[1], size, window), len(col)
    call("conv_backward", x, sizes, (crow, col, perm, values, dy, x, dx, found), isa, dy.shape[1], len(col))
    return dx, found


def _size(x: Tensor, window: Window) -> tuple[int, int]:
    if x.ndim != 4:
        raise ConfigError(f"expected images (n, channels, height, width), got {tuple(x.shape)}")
    size = window.out_size(*x.shape[2:])
    if min(size) < 1 or min(x.shape[1:]) < 1:
        raise ConfigError(f"images of shape {tuple(x.shape)} are smaller than the kernel of {window}")
    return size


def _numbers(x: Tensor, out: int, size: tuple[int, int], window: Window) -> ctypes.Array[ctypes.c_int64]:
    """Return the numbers of `Window` in conv.h."""
    n, channels, *image = x.shape
    corner = window.top, window.left
    given = n, channels, out, *image, *window.kernel, *window.stride, *corner, *window.dilation, *size
    return (ctypes.c_int64 * len(given))(*given)
