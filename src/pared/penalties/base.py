"""What penalties that are objects share: which weights they press upon, their strength, and a state that is saved."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn.sparse_layer import SparseLayer
from pared.surgery.apply import bare
from pared.surgery.prune_masks import with_masks

#: What a penalty presses upon.
Weights = nn.Module | Iterable[Tensor]


def weights_of(parameters: Weights, *, vectors: bool = False, frozen: bool = False) -> dict[str, Tensor]:
    """Return the weights of a network by name, or the tensors given by number, each once; see `Penalty`.

    Of a network they are those that learn, or with `frozen` all; of sparse layers their values, though they are vectors;
    where `torch.nn.utils.prune` has put a mask, what it leaves, under the name of the masked tensor.

    Raises:
        ConfigError: there are none, or others than real numbers.
    """
    if isinstance(parameters, nn.Module):
        parameters = bare(parameters, distributed=True)  # so that names are the same in whatever it is wrapped
        given: dict[str, Tensor] = {n: p for n, p in parameters.named_parameters() if p.requires_grad or frozen}
        given = with_masks(given, parameters)
        vectors_too = {
            f"{n}.values" if n else "values" for n, m in parameters.named_modules() if isinstance(m, SparseLayer)
        }
    else:
        given = {} if isinstance(parameters, Tensor) else {str(number): p for number, p in enumerate(parameters)}
        vectors_too = set()
    tensors = {name: p for name, p in given.items() if isinstance(p, Tensor)}
    found = {name: p for name, p in tensors.items() if p.numel() and (vectors or p.ndim >= 2 or name in vectors_too)}
    if not found or len(tensors) < len(given) or not all(p.is_floating_point() for p in found.values()):
        got = [(tuple(p.shape), p.dtype) if isinstance(p, Tensor) else type(p).__name__ for p in given.values()]
        raise ConfigError(
            f"expected a network or a list of real weights of two or more axes, got "
            f"{'a single tensor' if isinstance(parameters, Tensor) else got[:3]}; give the network, its parameters(), or "
            "vectors=True where biases and other vectors count too"
        )
    once: dict[int, tuple[str, Tensor]] = {}
    for name, p in found.items():
        once.setdefault(id(p), (name, p))
    return dict(once.values())


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
        self.strength, self.vectors = strength, vectors
        self._held = parameters if isinstance(parameters, nn.Module | Tensor) else list(parameters)
        self.weights()

    @property
    def strength(self) -> float:
        """What the penalty is multiplied by; setting it to less than 0, or to what is not finite, is a ConfigError."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0.0 <= value < math.inf:
            raise ConfigError(f"strength must be at least 0 and finite, got {value}")
        self._strength = value

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
