"""Strengths that compete: a share for each of n components, exactly 0 for those that fall behind."""

import torch
from torch import Tensor


def thresholded(x: Tensor, slope: float = 0.0, *, smooth: bool = False) -> Tensor:
    """Return max(x, 0), whose derivative below 0 is `slope`, or with `smooth` `slope` · e^x; 0, as of relu, by default.

    Shapes: any. A `slope` above 0 lets what is at 0 come back.
    """
    kept = torch.relu(x)
    if slope == 0.0:
        return kept
    below = slope * (x.clamp(max=0.0).expm1() if smooth else x.clamp(max=0.0))
    return kept + (below - below.detach())


def p_norm(a: Tensor, p: float = 0.5, dim: int = -1, *, linear_below: float = 1e-4) -> Tensor:
    """Return (sum a^p)^(1/p) along `dim`, for `a` >= 0 and 0 < p < 1: 1 for one share of 1, n^(1/p - 1) for n even ones.

    Shapes: (..., n, ...) -> (...). Below `linear_below` powers are taken to be linear: the derivative of a power has no
    bound there, and the product of that with the zero derivative of a share that is 0 is no number. A vector of zeros
    has norm 0, and no gradient.

    Source: differentiable sparsification (arXiv 1910.03201), the regularizer behind equation 5. Deviation: the linear part.
    """
    return p_root(p_powers(a, p, linear_below=linear_below).sum(dim), p)


def p_powers(a: Tensor, p: float = 0.5, *, linear_below: float = 1e-4) -> Tensor:
    """Return what `p_norm` adds up: a^p, but linear below `linear_below`. Shapes: any."""
    line = linear_below ** (p - 1.0)
    return torch.where(a > linear_below, a.clamp(min=linear_below).pow(p), a * line)


def p_root(total: Tensor, p: float = 0.5) -> Tensor:
    """Return what `p_norm` makes of its sums: total^(1/p), and 0 of 0, with no gradient. Shapes: any."""
    some = total > 0
    return torch.where(some, total.where(some, torch.ones_like(total)).pow(1.0 / p), torch.zeros_like(total))
