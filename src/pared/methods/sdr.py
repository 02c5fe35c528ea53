"""Sensitivity-driven regularisation: weights decay that the loss does not feel, and small ones die."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.methods.gradual import GradualMagnitude
from pared.methods.weight_session import WeightSession
from pared.methods.weights import Scope, meets, within

#: How often the interval that the threshold lies in is halved.
HALVINGS = 10


@dataclass(frozen=True)
class SDR(GradualMagnitude):
    """Behind each step w -= strength · w · max(0, 1 - |gradient|); small weights die every `every` steps.

    Args:
        strength: lambda, >= 0.
        tolerance: how much a loss on rows held out may rise at a cut, as a share of it, >= 0; the cut is then the largest
            that keeps within it, up to `sparsity`, and `bind` needs a `loss`. None for the cuts of `GradualMagnitude`.

    Source: Tartaglione et al. (2018), Learning sparse neural networks via sensitivity-driven regularization, with the
    sensitivity to the loss and the search for the threshold of their LOBSTER (2022). Deviations: decay runs from the first
    step to the last; cuts are made every `every` steps within `begin` and `end`, not where the loss stands still; biases
    have no decay.
    """

    strength: float = 1e-4
    tolerance: float | None = None
    scope: Scope = "network"
    presses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.strength < math.inf:
            raise ConfigError(f"strength must be at least 0 and finite, got {self.strength}")
        if self.tolerance is not None and not 0.0 <= self.tolerance < math.inf:
            raise ConfigError(f"tolerance must be at least 0 and finite, or None; got {self.tolerance}")

    @property
    def needs_loss(self) -> bool:
        """Whether it asks for a loss on rows held out, about a dozen times a cut."""
        return self.tolerance is not None

    @torch.no_grad()
    def press(self, session: WeightSession) -> None:
        """Shrink what the loss does not feel."""
        for connections in session.connections.values():
            grad = connections.weight.grad
            deaf = 1.0 if grad is None else (1.0 - grad.abs()).clamp(min=0.0)
            connections.weight.mul_(1.0 - self.strength * deaf)

    def changes(self, total_steps: int) -> bool:
        """Return whether a cut falls within the run; without a tolerance the last is made at the window's end."""
        return not self.needs_loss or self.sparsity == 0.0 or meets(total_steps, self.every, self.begin, self.end)

    def due(self, session: WeightSession, step: int) -> bool:
        """Return whether it is time for a cut."""
        if self.tolerance is None:
            return super().due(session, step)
        return self.sparsity > 0.0 and within(session, step, self.every, self.begin, self.end)

    def update(self, session: WeightSession) -> None:
        """Cut to the sparsity of now, or as far as the loss on rows held out allows."""
        if self.tolerance is None:
            super().update(session)
        elif session.sparsity < self.sparsity:
            self.cut(session, self._tolerable(session, self.tolerance))

    def _tolerable(self, session: WeightSession, tolerance: float) -> dict[str, Tensor]:
        """Look for the largest cut by halving, taking it that a larger one is felt more."""
        before = session.loss_without({})
        bar = before + tolerance * abs(before)
        found: dict[str, Tensor] = {}
        low, high = session.sparsity, self.sparsity
        tried = high
        for _ in range(1 + HALVINGS):
            drops = self.drops(session, tried)
            if session.loss_without(drops) <= bar:
                low, found = tried, drops
            else:
                high = tried
            if low == high:
                break
            tried = (low + high) / 2
        return found
