"""What methods share that drop some connections of every layer and grow as many, every so many steps."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pared.methods.weight_session import WeightSession
from pared.methods.weights import WeightMethod, check_window, meets, within
from pared.topology import Connections, Cosine, Schedule


@dataclass(frozen=True)
class Rewiring(WeightMethod):
    """Every `every` steps the weakest share of each layer's connections dies and as many others grow, from 0.

    Args:
        every: steps between two changes, >= 1.
        begin: the fraction of the run at which changes begin.
        end: the fraction at which they end.
        fraction: the share of a layer's connections that dies, from what is done of that part of the run.
    """

    every: int = 100
    begin: float = 0.0
    end: float = 0.75
    fraction: Schedule = field(default_factory=lambda: Cosine(0.3))
    timed: ClassVar[bool] = True
    steady: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.every, self.begin, self.end)

    def changes(self, total_steps: int) -> bool:
        """Return whether a change falls within the run; without sparsity none is due."""
        return self.sparsity == 0.0 or meets(total_steps, self.every, self.begin, self.end)

    def due(self, session: WeightSession, step: int) -> bool:
        """Return whether it is time, and some weight is dead: a dense network has nowhere to grow."""
        return self.sparsity > 0.0 and within(session, step, self.every, self.begin, self.end)

    @torch.no_grad()
    def update(self, session: WeightSession) -> None:
        """Drop and grow, layer by layer."""
        share = self.fraction.at(session.done(self.begin, self.end))
        for name, connections in session.connections.items():
            k = int(share * connections.count)
            drop = weakest(connections, self.strength_of(connections), k)
            session.rewire(name, drop, self.growing(session, connections, k, drop))

    def strength_of(self, connections: Connections) -> Tensor:
        """Return what living connections are worth, (count,): the magnitude of their weights."""
        return connections.values().abs()

    @abstractmethod
    def growing(self, session: WeightSession, connections: Connections, k: int, also: Tensor) -> Tensor:
        """Return `k` entries that are dead, or among the `also`, which die: those to grow."""


def weakest(connections: Connections, strength: Tensor, k: int) -> Tensor:
    """Return the `k` living entries of least strength, int64 (k,); never all of them."""
    k = max(0, min(k, connections.count - 1))
    return connections.live()[strength.topk(k, largest=False).indices].sort().values
