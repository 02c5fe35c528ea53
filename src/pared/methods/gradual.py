"""Gradual magnitude pruning: a dense network whose smallest weights die little by little."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pared.methods.rewiring import weakest
from pared.methods.weight_session import WeightSession
from pared.methods.weights import Scope, WeightMethod, check_scope, check_window, within
from pared.topology import Cubic, spread


@dataclass(frozen=True)
class GradualMagnitude(WeightMethod):
    """Sparsity rises from 0 to `sparsity` along a cubic, the smallest weights dying for good; a layer keeps one at least.

    Where a `GradScaler` may leave steps out let `end` be below 1: the last cut is made at that step.

    Args:
        every: steps between two cuts, >= 1.
        begin: the fraction of the run at which cuts begin.
        end: the fraction at which `sparsity` is reached.
        scope: whether weights compete within each "layer", under `distribution`, or over the whole "network".

    Source: Zhu and Gupta (2017), To prune, or not to prune, equation 1.
    """

    every: int = 100
    begin: float = 0.0
    end: float = 0.75
    scope: Scope = "layer"
    timed: ClassVar[bool] = True
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.every, self.begin, self.end)
        check_scope(self.scope)

    @property
    def start(self) -> float:
        """All weights live at the start."""
        return 0.0

    def due(self, session: WeightSession, step: int) -> bool:
        """Return whether it is time; the last cut is at the end of the window, whatever `every` is."""
        assert session.total_steps is not None
        last = step == max(1, int(self.end * session.total_steps))
        return self.sparsity > 0.0 and (last or within(session, step, self.every, self.begin, self.end))

    def update(self, session: WeightSession) -> None:
        """Cut to the sparsity of now."""
        assert session.total_steps is not None
        last = session.steps >= int(self.end * session.total_steps)
        now = self.sparsity if last else Cubic(0.0, self.sparsity).at(session.done(self.begin, self.end))
        self.cut(session, self.drops(session, now))

    @torch.no_grad()
    def drops(self, session: WeightSession, sparsity: float) -> dict[str, Tensor]:
        """Return the living entries of each weight whose death makes the network as sparse as said."""
        if self.scope == "layer":
            zeros = spread({n: c.shape for n, c in session.connections.items()}, sparsity, self.distribution)
        else:
            zeros = _smallest(session, sparsity)
        more = {n: zeros[n] - (c.shape.numel() - c.count) for n, c in session.connections.items()}
        return {n: weakest(c, c.values().abs(), max(0, more[n])) for n, c in session.connections.items()}

    def cut(self, session: WeightSession, drops: dict[str, Tensor]) -> None:
        """Let these entries die for good."""
        for name, drop in drops.items():
            if len(drop):
                session.rewire(name, drop, drop[:0])


def _smallest(session: WeightSession, sparsity: float) -> dict[str, int]:
    """How many of each layer are among the smallest of the network, the dead being the smallest of all."""
    values = {name: connections.values().abs() for name, connections in session.connections.items()}
    dead = {name: connections.shape.numel() - connections.count for name, connections in session.connections.items()}
    everything = sum(connections.shape.numel() for connections in session.connections.values())
    more = max(0, round(sparsity * everything) - sum(dead.values()))
    owner = torch.cat([torch.full((len(v),), place, device=v.device) for place, v in enumerate(values.values())])
    dying = owner[torch.cat(list(values.values())).argsort(stable=True)[:more]]
    counts = torch.bincount(dying, minlength=len(values)).tolist()
    return {name: dead[name] + count for name, count in zip(values, counts, strict=True)}
