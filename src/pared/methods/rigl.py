"""RigL: connections that are small die, and those grow whose gradient is large."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pared.methods.rewiring import Rewiring
from pared.methods.weight_session import WeightSession


@dataclass(frozen=True)
class RigL(Rewiring):
    """The smallest weights die and the dead of largest gradient grow; the arguments are those of `Rewiring`.

    A change takes the place of an optimizer step. One that dies may be chosen to grow at once, and stays as it is.

    Source: Evci et al. (2020), Rigging the lottery, algorithm 1.
    """

    instead: ClassVar[bool] = True

    def promise(self, session: WeightSession, name: str) -> Tensor:
        """Return the gradient's magnitude."""
        return session.connections[name].gradient().abs()
