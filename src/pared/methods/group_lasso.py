"""The group lasso on the units of a network: the comparator of ShrinkNets."""

from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared.errors import ConfigError
from pared.methods.binding import check_strength
from pared.methods.groups import GroupNorms, Groups
from pared.methods.method import UnitMethod
from pared.methods.parts import Parts
from pared.methods.rules import leave_alive
from pared.methods.strengths import Strength
from pared.methods.unit_session import UnitSession
from pared.methods.units import find_units
from pared.surgery import Example


@dataclass(frozen=True)
class GroupLasso(UnitMethod):
    """strength · the sum over all units of the norm of their weights; a unit whose norm is 0, or small, dies.

    Args:
        strength: >= 0, or what moves it along the run.
        groups: "rows", the weights that make a unit (a filter); or "columns", those that read it.
        proximal: take the penalty's proximal step behind the optimizer's, by which norms become exactly 0; exact for SGD
            without momentum, and for others with their learning rate as the length of the step. If not, its sub-gradient
            is added to the loss's.
        threshold: a unit dies when its norm is at most that, >= 0; sub-gradients need it above 0.
        every: remove dead units every so many steps, or each "epoch".

    Source: Yuan and Lin (2006); on networks as in ShrinkNets (arXiv 1806.03723), section 2.3 and appendix A.2. Groups
    are not weighed by their size, as there.
    """

    strength: float | Strength = 1e-3
    groups: Groups = "rows"
    proximal: bool = True
    threshold: float = 0.0
    every: int | str = "epoch"

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.groups not in get_args(Groups):
            raise ConfigError(f"groups must be one of {', '.join(get_args(Groups))}; got {self.groups!r}")
        if not self.threshold >= 0.0:
            raise ConfigError(f"threshold must be at least 0, got {self.threshold}")
        if not self.proximal and self.threshold == 0.0:
            raise ConfigError("a sub-gradient only circles around 0, so nothing would die; give a threshold, say 1e-3")

    def assemble(
        self, model: nn.Module, optimizer: Optimizer, example: Example, generator: torch.Generator | None
    ) -> Parts:
        """Return the parts; nothing is put into the network."""
        del optimizer, generator
        work = _Lasso(self.proximal, self.threshold, GroupNorms(self.groups))
        return Parts(find_units(model, example), pressure=work, judge=work)


@dataclass(frozen=True)
class _Lasso:
    proximal: bool
    threshold: float
    norms: GroupNorms = field(compare=False)

    def penalty(self, session: UnitSession) -> Tensor:
        """Return strength · the sum of the norms; 0 where the proximal step takes its place."""
        if self.proximal:
            return torch.zeros((), device=next(session.model.parameters()).device)
        return session.strength * torch.cat([self.norms.of(session, name) for name in session.selectors]).sum()

    @torch.no_grad()
    def press(self, session: UnitSession) -> None:
        """Take the proximal step."""
        if not self.proximal:
            return
        for name in session.selectors:
            norm = self.norms.of(session, name)
            tiny = torch.finfo(norm.dtype).tiny

            def factors(rate: float, norm: Tensor = norm, tiny: float = tiny) -> Tensor:
                return (1.0 - rate * session.strength / norm.clamp(min=tiny)).clamp(min=0.0)

            self.norms.scale_(session, name, factors)

    def look(self, session: UnitSession) -> None:
        """Nothing depends on gradients."""

    @torch.no_grad()
    def judge(self, session: UnitSession) -> None:
        """Kill what is small."""
        for name, selector in session.selectors.items():
            norm = self.norms.of(session, name)
            leave_alive(selector, norm > self.threshold, norm)

    def settle(self, session: UnitSession) -> None:
        """Do nothing: what is dead was killed."""
