"""Sparse networks from scratch: momentum says where connections grow, within a layer and between layers."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from pared.errors import ConfigError
from pared.methods.rewiring import weakest
from pared.methods.weight_session import WeightSession
from pared.methods.weights import WeightMethod, check_window, meets, within
from pared.topology import Cosine, Schedule


@dataclass(frozen=True)
class SNFS(WeightMethod):
    """The smallest weights of every layer die; layers of large momentum get more of them back, where momentum is largest.

    The number of connections of the network stays, those of its layers change.

    Args:
        every: steps between two changes, >= 1; the source: an epoch.
        begin: the fraction of the run at which changes begin.
        end: the fraction at which they end.
        fraction: the share of a layer's connections that dies.
        momentum: how gradients of all weights, dead ones too, are averaged, in [0, 1).

    Source: Dettmers and Zettlemoyer (2019), Sparse networks from scratch, algorithm 1. Deviations: the number at the start
    is exact; what a full layer cannot take goes to the others at once, so that the total stays exact, and layers may become
    full; layers that are nearly dense and still grow lose as many as others.
    """

    every: int = 100
    begin: float = 0.0
    end: float = 1.0
    fraction: Schedule = field(default_factory=lambda: Cosine(0.5, 0.005))
    momentum: float = 0.9
    timed: ClassVar[bool] = True
    looks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.every, self.begin, self.end)
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigError(f"momentum must be in [0, 1), got {self.momentum}")

    @property
    def dense(self) -> bool:
        """Whether it keeps a number for every weight: its averaged gradient."""
        return True

    def changes(self, total_steps: int) -> bool:
        """Return whether a change falls within the run; without sparsity none is due."""
        return self.sparsity == 0.0 or meets(total_steps, self.every, self.begin, self.end)

    def due(self, session: WeightSession, step: int) -> bool:
        """Return whether it is time, and some weight is dead."""
        return self.sparsity > 0.0 and within(session, step, self.every, self.begin, self.end)

    @torch.no_grad()
    def look(self, session: WeightSession) -> None:
        """Average gradients."""
        for name in session.connections:
            gradient = session.masked(name).gradient()
            before = session.memory.get(name)
            session.memory[name] = gradient.clone() if before is None else before.mul_(self.momentum).add_(gradient)

    @torch.no_grad()
    def update(self, session: WeightSession) -> None:
        """Drop in every layer, and grow where momentum is."""
        share = self.fraction.at(session.done(self.begin, self.end))
        drops, means, room = {}, {}, {}
        for name, connections in session.connections.items():
            means[name] = float(session.memory[name].flatten()[connections.live()].abs().mean())
            drops[name] = weakest(connections, connections.values().abs(), math.ceil(share * connections.count))
            room[name] = connections.shape.numel() - connections.count + len(drops[name])
        grown = shares(sum(map(len, drops.values())), means, room)
        for name in session.connections:
            grow = session.masked(name).best(grown[name], session.memory[name].abs(), also=drops[name])
            session.rewire(name, drops[name], grow, returning=False)


def shares(total: int, weights: dict[str, float], room: dict[str, int]) -> dict[str, int]:
    """Return `total` in parts proportional to `weights`, none above its `room`; the rest goes to those with room left.

    The parts add up to `total`, which is at most all room.
    """
    parts = dict.fromkeys(weights, 0)
    while (left := total - sum(parts.values())) > 0:
        free = {name: weights[name] for name in weights if parts[name] < room[name]}
        all_ = sum(free.values())
        if not 0.0 < all_ < math.inf:
            free, all_ = dict.fromkeys(free, 1.0), float(len(free))
        ideal = {name: left * weight / all_ for name, weight in free.items()}
        given = {name: min(int(ideal[name]), room[name] - parts[name]) for name in free}
        if not any(given.values()):  # fewer than one each: the largest remainders first
            for name in sorted(free, key=lambda n: -ideal[n])[:left]:
                given[name] = 1
        for name, count in given.items():
            parts[name] += count
    return parts
