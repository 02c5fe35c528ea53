"""A linear map with a sparse matrix, features-major."""

from torch import Tensor

from pared.errors import ConfigError
from pared.ops.csr import csr_product
from pared.ops.csr_torch import DEVICES, DTYPES
from pared.ops.pattern import Pattern


def sparse_linear(x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """Return A x + bias for the matrix A of `pattern` with these `values`; it can be derived any number of times.

    Features-major: a row of `x` is one feature of all samples, so that what a sparse layer reads lies together. What is
    not contiguous so is copied.

    Shapes: x (columns, batch), values (count,), bias (rows,) -> (rows, batch); float32 or float64, all of one type, on the
    CPU or a CUDA device.

    Raises:
        ConfigError: a shape, type or device is not as above.
    """
    check(x, values, bias, pattern.col)
    if x.ndim != 2 or x.shape[0] != pattern.columns:
        raise ConfigError(f"expected x ({pattern.columns}, batch), features first; got shape {tuple(x.shape)}")
    if values.shape != (pattern.count,) or (bias is not None and bias.shape != (pattern.rows,)):
        got = tuple(values.shape), None if bias is None else tuple(bias.shape)
        raise ConfigError(f"expected values ({pattern.count},) and bias ({pattern.rows},), got {got[0]} and {got[1]}")
    return csr_product(x.contiguous(), values, bias, *pattern.operands())


def check(x: Tensor, values: Tensor, bias: Tensor | None, index: Tensor) -> None:
    """Make sure that there are kernels for these tensors.

    Raises:
        ConfigError: they differ in type or device, or there are none for it.
    """
    dtype = values.dtype
    alike = x.is_cpu and x.dtype is dtype and (bias is None or (bias.is_cpu and bias.dtype is dtype))
    if alike and dtype in DTYPES and values.is_cpu and index.is_cpu:
        return  # told quickly, as it is so nearly always
    if values.dtype not in DTYPES:
        raise ConfigError(f"sparse layers compute in float32 or float64, got {values.dtype}; keep them in .float()")
    if values.device.type not in (*DEVICES, "meta"):
        raise ConfigError(f"sparse layers run on {' or '.join(DEVICES)}, got {values.device}; make them dense there")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and (tensor.dtype != values.dtype or tensor.device != values.device):
            raise ConfigError(
                f"expected {name} like the values, {values.dtype} on {values.device}; got {tensor.dtype} on {tensor.device}"
            )
    if index.device != values.device:
        raise ConfigError(f"expected the pattern where the values are, on {values.device}; got {index.device}")
