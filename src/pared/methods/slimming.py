"""Network slimming: an L1 penalty on the scales of norms, and a cut of the smallest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared.methods.binding import check_strength
from pared.methods.cuts import Cuts, check_cuts
from pared.methods.method import UnitMethod
from pared.methods.parts import Parts
from pared.methods.strengths import Strength
from pared.methods.unit_session import UnitSession
from pared.methods.units import find_units
from pared.penalties import l1
from pared.surgery import Example


@dataclass(frozen=True)
class Slimming(UnitMethod):
    """strength · the sum of |scale| over the channels of batch and instance norms; the smallest of all layers are cut.

    Args:
        params: parameters to cut to, >= 1.
        strength: >= 0, or what moves it, until the last cut; the source used 1e-4 and 1e-5.
        at: when to cut, as fractions of the run, by equal factors; several are the source's multi-pass scheme.

    Source: Liu et al. (2017), Learning efficient convolutional networks through network slimming. Deviation: the cut is
    made to a size and not of a share of the channels; training goes on behind it with the optimizer's state.
    """

    params: int
    strength: float | Strength = 1e-4
    at: tuple[float, ...] = (0.5,)
    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_strength(self.strength)
        check_cuts(self.params, self.at)

    def assemble(
        self, model: nn.Module, optimizer: Optimizer, example: Example, generator: torch.Generator | None
    ) -> Parts:
        """Return the parts; nothing is put into the network.

        Raises:
            SurgeryError: no layer that can lose units has a norm with a weight behind it.
        """
        del optimizer, generator
        cuts = Cuts(self.params, self.at, scales)
        return Parts(find_units(model, example, normed=True), pressure=_OnScales(cuts), judge=cuts)


def scales(session: UnitSession, name: str) -> Tensor:
    """Return |scale| of each unit, (units,)."""
    return session.units[name].rows()[0].abs().squeeze(1)


@dataclass(frozen=True)
class _OnScales:
    cuts: Cuts

    def penalty(self, session: UnitSession) -> Tensor:
        """Return strength · the sum of |scale|, 0 after the last cut."""
        if self.cuts.over(session):
            return torch.zeros((), device=next(session.model.parameters()).device)
        return session.strength * l1(units.rows()[0] for units in session.units.values())

    def press(self, session: UnitSession) -> None:
        """Do nothing: the optimizer's step is all."""
