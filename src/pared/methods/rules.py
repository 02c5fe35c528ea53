"""Rules of death: when a selector is judged to earn nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.nn import Switch
from pared.ops import update_sign_statistics_


@dataclass(frozen=True)
class SignVariance:
    """A factor dies when the moving variance of its sign exceeds `threshold`; `gamma` = 0 is the sign-change rule.

    Args:
        gamma: memory of the moving statistics, in [0, 1).
        threshold: variance above which a factor dies, > 0; the papers' experiments always used 0.5.

    Source: ShrinkNets (arXiv 1806.03723), section 3.1; the last factor of a switch never dies, a case the paper
    leaves open.
    """

    gamma: float = 0.9
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < 1.0:
            raise ConfigError(f"gamma must be in [0, 1), got {self.gamma}")
        if not self.threshold > 0.0:
            raise ConfigError(f"threshold must be above 0, got {self.threshold}")

    def attach(self, switch: Switch) -> None:
        """Give `switch` this rule's statistics, (factors,) each, as buffers that surgery and checkpoints follow."""
        theta = switch.theta.detach()
        switch.register_buffer("sign_mean", theta.sign())
        switch.register_buffer("sign_variance", torch.zeros_like(theta))

    @torch.no_grad()
    def update(self, switch: Switch) -> None:
        """Look at theta after an optimizer step: update the statistics, kill, and hold dead factors at 0."""
        theta, variance = switch.theta, switch.get_buffer("sign_variance")
        update_sign_statistics_(theta, switch.get_buffer("sign_mean"), variance, self.gamma)
        alive = switch.alive & (variance <= self.threshold)
        switch.alive.copy_(_spare_one(alive, switch.alive, theta))
        theta.mul_(switch.alive)


def _spare_one(alive: Tensor, before: Tensor, theta: Tensor) -> Tensor:
    """`alive`, or only the largest of those alive before where none would be left; without a host synchronisation."""
    largest = torch.where(before, theta.abs(), -1.0).argmax()
    spared = torch.zeros_like(alive).index_fill_(0, largest, True)
    return torch.where(alive.any(), alive, spared)
