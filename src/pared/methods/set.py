"""SET: connections that are small die, and others grow at random."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from pared.methods.rewiring import Rewiring
from pared.methods.weight_session import WeightSession
from pared.topology import Connections, Constant, Schedule


@dataclass(frozen=True)
class SET(Rewiring):
    """The smallest weights die and as many connections grow at random; the arguments are those of `Rewiring`.

    Source: Mocanu et al. (2018), Scalable training of artificial neural networks with adaptive sparse connectivity.
    Deviations: the smallest by magnitude, not of either sign by itself, and new weights at 0, as in RigL's comparison; by
    default within a window of the run, the output layer too, and uniformly sparse.
    """

    fraction: Schedule = field(default_factory=lambda: Constant(0.3))
    blind: ClassVar[bool] = True

    def growing(self, session: WeightSession, connections: Connections, k: int, also: Tensor) -> Tensor:
        """Return some at random."""
        return connections.anywhere(k, session.generator, also)
