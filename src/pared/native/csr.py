"""The compiled products of a sparse and a dense matrix, checked before any pointer is used.

Tensors are on the CPU and contiguous; numbers are float32 or float64, all of one type; indices are int32. (crow, col) is a
pattern of `rows` rows in CSR whose columns ascend and lie inside `inner`; its entry i has the number perm[i] in values, or i
where `perm` is None. The kernels look at that each time, since what `pared.ops.Pattern` has checked can be changed.
`isa` asks for an instruction set of `loading.INSTRUCTIONS`, -1 for the best there is; results are the same for any number of
threads.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.native.loading import Library, library

#: What kernels of these numbers are called.
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def serves(x: Tensor) -> bool:
    """Whether the kernels are there and take tensors like `x`."""
    return x.dtype in SUFFIX and x.is_cpu and library() is not None


def product(
    crow: Tensor,
    col: Tensor,
    perm: Tensor | None,
    values: Tensor,
    bias: Tensor | None,
    x: Tensor,
    *,
    relu: bool = False,
    isa: int = -1,
) -> Tensor:
    """Return A x + bias, (rows, batch), for the matrix A with these `values` (entries,); `bias` is (rows,), `x` (inner, batch).

    With `relu` numbers below 0 become 0.

    Raises:
        ConfigError: a tensor is not what the kernel takes.
    """
    sizes = _check_pattern(crow, col, perm, x)
    check_numbers(x, values=(values, (sizes[3],)), bias=(bias, (sizes[0],)))
    out = x.new_empty((sizes[0], sizes[2]))
    call("product", x, sizes, (crow, col, perm, values, bias, x, out), isa, sizes[1], sizes[3], int(relu))
    return out


class _Link(ctypes.Structure):
    """One layer of a `stack`, as kernels.cpp has it."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("rows", "inner", "entries")],
        *[(name, ctypes.c_void_p) for name in ("crow", "col", "values", "bias")],
        ("relu", ctypes.c_int64),
    )


def stack(layers: Sequence[tuple[Tensor, Tensor, Tensor, Tensor | None, bool]], x: Tensor, *, isa: int = -1) -> Tensor:
    """Return what layers A x + bias make of `x` (inner, batch) one after the other, (rows of the last, batch).

    There is one layer at least, each (crow, col, values, bias, relu); with `relu` numbers below 0 become 0. `x` may be the
    transpose of a contiguous matrix, and is turned then. What lies between layers is memory that is kept for the next call.

    Raises:
        ConfigError: a tensor is not what the kernel takes.
    """
    flat = x if x.is_contiguous() else x.t()
    inner, batch = x.shape
    links = (_Link * len(layers))()
    for one, (crow, col, values, bias, relu) in zip(links, layers, strict=True):
        rows, entries = check_indices(crow, col, None), col.shape[0]
        check_numbers(flat, values=(values, (entries,)), bias=(bias, (rows,)))
        one.rows, one.inner, one.entries, one.relu = rows, inner, entries, relu
        one.crow, one.col, one.values = crow.data_ptr(), col.data_ptr(), values.data_ptr()
        one.bias = None if bias is None else bias.data_ptr()
        inner = rows
    out = x.new_empty((inner, batch))
    sizes, pointers = (len(layers), batch), (x.data_ptr(), out.data_ptr())
    code = _function("stack", x)(links, *sizes, *pointers, flat is not x, isa, torch.get_num_threads())
    _refuse(code, "stack", x, *((one.inner, one.entries) for one in links))
    return out


def dots(crow: Tensor, col: Tensor, perm: Tensor | None, held: Tensor, x: Tensor, *, isa: int = -1) -> Tensor:
    """Return <held[row], x[col]> for each entry, (entries,); `held` is (rows, batch), `x` (inner, batch).

    Raises:
        ConfigError: a tensor is not what the kernel takes.
    """
    sizes = _check_pattern(crow, col, perm, x)
    check_numbers(x, held=(held, (sizes[0], sizes[2])))
    out = x.new_empty(sizes[3])
    call("dots", x, sizes, (crow, col, perm, held, x, out), isa, sizes[1], sizes[3])
    return out


