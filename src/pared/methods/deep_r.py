"""DeepR: every connection has a sign, dies when its weight would change it, and another one grows at random."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.methods.weight_session import WeightSession
from pared.methods.weights import WeightMethod

#: What a new connection starts with.
SEED = 1e-12


@dataclass(frozen=True)
class DeepR(WeightMethod):
    """Weights are sign · theta with random signs; behind each step theta is pressed and shaken.

    A connection whose theta is not above 0 is dead. Hard: as many dead ones, drawn at random, those of this step among
    them, come to life in the same step. Soft: a dead one keeps its sign and its theta, down to `lowest`, walks on by the
    noise, and lives when it is above 0.

    Args:
        strength: the L1 penalty on theta, >= 0.
        noise: the deviation of the noise, >= 0; both are multiplied by the weight's learning rate.
        soft: whether the number of connections may change.
        lowest: how far theta of a dead connection may fall, <= 0.

    Source: Bellec et al. (2018), Deep rewiring, algorithms 1 and 2; numbers as in its code. Deviation: when hard, a
    connection that comes back draws its sign anew, so that nothing is kept of dead ones.
    """

    strength: float = 1e-5
    noise: float = 1e-5
    soft: bool = False
    lowest: float = -1e-4
    presses: ClassVar[bool] = True
    blind: ClassVar[bool] = True
    steady: ClassVar[bool] = True  # where it is hard; soft it is for dense layers only

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("strength", "noise"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not -math.inf < self.lowest <= 0.0:
            raise ConfigError(f"lowest must be finite and at most 0, got {self.lowest}")

    @property
    def dense(self) -> bool:
        """Whether it keeps a number for every weight: theta of dead ones."""
        return self.soft

    @torch.no_grad()
    def begin_session(self, session: WeightSession) -> None:
        """Draw signs and theta of dead connections; living ones have those of their weights."""
        for name, connections in session.connections.items() if self.soft else ():
            drawn = _signs(connections.weight.shape, session).to(connections.weight)
            session.memory[f"{name}.sign"] = torch.where(session.masked(name).mask, connections.weight.sign(), drawn)
            start = torch.rand(connections.weight.shape, generator=session.generator) * self.lowest
            session.memory[f"{name}.theta"] = start.to(connections.weight)  # of the dead only

    @torch.no_grad()
    def look(self, session: WeightSession) -> None:
        """Remember the signs that the step may change."""
        for name, connections in session.connections.items() if not self.soft else ():
            session.memory[f"{name}.sign"] = connections.weight.sign()

    def due(self, session: WeightSession, step: int) -> bool:
        """Return True: connections may change at every step."""
        del session, step
        return self.sparsity > 0.0

    @torch.no_grad()
    def press(self, session: WeightSession) -> None:
        """Press and shake what lives."""
        rates = session.learning_rates()
        for name, connections in session.connections.items():
            rate = rates.get(id(connections.weight), 0.0)
            shift = -rate * self.strength + rate * self.noise * _normal(connections.weight, session)
            sign = session.memory[f"{name}.sign"].where(connections.weight != 0, 0.0)  # dead ones stay where they are
            connections.weight.add_(shift * sign)

    @torch.no_grad()
    def update(self, session: WeightSession) -> None:
        """Let die what has changed its sign, and others live."""
        rates = session.learning_rates()
        for name, connections in session.connections.items():
            sign = session.memory[f"{name}.sign"]
            theta = connections.weight * sign
            dead = connections.entries(theta <= 0)
            if not self.soft:
                grow = connections.anywhere(len(dead), session.generator, also=dead)
                session.rewire(name, dead, grow, SEED * _signs(grow.shape, session).to(theta), returning=False)
                continue
            rest = session.memory[f"{name}.theta"]
            rest.add_(rates.get(id(connections.weight), 0.0) * self.noise * _normal(rest, session))
            rest.clamp_(min=self.lowest)
            one = session.masked(name)
            grow = one.numbers(~one.mask & (rest > 0))
            rest.copy_(torch.where(one.mask, theta.clamp(min=self.lowest), rest))
            session.rewire(name, dead, grow, (rest * sign)[one.places(grow)])


def _signs(shape: torch.Size, session: WeightSession) -> Tensor:
    return 1.0 - 2.0 * torch.randint(2, shape, generator=session.generator)


def _normal(like: Tensor, session: WeightSession) -> Tensor:
    return torch.randn(like.shape, generator=session.generator).to(like)
