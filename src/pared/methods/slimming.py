"""Network slimming: an L1 penalty on the scales of norms, and a cut of the smallest."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.methods.binding import check_bindable, check_strength, check_total, features_of
from pared.methods.cuts import Cuts, check_cuts
from pared.methods.session import Session
from pared.methods.units import find_units
from pared.penalties import l1
from pared.surgery import Example


@dataclass(frozen=True)
class Slimming:
    """strength · the sum of |scale| over the channels of batch and instance norms; the smallest of all layers are cut.

    Args:
        params: parameters to cut to, >= 1.
        strength: >= 0, until the last cut; the source used 1e-4 and 1e-5.
        at: when to cut, as fractions of the run, by equal factors; several are the source's multi-pass scheme.

    Source: Liu et al. (2017), Learning efficient convolutional networks through network slimming. Deviation: the cut is
    made to a size and not of a share of the channels; training goes on behind it with the optimizer's state.
    """

    params: int
    strength: float = 1e-4
    at: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        check_strength(self.strength)
        check_cuts(self.params, self.at)

    def bind(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example: Example,
        *,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Session:
        """Return the session; nothing is put into the network. The arguments are those of `Shrink.bind`.

        Raises:
            SurgeryError: no layer that can lose units has a norm with a weight behind it.
        """
        del steps_per_epoch, generator
        steps = check_total(total_steps)
        net = surgery.bare(model)
        check_bindable(net, optimizer)
        cuts = Cuts(self.params, self.at, scales)
        return Session(
            model,
            optimizer,
            find_units(net, example, normed=True),
            pressure=_OnScales(cuts),
            judge=cuts,
            every=1,
            strength=self.strength,
            total_steps=steps,
            features=features_of(example),
        )


def scales(session: Session, name: str) -> Tensor:
    """Return |scale| of each unit, (units,)."""
    return session.units[name].rows()[0].abs().squeeze(1)


@dataclass(frozen=True)
class _OnScales:
    cuts: Cuts

    def penalty(self, session: Session) -> Tensor:
        """Return strength · the sum of |scale|, 0 after the last cut."""
        if self.cuts.over(session):
            return torch.zeros((), device=next(session.model.parameters()).device)
        return session.strength * l1(units.rows()[0] for units in session.units.values())

    def press(self, session: Session) -> None:
        """Do nothing: the optimizer's step is all."""
