"""Scaling of a non-negative matrix until its rows and its columns add up to 1."""

from typing import Literal, get_args

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.ops.lines import Lines

#: Rows and columns in turn, or the roots of both at once.
Scaling = Literal["sinkhorn", "balanced"]


def sinkhorn(
    A: Tensor,
    iterations: int = 20,
    scaling: Scaling = "sinkhorn",
    *,
    row: Tensor | None = None,
    col: Tensor | None = None,
    size: int | None = None,
) -> Tensor:
    """Scale rows and columns of a non-negative `A` towards sums of 1; zeros stay exactly 0.

    Shapes: (N, N) -> (N, N), or for a pattern (E,) -> (E,) with `row` and `col` int64 (E,) and `size` N; float.

    "sinkhorn" divides by the sums of the rows, then by those of the columns, in each iteration: after the last one the
    columns' sums are 1. "balanced" is D_r^-1/2 A D_c^-1/2, which keeps a symmetric matrix symmetric.
    Sums converge to 1 where `A` has total support (each positive entry is on a positive diagonal of some permutation of
    the columns): in a few iterations for a positive matrix, in tens to hundreds for a sparse one. Where it has none, as a
    triangular matrix, they crawl. A row or a column of zeros stays so, with derivatives that are finite.

    Raises:
        ConfigError: an argument is out of range, or the shapes do not fit.

    Source: differentiable sparsification (arXiv 1910.03201), section GCN; Sinkhorn and Knopp (1967). The balanced scheme,
    whose convergence the paper leaves open: Knight, Ruiz and Uçar (SIAM J. Matrix Anal. Appl. 35(3), 2014).
    """
    if scaling not in get_args(Scaling) or iterations < 0:
        raise ConfigError(
            f"scaling must be one of {', '.join(get_args(Scaling))} and iterations at least 0; got {scaling!r}, {iterations}"
        )
    if (row is None) != (col is None) or (row is None) != (size is None):
        raise ConfigError("a pattern needs row, col and size; a matrix none of them")
    if row is None or col is None or size is None:
        if A.ndim != 2 or A.shape[0] != A.shape[1]:
            raise ConfigError(
                f"expected a square matrix, or row, col and size of a pattern; got shape {tuple(A.shape)}"
            )
        return scaled(A, Lines(len(A)), iterations, scaling)
    if A.ndim != 1 or row.shape != A.shape or col.shape != A.shape:
        raise ConfigError(
            f"expected values, row and col of one length, got {tuple(A.shape)}, {tuple(row.shape)} and {tuple(col.shape)}"
        )
    return scaled(A, Lines(size, row, col), iterations, scaling)


def scaled(x: Tensor, lines: Lines, iterations: int, scaling: Scaling) -> Tensor:
    """Return entries `x` of `lines` after so many iterations, as `sinkhorn` does, unchecked."""
    for _ in range(iterations):
        if scaling == "sinkhorn":
            x = by_rows(x, lines)
            x = x / lines.at_cols(_divisor(lines.col_sums(x)))
        else:
            left, right = _divisor(lines.row_sums(x)).sqrt(), _divisor(lines.col_sums(x)).sqrt()
            x = x / lines.at_rows(left) / lines.at_cols(right)
    return x


def by_rows(x: Tensor, lines: Lines) -> Tensor:
    """Divide each row by its sum; a row of zeros stays so."""
    return x / lines.at_rows(_divisor(lines.row_sums(x)))


def _divisor(sums: Tensor) -> Tensor:
    # A 1 in place of 0, so that what is divided, all of it 0, and its derivatives stay numbers.
    return torch.where(sums > 0, sums, torch.ones_like(sums))
