"""Binary gates, drawn anew for every step: a given number of components is active."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pared.nn.top_k import TopKGate

#: The least weight a gate is drawn with, so that `k` can be drawn where fewer are above 0.
LEAST = 1e-12


class MaskConnect(TopKGate):
    """Multiply components by 1 or 0: in training `k` are active, drawn by their real-valued gates; else the `k` largest.

    Call `refresh` once behind every optimizer step. Gradients go to the real-valued gates as if these had been multiplied
    by, those of components that are not active too, which are computed all the same.

    Shapes: those of `Gate`. The parameter `theta` (n,) holds the real-valued gates, in [0, 1] behind `refresh`; `drawn` and
    `kept` (n,), boolean, say which are active in training and in evaluation.

    Args:
        n: how many components there are, >= 1.
        k: how many are active, and kept at the end, in [1, n]; the source's fan-in.
        dim: the axis of the channels.
        sizes: channels per component, each >= 1; one each when None.
        generator: where the first ones are drawn from.

    Raises:
        ConfigError: an argument is out of range.

    Source: Ahmed and Torresani (2017), Connectivity learning in multi-branch networks (arXiv 1709.09582), and (2018),
    MaskConnect: connectivity learning by gradient descent (arXiv 1807.11473): gates start at 0.5, `k` distinct ones are
    drawn with chances in proportion to their values, and are clipped to [0, 1] behind each step. Deviation: gates at 0
    are drawn where fewer than `k` others are left, as otherwise there would be nothing to draw.
    """

    drawn: Tensor
    kept: Tensor
    start: ClassVar[float] = 0.5

    def __init__(
        self,
        n: int,
        *,
        k: int,
        dim: int = -1,
        sizes: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(n, k=k, dim=dim, sizes=sizes, device=device, dtype=dtype)
        self.register_buffer("drawn", torch.zeros_like(self.alive))
        self.register_buffer("kept", torch.zeros_like(self.alive))
        self.refresh(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set all gates to 0.5, alive, and draw those of the next step."""
        super().reset_parameters()
        if "kept" in self._buffers:  # not while the base class is being made
            self.refresh(generator)

    @torch.no_grad()
    def refresh(self, generator: torch.Generator | None = None) -> None:
        """Clip the gates to [0, 1], and draw the active ones of the next step."""
        self.theta.clamp_(0.0, 1.0)
        chance = torch.rand(len(self.theta), generator=generator, dtype=torch.float64).to(self.theta.device)
        # Exponential clocks that run as fast as gates are large: the first k to ring are k draws without replacement.
        rings = -chance.clamp(min=torch.finfo(chance.dtype).tiny).log() / self.theta.double().clamp(min=LEAST)
        first = rings.masked_fill(~self.alive, torch.inf).argsort()[: self.k]
        self.drawn.zero_().index_fill_(0, first, True).logical_and_(self.alive)
        self.kept.copy_(self.largest())

    def gamma(self) -> Tensor:
        """Return the real-valued gates, (n,), in [0, 1], and 0 where a component was killed."""
        return self.theta.clamp(0.0, 1.0).masked_fill(self.alive.logical_not(), 0.0)

    def shares(self) -> Tensor:
        """Return 1 for what is active in the present mode, and 0 elsewhere, (n,)."""
        through = (self.theta - self.theta.detach()).masked_fill(self.alive.logical_not(), 0.0)
        active = (self.drawn if self.training else self.kept).logical_and(self.alive)
        return active.to(self.theta.dtype) + through

    @torch.no_grad()
    def kill(self, dead: Tensor) -> None:
        """Let the components `dead`, boolean (n,), never come back; in training others take their place at `refresh`."""
        super().kill(dead)
        self.kept.copy_(self.largest())

    @torch.no_grad()
    def discretize(self) -> None:
        """Keep the `k` largest gates and kill the others: from now on the same are active in training."""
        super().discretize()
        self.drawn.copy_(self.alive)
