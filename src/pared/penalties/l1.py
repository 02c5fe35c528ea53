"""The L1 norm of selectors."""

from collections.abc import Iterable

import torch
from torch import Tensor


def l1(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of |x| over all entries of all `tensors`, a scalar; summed, not averaged.

    Source: ShrinkNets (arXiv 1806.03723), equation 2, the term in theta.
    """
    return torch.stack([x.abs().sum() for x in tensors]).sum()
