"""Powers, norms and dual maps of L_p spaces that neither overflow nor underflow."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pared.errors import ConfigError

#: Exponents at or below this have a dual above 100, whose powers no longer fit into float32.
LEAST = 1.01


def dual_exponent(p: float) -> float:
    """Return q = p / (p - 1), so that 1/p + 1/q = 1.

    Raises:
        ConfigError: p is not a finite number above 1.01.

    Source: L_p sphere (arXiv 2103.16013), below equation 9.
    """
    if not LEAST < p < math.inf:
        raise ConfigError(f"p must be a finite number above {LEAST}, got {p}")
    return p / (p - 1.0)


def signed_power(x: Tensor, t: float) -> Tensor:
    """Return sgn(x) · |x|^t, entry by entry, exactly 0 at 0, where the gradient is taken as 0.

    Shapes: any; t > 0. float16 and bfloat16 are computed in float32.

    Raises:
        ConfigError: t is not above 0.

    Source: L_p sphere (arXiv 2103.16013), equation 8, as exp(t · log|x|), which costs a CPU a fraction of a power.
    """
    if not t > 0.0:
        raise ConfigError(f"the exponent must be above 0, got {t}")
    wide = widened(x)
    return (_power(wide.abs(), t) * wide.sign()).to(x.dtype)


def lp_norm(x: Tensor, p: float, dim: int | Sequence[int] = -1, *, keepdim: bool = False) -> Tensor:
    """Return ‖x‖_p over the axes `dim`: m · (sum (|x| / m)^p)^(1/p) with m = max|x|, and 0 for zeros.

    Shapes: as `torch.linalg.vector_norm`; 1 <= p, infinity included. float16 and bfloat16 are computed in float32.
    The gradient at a row of zeros is 0.

    Raises:
        ConfigError: p is below 1.
    """
    if not p >= 1.0:
        raise ConfigError(f"the p of a norm must be at least 1, got {p}")
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    size = widened(x).abs()
    most = size.amax(axes, keepdim=True)
    if p == math.inf:
        return (most if keepdim else size.amax(axes)).to(x.dtype)
    most = most.detach()  # the norm does not depend on what it is scaled by
    zero = most == 0.0
    total = _power(size / most.masked_fill(zero, 1.0), p).sum(axes, keepdim=True).masked_fill(zero, 1.0)
    norm = total.pow(1.0 / p) * most
    return (norm if keepdim else norm.sum(axes)).to(x.dtype)  # the axes have one entry now


def dual_direction(g: Tensor, p: float, dim: int | Sequence[int] = -1) -> Tensor:
    """Return the unit vector of L_p that is aligned best with `g`: (g / ‖g‖_q)^[q - 1], over the axes `dim`.

    Shapes: that of `g`; the rows of a convolution's weight are `dim=(1, 2, 3)`. ‖answer‖_p = 1 and
    sum(g · answer) = ‖g‖_q, and a row of zeros gives zeros.

    Raises:
        ConfigError: p is not a finite number above 1.01.

    Source: L_p sphere (arXiv 2103.16013), equations 9 and 10.
    """
    q = dual_exponent(p)
    wide = widened(g)
    norm = lp_norm(wide, q, dim, keepdim=True)
    return signed_power(wide / norm.masked_fill(norm == 0.0, 1.0), q - 1.0).to(g.dtype)


def widened(x: Tensor) -> Tensor:
    """Return `x`, in float32 if it is float16 or bfloat16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _power(size: Tensor, t: float) -> Tensor:
    """Return size^t for entries >= 0, with 0 and a gradient of 0 at 0."""
    zero = size == 0.0
    return (size.masked_fill(zero, 1.0).log() * t).exp().masked_fill(zero, 0.0)
