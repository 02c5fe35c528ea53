"""The hard concrete gate: a random factor between 0 and 1 that is exactly 0 or 1 with some probability."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.nn.switch import Switch

#: The source's temperature, and how far the stretched interval goes beyond 0 and 1.
BETA, LOW, HIGH = 2 / 3, -0.1, 1.1


class HardConcrete(Switch):
    """Multiply each channel by a hard concrete gate: random in training, its deterministic value in evaluation.

    Shapes: those of `Switch`. `theta` (channels,) is the source's log alpha; `noise` (channels,), uniform on (0, 1), is
    what a training pass depends on, and `refresh` draws it anew, once a step. A gate whose value in evaluation is 0 is
    off.

    Args:
        channels: how many channels come in, >= 1.
        dim: the axis of the channels.
        open: the probability that a gate is not 0, before the stretch, at the start, in (0, 1); from 0.92 on gates are
            exactly 1 in evaluation.
        generator: where the first noise is drawn from.

    Source: Louizos, Welling and Kingma (2018), Learning sparse neural networks through L0 regularization, equations 10
    to 13; one draw a step for the whole batch.
    """

    noise: Tensor
    off: ClassVar[float] = -math.inf

    def __init__(
        self,
        channels: int,
        *,
        dim: int = -1,
        open: float = 0.95,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0.0 < open < 1.0:
            raise ConfigError(f"open must be between 0 and 1, got {open}")
        super().__init__(channels, dim=dim, init=math.log(open / (1.0 - open)) or 1e-6, device=device, dtype=dtype)
        self.register_buffer("noise", torch.full_like(self.theta.detach(), 0.5))
        self.refresh(generator)

    @torch.no_grad()
    def refresh(self, generator: torch.Generator | None = None) -> None:
        """Draw the noise of the next step."""
        drawn = torch.rand(len(self.noise), generator=generator, dtype=torch.float64)
        self.noise.copy_(drawn.clamp(1e-6, 1.0 - 1e-6))

    def factors(self) -> Tensor:
        """Return the gates of evaluation, (channels,), in [0, 1]."""
        return self._stretched(self.theta.sigmoid())

    def sampled(self) -> Tensor:
        """Return the gates under the present noise, (channels,), in [0, 1]."""
        return self._stretched(((self.noise.logit() + self.theta) / BETA).sigmoid())

    def expected(self) -> Tensor:
        """Return the probability that each gate is not 0, (channels,)."""
        return (self.theta - BETA * math.log(-LOW / HIGH)).sigmoid()

    @torch.no_grad()
    def silence(self) -> None:
        """Hold dead gates at 0."""
        self.theta.masked_fill_(~self.alive, self.off)

    def in_use(self) -> Tensor:
        """Return `sampled()` in training, `factors()` in evaluation."""
        return self.sampled() if self.training else self.factors()

    @staticmethod
    def _stretched(s: Tensor) -> Tensor:
        # Without a product, so that the one product of this module is that with its input, which folding looks for.
        return ((s + LOW / (HIGH - LOW)) / (1.0 / (HIGH - LOW))).clamp(0.0, 1.0)
