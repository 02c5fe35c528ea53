"""What penalties that are objects share: which weights they press upon, their strength, and a state that is saved."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pared.errors import ConfigError

#: What a penalty presses upon.
Weights = nn.Module | Iterable[Tensor]


def weights_of(parameters: Weights, *, vectors: bool = False) -> dict[str, Tensor]:
    """Return the weights of a network that learn, by name, or the tensors given, by number; see `Penalty`.

    Raises:
        ConfigError: there are none, or others than real numbers.
    """
    if isinstance(parameters, nn.Module):
        found = {name: p for name, p in parameters.named_parameters() if p.requires_grad}
    else:
        found = {str(number): p for number, p in enumerate(parameters)}
    found = {name: p for name, p in found.items() if p.numel() and (vectors or p.ndim >= 2)}
    if not found or not all(p.is_floating_point() for p in found.values()):
        raise ConfigError(
            f"expected real weights of two or more axes, got {[(tuple(p.shape), p.dtype) for p in found.values()][:3]}; "
            "give the network, its parameters, or vectors=True where biases and other vectors count too"
        )
    return found


class Penalty(ABC):
    """A term of the loss: `loss = criterion(model(x), y) + penalty()`; abstract.

    Args:
        parameters: a network, of which at each call all parameters that learn are taken, so that surgery is followed; or
            tensors, which stay the ones that were given: those that surgery replaced are no longer the network's.
        strength: what the penalty is multiplied by, >= 0 and finite; it may be set between steps.
        vectors: whether parameters with fewer than two axes (biases, norms) are among them.

    Raises:
        ConfigError: a strength out of range, or nothing to press upon.
    """

    def __init__(self, parameters: Weights, strength: float, *, vectors: bool = False) -> None:
        if not 0.0 <= strength < math.inf:
            raise ConfigError(f"strength must be at least 0 and finite, got {strength}")
        self.strength, self.vectors = strength, vectors
        self._held = parameters if isinstance(parameters, nn.Module) else list(parameters)
        self.weights()

    def weights(self) -> dict[str, Tensor]:
        """Return what is pressed upon now, by name, of tensors by number.

        Raises:
            ConfigError: there is nothing.
        """
        return weights_of(self._held, vectors=self.vectors)

    @abstractmethod
    def __call__(self) -> Tensor:
        """Return strength times the penalty, a scalar with a gradient."""

    def state_dict(self) -> dict[str, Any]:
        """Return what changes while a network trains: numbers and tensors."""
        return {"strength": self.strength}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        self.strength = state["strength"]
