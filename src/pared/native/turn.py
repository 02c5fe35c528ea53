"""The compiled transpose."""

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.native.csr import SUFFIX, serves
from pared.native.loading import library

__all__ = ["serves", "turn"]


def turn(x: Tensor, *, isa: int = -1) -> Tensor:
    """Return the transpose of `x`, (rows, columns) -> (columns, rows); `isa` as in `pared.native.csr`.

    Raises:
        ConfigError: `x` is no contiguous matrix of float32 or float64 on the CPU, or there are no kernels.
    """
    if x.ndim != 2 or x.dtype not in SUFFIX or not x.is_cpu or not x.is_contiguous():
        raise ConfigError(
            f"x must be a contiguous float32 or float64 matrix on the CPU, got {x.dtype} {tuple(x.shape)} on {x.device}"
        )
    opened = library()
    if opened is None:
        raise ConfigError("the compiled kernels are not there; see pared.show_config()")
    rows, columns = x.shape
    out = x.new_empty((columns, rows))
    call = opened.functions["pared_turn_" + SUFFIX[x.dtype]]
    call(rows, columns, x.data_ptr(), out.data_ptr(), isa, torch.get_num_threads())
    return out
