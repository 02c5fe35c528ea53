"""RigL: connections that are small die, and those grow whose gradient is large."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pared.methods.rewiring import Rewiring
from pared.methods.weight_session import WeightSession
from pared.topology import Connections


@dataclass(frozen=True)
class RigL(Rewiring):
    """The smallest weights die and the dead of largest gradient grow; the arguments are those of `Rewiring`.

    A change takes the place of an optimizer step (not with a `GradScaler`, nor in a loop that calls `optimizer.step()`
    itself). One that dies may be chosen to grow at once, and stays as it is. With `every=1` no step would ever be taken.

    Source: Evci et al. (2020), Rigging the lottery, algorithm 1. Deviations from its code: what is done is counted from
    `begin`; ties are not broken at random; the first layer is as sparse as others unless `where` says otherwise.
    """

    instead: ClassVar[bool] = True

    def growing(self, session: WeightSession, connections: Connections, k: int, also: Tensor) -> Tensor:
        """Return those of largest gradient."""
        del session
        return connections.steepest(k, also)
