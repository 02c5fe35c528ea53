"""What a method brings to a session: what can die, what presses on it, and who judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pared.methods.costs import Costs
from pared.methods.selectors import Selected

if TYPE_CHECKING:
    from pared.methods.unit_session import UnitSession


class Pressure(Protocol):
    """What makes selectors smaller: a penalty, or a step of its own."""

    def penalty(self, session: "UnitSession") -> Tensor:
        """Return what is added to the loss, a scalar."""
        ...

    def press(self, session: "UnitSession") -> None:
        """Do what comes right after the optimizer's step, in place: a proximal step, say."""
        ...


class Judge(Protocol):
    """Decides who dies."""

    def look(self, session: "UnitSession") -> None:
        """Look at gradients and weights before the optimizer's step, while they belong together."""
        ...

    def judge(self, session: "UnitSession") -> None:
        """Kill, after an optimizer step and before a removal that is due: clear `alive` and silence the selectors."""
        ...

    def settle(self, session: "UnitSession") -> None:
        """Kill what gives nothing now, before the network is realised, if `judge` would have waited with it."""
        ...


class Components(Protocol):
    """What dies and is no unit: whole modules, say. They are removed before units are."""

    def remove(self, session: "UnitSession") -> None:
        """Remove what is dead, from model, optimizer and averaged copies, and let the session's graph be true again."""
        ...

    def saved(self) -> list[Any]:
        """Return what was removed, JSON-able, in order."""
        ...

    def load(self, session: "UnitSession", saved: Sequence[Any], kept: Mapping[str, Sequence[int]]) -> None:
        """Remove what was `saved`, and what is not among the `kept`, from a session that was freshly bound.

        Raises:
            RunError: it comes from another network; nothing was changed.
        """
        ...


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a session. `costs` weigh the pressure, evenly when None; `seed` is for noise, if there is any.

    `components` are removed beside units, if there are any.
    """

    selected: Selected
    pressure: Pressure
    judge: Judge
    costs: Costs | None = None
    seed: int = 0
    components: Components | None = None


class NoPressure:
    """No pressure."""

    def penalty(self, session: "UnitSession") -> Tensor:
        """Return 0."""
        return torch.zeros((), device=next(session.model.parameters()).device)

    def press(self, session: "UnitSession") -> None:
        """Do nothing."""
