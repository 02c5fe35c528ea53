"""Why a shrinking run left nothing smaller, and how long one would have to be."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pared.methods import UnitSession


@torch.no_grad()
def factors_of(session: UnitSession) -> dict[str, Tensor]:
    """Return what each switch multiplies by, without the sign, (factors,) each."""
    return {name: switch.factors().detach().abs().clone() for name, switch in session.switches.items()}


def why_nothing(session: UnitSession, start: Mapping[str, Tensor], least: int, steps_per_epoch: int) -> str:
    """Return why the dense network is all there is after a run; `start` are its first factors, `least` its fewest parameters.

    How long a run would have to be is read from how far the factor that fell furthest has come.
    """
    steps, advice = session.steps, "raise epochs, the learning rate or the method's strength"
    if session.events or least < session.start_params:
        left = f"{steps} steps left {least:,} of {session.start_params:,} parameters"
        return f"the network hardly shrank: {left}, so the dense network comes back; {advice}"
    nothing, pace = f"nothing died in {steps} steps, so the dense network comes back", ""
    fallen = [pair for name, now in factors_of(session).items() if (pair := _furthest(start[name], now)) is not None]
    if fallen:
        was, now = min(fallen, key=lambda pair: pair[1] / pair[0])
        pace = f"; no factor fell further than from {was:.3g} to {now:.3g}"
        if now < was:
            enough = math.ceil(steps * was / (was - now))
            pace += f", and at this pace 0 takes about {enough} steps ({math.ceil(enough / steps_per_epoch)} epochs)"
    return f"{nothing}{pace}; {advice}"


def _furthest(was: Tensor, now: Tensor) -> tuple[float, float] | None:
    """The factor that lost the largest share of itself, then and now."""
    if was.shape != now.shape or not bool((was > 0).all()):
        return None
    place = int((now / was).argmin())
    return float(was[place]), float(now[place])