def backward(
    crow: Tensor, col: Tensor, perm: Tensor | None, values: Tensor, held: Tensor, x: Tensor, *, isa: int = -1
) -> tuple[Tensor, Tensor]:
    """Return `product` without a bias and `dots`, (rows, batch) and (entries,), reading the rows of `x` once for both.

    Raises:
        ConfigError: a tensor is not what the kernel takes.
    """
    sizes = _check_pattern(crow, col, perm, x)
    check_numbers(x, values=(values, (sizes[3],)), held=(held, (sizes[0], sizes[2])))
    out, dotted = x.new_empty((sizes[0], sizes[2])), x.new_empty(sizes[3])
    call("backward", x, sizes, (crow, col, perm, values, held, x, out, dotted), isa, sizes[1], sizes[3])
    return out, dotted


def _check_pattern(crow: Tensor, col: Tensor, perm: Tensor | None, x: Tensor) -> tuple[int, int, int, int]:
    """Return rows, inner size, batch and entries."""
    if x.ndim != 2:
        raise ConfigError(f"expected x (features, batch), got {tuple(x.shape)}")
    rows = check_indices(crow, col, perm)
    inner, batch = x.shape
    return rows, inner, batch, col.shape[0]


def check_indices(crow: Tensor, col: Tensor, perm: Tensor | None) -> int:
    """Make sure of types and lengths, and return the number of rows; the kernels look at the numbers.

    Raises:
        ConfigError: one is not as the kernels take it.
    """
    ends = crow.shape[0] if crow.ndim == 1 else 0
    if col.ndim != 1 or ends < 1 or (perm is not None and perm.shape != col.shape):
        shapes = [None if t is None else tuple(t.shape) for t in (crow, col, perm)]
        raise ConfigError(f"expected crow (rows + 1,), col and perm (entries,); got {shapes}")
    for name, index in (("crow", crow), ("col", col), ("perm", perm)):
        if index is not None and not (index.dtype is torch.int32 and index.is_cpu and index.is_contiguous()):
            raise ConfigError(
                f"{name} must be a contiguous int32 tensor on the CPU, got {index.dtype} on {index.device}"
            )
    return ends - 1


def check_numbers(x: Tensor, **others: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Make sure that all numbers are of one type that there is a kernel for, in the shapes that are given.

    Raises:
        ConfigError: they are not.
    """
    dtype = x.dtype
    if dtype not in SUFFIX or not x.is_cpu or not x.is_contiguous():
        raise ConfigError(f"x must be contiguous float32 or float64 on the CPU, got {x.dtype} on {x.device}")
    for name, (tensor, shape) in others.items():
        if tensor is None:
            continue
        if tensor.dtype is not dtype or not tensor.is_cpu or not tensor.is_contiguous() or tensor.shape != shape:
            raise ConfigError(
                f"{name} must be contiguous {x.dtype} on {x.device} of shape {shape}; got {tensor.dtype} on "
                f"{tensor.device} of shape {tuple(tensor.shape)}"
            )


def call(
    name: str,
    x: Tensor,
    sizes: tuple[Any, ...],
    tensors: tuple[Tensor | None, ...],
    isa: int,
    inner: int,
    entries: int,
    *switches: int,
) -> None:
    """Run a kernel on as many threads as torch uses.

    Raises:
        ConfigError: the indices lead outside of `inner` columns and `entries` entries, or there are no kernels.
        MemoryError: there is none for scratch.
    """
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    code = _function(name, x)(*sizes, *pointers, *switches, isa, torch.get_num_threads())
    _refuse(code, name, x, (inner, entries))


def _function(name: str, x: Tensor) -> Any:
    opened: Library | None = library()
    if opened is None:
        raise ConfigError("the compiled kernels are not there; see pared.show_config()")
    return opened.functions[f"pared_{name}_{SUFFIX[x.dtype]}"]


def _refuse(code: int, name: str, x: Tensor, *sizes: tuple[int, int]) -> None:
    """Raise what a kernel's code stands for, if it is not 0; `sizes` are the columns and entries of its patterns."""
    if code == 1:
        raise MemoryError(f"no memory for the scratch of a sparse {name} of shape {tuple(x.shape)}")
    if code:
        entries = " or ".join(str(one) for _, one in sizes)
        last, most = (" or ".join(str(one[k] - 1) for one in sizes) for k in (0, 1))
        raise ConfigError(
            f"crow must ascend from 0 to the {entries} entries of col, the columns of a row must ascend in 0 to {last}, and "
            f"perm must lie in 0 to {most}; make patterns with pared.ops.Pattern.from_csr"
        )
