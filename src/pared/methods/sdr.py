"""Sensitivity-driven regularisation: weights decay that the loss does not feel, and small ones die."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from pared.errors import ConfigError
from pared.methods.gradual import GradualMagnitude
from pared.methods.weight_session import WeightSession
from pared.methods.weights import Scope


@dataclass(frozen=True)
class SDR(GradualMagnitude):
    """Behind each step w -= strength · w · max(0, 1 - |gradient|); cuts are those of `GradualMagnitude`.

    Args:
        strength: lambda, >= 0.

    Source: Tartaglione et al. (2018), Learning sparse neural networks via sensitivity-driven regularization, with the
    sensitivity to the loss of their LOBSTER (2022). Deviation: the threshold is not found by a tolerance on validation
    rows, but set by the sparsity that is asked for; decay runs from the first step to the last; biases have none.
    """

    strength: float = 1e-4
    scope: Scope = "network"
    looks: ClassVar[bool] = True
    presses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.strength < math.inf:
            raise ConfigError(f"strength must be at least 0 and finite, got {self.strength}")

    @torch.no_grad()
    def press(self, session: WeightSession) -> None:
        """Shrink what the loss does not feel."""
        for connections in session.connections.values():
            deaf = (1.0 - connections.gradient().abs()).clamp(min=0.0).view_as(connections.weight)
            connections.weight.mul_(1.0 - self.strength * deaf)
