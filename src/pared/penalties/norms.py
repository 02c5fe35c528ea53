"""Penalties whose form does not change while a network trains: L1, L2, the elastic net, Hoyer's square."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.ops.lp import widened
from pared.penalties.base import Penalty, Weights
from pared.penalties.l1 import l1

#: The norm of a vector, or its square.
Norm = Literal["l2", "l2_squared"]
#: Whether one vector of all weights is meant, or one of each tensor, whose penalties are added up.
Scope = Literal["global", "tensor"]


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a ConfigError for an option that is not one of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


class L1(Penalty):
    """strength · sum of |w|, with the gradient 0 at 0; see `Penalty`."""

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar."""
        return self.strength * l1(widened(w) for w in self.weights().values())


class L2(Penalty):
    """strength · ‖w‖₂² over all weights, or with `norm="l2"` strength · ‖w‖₂, whose gradient at zeros is 0; see `Penalty`.

    Raises:
        ConfigError: an option is out of range.

    Source: the usual penalty is the square; the norm is R_L2 of arXiv 1910.14241, section 2.2.
    """

    def __init__(
        self, parameters: Weights, strength: float, *, norm: Norm = "l2_squared", vectors: bool = False
    ) -> None:
        one_of("norm", norm, get_args(Norm))
        super().__init__(parameters, strength, vectors=vectors)
        self.norm = norm

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar."""
        weights = self.weights()
        if self.norm == "l2_squared":
            return self.strength * _norms(weights, 2).square().sum()
        most = _most(weights).max()
        return self.strength * most * torch.linalg.vector_norm(_norms(weights, 2, most.expand(len(weights))))


class ElasticNet(Penalty):
    """strength · (share · sum of |w| + (1 - share) / 2 · ‖w‖₂²); see `Penalty`.

    Args:
        parameters: see `Penalty`.
        strength: see `Penalty`.
        share: of L1, in [0, 1].
        vectors: see `Penalty`.

    Raises:
        ConfigError: an option is out of range.

    Source: Zou and Hastie (2005), in the parametrisation of glmnet.
    """

    def __init__(self, parameters: Weights, strength: float, *, share: float = 0.5, vectors: bool = False) -> None:
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"share must be in [0, 1], got {share}")
        super().__init__(parameters, strength, vectors=vectors)
        self.share = share

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar."""
        weights = self.weights()
        square = _norms(weights, 2).square().sum()
        return self.strength * (self.share * _norms(weights, 1).sum() + 0.5 * (1.0 - self.share) * square)


class HoyerSquare(Penalty):
    """strength · (sum of |w|)² / ‖w‖₂², which does not depend on scale and is least, 1, with one weight other than 0.

    Zeros have the penalty 0 and a gradient of 0. See `Penalty` for the other arguments.

    Args:
        parameters: see `Penalty`.
        strength: see `Penalty`.
        scope: "tensor", the sum over tensors, or "global".
        vectors: see `Penalty`.

    Raises:
        ConfigError: an option is out of range.

    Source: DeepHoyer (arXiv 1908.09979), equation 3, and by layers section 3.2.
    """

    def __init__(self, parameters: Weights, strength: float, *, scope: Scope = "tensor", vectors: bool = False) -> None:
        one_of("scope", scope, get_args(Scope))
        super().__init__(parameters, strength, vectors=vectors)
        self.scope = scope

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar."""
        weights = self.weights()
        most = _most(weights)
        if self.scope == "global":
            most = most.max().expand(len(weights))
        sums, sizes = _norms(weights, 1, most), _norms(weights, 2, most)
        if self.scope == "global":
            sums, sizes = sums.sum(0, keepdim=True), torch.linalg.vector_norm(sizes, keepdim=True)
        ratio = sums / sizes.masked_fill(sizes == 0.0, 1.0)
        return self.strength * ratio.square().sum()


def _norms(weights: dict[str, Tensor], order: int, scale: Tensor | None = None) -> Tensor:
    """Return the norm of each tensor, divided by its scale, (tensors,); torch's gradient of it at 0 is 0."""
    tensors = [widened(w) for w in weights.values()]
    if scale is not None:
        tensors = [w / s for w, s in zip(tensors, scale.unbind(), strict=True)]
    return torch.stack([torch.linalg.vector_norm(w, order) for w in tensors])


@torch.no_grad()
def _most(weights: dict[str, Tensor]) -> Tensor:
    """Return the largest magnitude of each tensor, 1 where it is 0 or not finite, (tensors,): quotients have squares in range."""
    most = torch.stack([torch.linalg.vector_norm(widened(w), math.inf) for w in weights.values()])
    return most.masked_fill((most == 0.0) | ~most.isfinite(), 1.0)
