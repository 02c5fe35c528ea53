"""Moving statistics of signs, the evidence of the sign-variance rule of death."""

import torch
from torch import Tensor

#: Statistics decay geometrically; below this they would turn denormal and slow a CPU down by an order of magnitude.
TINY = 1e-30


@torch.no_grad()
def update_sign_statistics_(value: Tensor, mean: Tensor, variance: Tensor, gamma: float) -> None:
    """Move the exponential mean and variance of `sign(value)` one step, in place.

    Shapes: `value`, `mean`, `variance` are all (n,); signs are -1, 0 or 1; `gamma` is in [0, 1).
    The deviation is taken from the *old* mean, and sign(0) = 0, so with `gamma` = 0 a single change of
    sign gives a variance of 4, and a value that never changes its sign keeps a variance of exactly 0.

    Source: ShrinkNets (arXiv 1806.03723), section 3.1, "sign variance strategy"; the order of the
    updates is that of the authors' implementation.
    """
    sign = value.sign()
    deviation = sign - mean
    variance.mul_(gamma).addcmul_(deviation, deviation, value=1.0 - gamma)
    variance.masked_fill_(variance < TINY, 0.0)
    mean.mul_(gamma).add_(sign, alpha=1.0 - gamma)
