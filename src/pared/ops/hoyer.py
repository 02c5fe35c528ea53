"""Hoyer's sparsity, what theory expects of it, and how alike neurons are."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.ops.lp import dual_exponent, widened


def hoyer(x: Tensor, dim: int | Sequence[int] = -1) -> Tensor:
    """Return Hoyer's sparsity (sqrt(d) - ‖x‖₁ / ‖x‖₂) / (sqrt(d) - 1) over the axes `dim`, of d entries in all.

    It is 1 with a single entry other than 0, and 0 where all entries have one size, as zeros have, and as a single
    entry (d = 1) has, of which the formula makes 0/0. Shapes: `x` without `dim`.

    Source: L_p sphere (arXiv 2103.16013), equation 2; Hoyer (2004).
    """
    axes = [dim] if isinstance(dim, int) else list(dim)
    d = math.prod(x.shape[axis] for axis in axes)
    size = widened(x).abs()
    most = size.amax(axes, keepdim=True)
    zero = (most == 0.0).amax(axes)
    size = size / most.masked_fill(most == 0.0, 1.0)  # squares of small numbers would underflow
    if d == 1:
        return torch.zeros_like(zero, dtype=x.dtype)
    root = math.sqrt(d)
    ratio = size.sum(axes) / size.square().sum(axes).masked_fill(zero, 1.0).sqrt()
    return ((root - ratio) / (root - 1.0)).clamp(0.0, 1.0).masked_fill(zero, 0.0).to(x.dtype)


def expected_hoyer(d: float, p: float, alpha: float = 0.8) -> float:
    """Return Hoyer's sparsity that is expected of a neuron with `d` inputs on the unit L_p sphere.

    d >= 1 and may be infinite; `alpha` > 0 is the shape of the inputs' distribution, 0.8 in the authors' figures.

    Raises:
        ConfigError: d is below 1, p not a finite number above 1.01, or alpha not above 0.

    Source: L_p sphere (arXiv 2103.16013), equations 30 to 38. Instead of the recursion (37, 38), whose factors leave the
    range of floats from d = 288 on, the closed form that it has, as sums of independent gamma variables are independent
    of their proportions: E‖z‖₁/‖z‖₂ = d Γ((τ+1)/2) Γ(dτ/2) / (Γ(τ/2) Γ((dτ+1)/2)), τ = α(p-1). The paper asks for
    alpha > 1, against its own figures.
    """
    dual_exponent(p)
    if not (d >= 1 and 0.0 < alpha < math.inf):
        raise ConfigError(f"d must be at least 1 and alpha above 0 and finite, got d={d}, alpha={alpha}")
    if d == 1:
        return 0.0
    half = alpha * (p - 1.0) / 2.0
    mean = math.lgamma(half + 0.5) - math.lgamma(half)
    if d == math.inf:
        return 1.0 - math.exp(mean) / math.sqrt(half)
    if d > 1e10:  # where logarithms of gamma cancel; the next term is of order 1 / d
        ratio = math.sqrt(d) * math.exp(mean) / math.sqrt(half)
        return (math.sqrt(d) - ratio) / (math.sqrt(d) - 1.0)
    ratio = d * math.exp(mean + math.lgamma(d * half) - math.lgamma(d * half + 0.5))
    return (math.sqrt(d) - ratio) / (math.sqrt(d) - 1.0)


def cross_correlation(weight: Tensor) -> Tensor:
    """Return the matrix of correlations between a layer's neurons, (n, n), of a weight (n, ...).

    Entry (i, j) is Pearson's correlation of rows i and j over their weights; it is 0 where a row is constant, on the
    diagonal too.

    Source: L_p sphere (arXiv 2103.16013), figure 7, which shows such matrices and does not say whether means are taken
    off; they are here, as is usual for correlations.
    """
    rows = widened(weight).flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    most = rows.abs().amax(1, keepdim=True)
    rows = rows / most.masked_fill(most == 0.0, 1.0)
    norm = rows.square().sum(1, keepdim=True).sqrt()
    rows = rows / norm.masked_fill(norm == 0.0, 1.0)
    return (rows @ rows.T).clamp(-1.0, 1.0).to(weight.dtype)
