"""What a method is, and what it brings to a session: how it presses, and how it judges."""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared.surgery import Example

if TYPE_CHECKING:
    from pared.methods.session import Session


class Method(Protocol):
    """A frozen config that can be bound to a network."""

    def bind(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example: Example,
        *,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
    ) -> "Session":
        """Bind the method to `model` and `optimizer`; see `Shrink.bind`."""
        ...


class Pressure(Protocol):
    """What makes selectors smaller: a penalty, or a step of its own."""

    def penalty(self, session: "Session") -> Tensor:
        """Return what is added to the loss, a scalar."""
        ...

    def press(self, session: "Session") -> None:
        """Do what comes right after the optimizer's step, in place: a proximal step, say."""
        ...


class Judge(Protocol):
    """Decides who dies."""

    def look(self, session: "Session") -> None:
        """Look at gradients and weights before the optimizer's step, while they belong together."""
        ...

    def judge(self, session: "Session") -> None:
        """Kill, after an optimizer step and before a removal that is due: clear `alive` and silence the selectors."""
        ...


class NoPressure:
    """No pressure."""

    def penalty(self, session: "Session") -> Tensor:
        """Return 0."""
        return torch.zeros((), device=next(session.model.parameters()).device)

    def press(self, session: "Session") -> None:
        """Do nothing."""
