"""SET: connections that are small die, and others grow at random."""

from dataclasses import dataclass, field

from torch import Tensor

from pared.methods.rewiring import Rewiring
from pared.methods.weight_session import WeightSession
from pared.topology import Constant, Schedule


@dataclass(frozen=True)
class SET(Rewiring):
    """The smallest weights die and as many connections grow at random; the arguments are those of `Rewiring`.

    Source: Mocanu et al. (2018), Scalable training of artificial neural networks with adaptive sparse connectivity.
    Deviation: the smallest by magnitude, not of either sign by itself; new weights start at 0, as in RigL's comparison.
    """

    fraction: Schedule = field(default_factory=lambda: Constant(0.3))

    def promise(self, session: WeightSession, name: str) -> Tensor:
        """Return random numbers."""
        return session.random(name)
