"""Powers of L_p norms, the soft counterpart of a constraint to the L_p sphere."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.ops.lp import signed_power, widened


def lp_penalty(tensors: Iterable[Tensor], p: float) -> Tensor:
    """Return sum |x|^p / p over all entries of all `tensors`, a scalar; 1 <= p, and the gradient at 0 is 0.

    Raises:
        ConfigError: p is below 1.

    Source: L_p sphere (arXiv 2103.16013), equation 6, the term that depends on the weights, with one multiplier for
    all neurons. The paper suggests L_p-regularized SGD for fully connected layers and leaves its term open.
    """
    if not p >= 1.0:
        raise ConfigError(f"p must be at least 1, got {p}")
    return torch.stack([signed_power(widened(x).abs(), p).sum() / p for x in tensors]).sum()
