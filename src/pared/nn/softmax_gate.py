"""Shares by softmax: never 0, until a given number is kept."""

import torch
from torch import Tensor

from pared.nn.top_k import TopKGate


class SoftmaxGate(TopKGate):
    """Multiply components by shares a = exp(alpha) / sum of exp(alpha), which compete but are never 0.

    Shapes: those of `Gate`; the parameter `theta` (n,) is the source's alpha. The arguments are those of `TopKGate`.

    Source: Liu, Simonyan and Yang (2019), DARTS: differentiable architecture search, equation 2; `discretize` as in
    section 2.4. Deviations: alpha is trained along with the weights, on the same loss, not on held-out data by turns; all
    start at exactly 0; there is no zero operation; and what is kept keeps its share, of a sum that is 1 again, where the
    source trains the chosen components anew, without shares.
    """

    def shares(self) -> Tensor:
        """Return a, (n,), above 0 where alive and 0 elsewhere; their sum is 1."""
        dead = self.alive.logical_not()
        alpha = self.theta.masked_fill(dead, -torch.inf)
        # Written out, with zeros told twice: this is what surgery can follow.
        strength = (alpha - alpha.detach().max()).exp().masked_fill(dead, 0.0)
        return strength / strength.sum().clamp(min=torch.finfo(alpha.dtype).tiny)
