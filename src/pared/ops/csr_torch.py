"""The products of `pared.native.csr` with torch's own kernels: the reference, and what runs where nothing is compiled.

Arguments and answers are those of `pared.native.csr`, on any device that torch has sparse CSR matrices for. Indices are
checked when they are new or were changed, and on the CPU for leading outside each time, which holds other devices up.
"""

from functools import cache

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pared.errors import ConfigError
from pared.ops.pattern import check_csr
from pared.process import silent

#: Where torch multiplies sparse CSR matrices, and of which numbers.
DEVICES, DTYPES = ("cpu", "cuda"), (torch.float32, torch.float64)
#: What was found right, by its columns, for as long as these are there.
_checked = WeakTensorKeyDictionary()


def product(crow: Tensor, col: Tensor, perm: Tensor | None, values: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Return A x + bias, (rows, batch).

    Raises:
        ConfigError: the pattern is none of `x`'s rows.
    """
    _check(crow, col, perm, len(x))
    if values.shape != col.shape:
        raise ConfigError(f"expected a value per entry, {tuple(col.shape)}; got {tuple(values.shape)}")
    shape = (len(crow) - 1, x.shape[1])
    out = (
        x.new_zeros(shape)
        if bias is None
        else bias.unsqueeze(1).expand(shape).clone(memory_format=torch.contiguous_format)
    )
    if len(col) and x.shape[1]:
        ordered = values if perm is None else values.index_select(0, perm)
        with torch.autocast(x.device.type, enabled=False):  # which would narrow what there is no kernel for
            torch.addmm(out, _matrix(crow, col, ordered, len(x)), x, out=out)
    return out


def dots(crow: Tensor, col: Tensor, perm: Tensor | None, held: Tensor, x: Tensor) -> Tensor:
    """Return <held[row], x[col]> for each entry, (entries,).

    Raises:
        ConfigError: the pattern is none of `x`'s rows.
    """
    _check(crow, col, perm, len(x))
    zeros = x.new_zeros(len(col))
    if not len(col) or not x.shape[1]:
        return zeros
    with torch.autocast(x.device.type, enabled=False):
        found = torch.sparse.sampled_addmm(_matrix(crow, col, zeros, len(x)), held, x.t(), beta=0.0).values()
    return found if perm is None else torch.empty_like(found).index_copy_(0, perm.long(), found)


def _check(crow: Tensor, col: Tensor, perm: Tensor | None, inner: int) -> None:
    """Make sure that no index leads outside: torch's kernels follow them as they are."""
    if col.is_inference():
        return _check_now(crow, col, perm, inner)
    state = inner, *((id(t), t.data_ptr(), t._version, len(t)) for t in (crow, col, perm) if t is not None)
    if _checked.get(col) != state:
        _check_now(crow, col, perm, inner)
        _checked[col] = state
    elif col.device.type == "cpu" and not _inside(crow, col, perm, inner):  # written into behind torch's back
        _check_now(crow, col, perm, inner)
    return None


def _inside(crow: Tensor, col: Tensor, perm: Tensor | None, inner: int) -> bool:
    """Whether no index leads outside, which is quick to see; whether columns ascend is not looked at."""
    for index, most in ((crow, len(col)), (col, inner - 1), (perm, len(col) - 1)):
        if index is not None and len(index):
            low, high = index.aminmax()
            if int(low) < 0 or int(high) > most:
                return False
    return True


def _check_now(crow: Tensor, col: Tensor, perm: Tensor | None, inner: int) -> None:
    check_csr(crow, col, inner)
    if perm is None:
        return
    whole = perm.dtype == torch.int32 and perm.shape == col.shape and perm.device == col.device
    if not whole or (len(perm) and (int(perm.min()) < 0 or int(perm.max()) >= len(col))):
        raise ConfigError(
            f"perm must lie in 0 to {len(col) - 1}, int32 {tuple(col.shape)} on {col.device}; got {perm.dtype} "
            f"{tuple(perm.shape)} on {perm.device}; make patterns with pared.ops.Pattern.from_csr"
        )


def _matrix(crow: Tensor, col: Tensor, values: Tensor, columns: int) -> Tensor:
    """Return the sparse matrix, (rows, columns), which `_check` has looked at."""
    _say_nothing()
    return torch.sparse_csr_tensor(crow, col, values, (len(crow) - 1, columns), check_invariants=False)


@cache
def _say_nothing() -> None:
    """Make torch's first sparse CSR matrix here, as it warns once, in any process, that these are in a beta state."""
    with silent(message="Sparse CSR tensor support is in beta state"):
        ends, none = torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
        torch.sparse_csr_tensor(ends, none, torch.zeros(0), (1, 1), check_invariants=False)
