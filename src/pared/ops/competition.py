"""Strengths that compete: a share for each of n components, exactly 0 for those that fall behind."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pared.errors import ConfigError
from pared.ops.lp import widened


def thresholded(x: Tensor, slope: float = 0.0, *, smooth: bool = False) -> Tensor:
    """Return max(x, 0), whose derivative below 0 is `slope`, or with `smooth` `slope` · e^x; 0, as of relu, by default.

    Shapes: any. A `slope` above 0 lets what is at 0 come back.
    """
    if slope == 0.0:
        return torch.relu(x)
    passed = F.elu(x, slope) if smooth else F.leaky_relu(x, slope)
    return torch.relu(x).detach() + (passed - passed.detach())


def p_norm(a: Tensor, p: float = 0.5, dim: int = -1, *, linear_below: float = 1e-4) -> Tensor:
    """Return (sum a^p)^(1/p) along `dim`: 1 for one share of 1, n^(1/p - 1) for n even ones.

    Shapes: (..., n, ...) -> (...); `a` >= 0, 0 < p < 1. float16 and bfloat16 are computed in float32. Below `linear_below`
    powers are taken to be linear: the derivative of a power has no bound there, and its product with the zero derivative
    of a share that is 0 is no number; it has to be below 1 / n. A vector of zeros has norm 0, and no gradient.

    Raises:
        ConfigError: p is out of range.

    Source: differentiable sparsification (arXiv 1910.03201), the regularizer behind equation 5. Deviation: the linear part.
    """
    check_p(p)
    powers = p_powers(widened(a), p, linear_below=linear_below)
    return p_root(powers.sum(dim), p).to(a.dtype)


def check_p(p: float, n: int = 1) -> None:
    """Make sure of the p of a p-norm, of `n` shares that add up to 1 if those are known.

    Raises:
        ConfigError: it is out of range, or the norm of even shares, with its gradient, would have no room in float32.
    """
    if not 0.0 < p < 1.0:
        raise ConfigError(f"p must be above 0 and below 1, got {p}")
    if (1.0 / p - 1.0) * math.log(max(n, 1)) > math.log(LARGEST_NORM):
        least = math.log(n) / (math.log(n) + math.log(LARGEST_NORM))
        raise ConfigError(
            f"the p-norm of {n} shares reaches n^(1/p - 1), which has to stay below {LARGEST_NORM:g}; got p={p}, so give "
            f"p of at least {math.ceil(1000 * least) / 1000:g}, or let fewer compete"
        )


def p_powers(a: Tensor, p: float = 0.5, *, linear_below: float = 1e-4) -> Tensor:
    """Return what `p_norm` adds up: a^p, but linear below `linear_below`. Shapes: any."""
    return torch.where(a > linear_below, a.clamp(min=linear_below).pow(p), a * linear_below ** (p - 1.0))


def p_root(total: Tensor, p: float = 0.5) -> Tensor:
    """Return what `p_norm` makes of its sums, total^(1/p); 0 of 0, with no gradient of any order. Shapes: any."""
    zero = total == 0
    return total.masked_fill(zero, 1.0).pow(1.0 / p).masked_fill(zero, 0.0)


#: What a p-norm of shares must stay below: float32 ends at 3e38, and gradients are larger than norms.
LARGEST_NORM = 1e30
