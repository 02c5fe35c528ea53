"""Rules of death: when a selector is judged to earn nothing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.methods.selectors import Selector
from pared.nn import Switch
from pared.ops import update_sign_statistics_

if TYPE_CHECKING:
    from pared.methods.unit_session import UnitSession


class Rule(Protocol):
    """A frozen config that judges switches after every optimizer step; what is dead stays dead, at exactly 0.

    The last factor of a switch never dies, a case the papers leave open.
    """

    def attach(self, switch: Switch) -> None:
        """Give `switch` what this rule remembers, (factors,) each, as buffers that surgery and checkpoints follow."""
        ...

    def update(self, switch: Switch) -> None:
        """Look at theta after an optimizer step: update what is remembered, kill, and hold dead factors at 0."""
        ...


@dataclass(frozen=True)
class SignVariance:
    """A factor dies when the moving variance of its sign exceeds `threshold`; `gamma` = 0 is the sign-change rule.

    Args:
        gamma: memory of the moving statistics, in [0, 1).
        threshold: variance above which a factor dies, > 0; the papers' experiments always used 0.5.

    Source: ShrinkNets (arXiv 1806.03723), section 3.1.
    """

    gamma: float = 0.9
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < 1.0:
            raise ConfigError(f"gamma must be in [0, 1), got {self.gamma}")
        if not self.threshold > 0.0:
            raise ConfigError(f"threshold must be above 0, got {self.threshold}")

    def attach(self, switch: Switch) -> None:
        """Remember the moving mean of the sign, from its first value on, and the variance, from 0 on."""
        theta = switch.theta.detach()
        switch.register_buffer("sign_mean", theta.sign())
        switch.register_buffer("sign_variance", torch.zeros_like(theta))

    @torch.no_grad()
    def update(self, switch: Switch) -> None:
        """Kill what changes its sign too often."""
        variance = switch.get_buffer("sign_variance")
        update_sign_statistics_(switch.theta, switch.get_buffer("sign_mean"), variance, self.gamma)
        leave_alive(switch, variance <= self.threshold, switch.theta.abs())


@dataclass(frozen=True)
class SignChange:
    """A factor dies as soon as its sign is not the one it started with.

    Source: ShrinkNets (arXiv 1806.03723), section 3.1; the same as `SignVariance(gamma=0)`, with less to remember.
    """

    def attach(self, switch: Switch) -> None:
        """Remember the first sign."""
        switch.register_buffer("first_sign", switch.theta.detach().sign())

    @torch.no_grad()
    def update(self, switch: Switch) -> None:
        """Kill what has another sign."""
        leave_alive(switch, switch.theta.sign() == switch.get_buffer("first_sign"), switch.theta.abs())


@dataclass(frozen=True)
class Threshold:
    """A factor dies when |theta| is at most `value`.

    Args:
        value: > 0, and above the optimizer's step, or factors may jump over it from one side to the other.

    Source: ShrinkNets (arXiv 1806.03723), section 3.1, the rule that the paper argues against.
    """

    value: float = 1e-2

    def __post_init__(self) -> None:
        if not self.value > 0.0:
            raise ConfigError(f"value must be above 0, got {self.value}")

    def attach(self, switch: Switch) -> None:
        """Remember nothing."""

    @torch.no_grad()
    def update(self, switch: Switch) -> None:
        """Kill what is small."""
        leave_alive(switch, switch.theta.abs() > self.value, switch.theta.abs())


@dataclass(frozen=True)
class EachSwitch:
    """Judges every switch of a session by a rule of its own."""

    rule: Rule

    def look(self, session: "UnitSession") -> None:
        """Nothing depends on gradients."""

    def judge(self, session: "UnitSession") -> None:
        """Let the rule look at each switch."""
        for switch in session.switches.values():
            self.rule.update(switch)

    def settle(self, session: "UnitSession") -> None:
        """Do nothing: what is dead was killed."""


@torch.no_grad()
def leave_alive(selector: Selector, stays: Tensor, worth: Tensor) -> None:
    """Let only those of the living that `stays` names live on, or the worthiest alone where none would be left."""
    before = selector.alive
    alive = before & stays
    best = torch.where(before, worth, -torch.inf).argmax()
    spared = torch.zeros_like(alive).index_fill_(0, best, True)
    before.copy_(torch.where(alive.any(), alive, spared))  # no host synchronisation
    selector.silence()
