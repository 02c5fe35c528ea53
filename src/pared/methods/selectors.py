"""What decides over the units of a layer: a switch behind it, or the layer itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pared.nn import Gate, SparseAdjacency
from pared.surgery import Graph, Slot

#: What competes: components of a gate, or edges of a graph.
Competing = Gate | SparseAdjacency


class Selector(Protocol):
    """Says which units of one space are alive; `pared.nn.Switch` is one, `Units` another."""

    @property
    def alive(self) -> Tensor:
        """Which factors are alive, bool (factors,)."""
        ...

    @property
    def channels(self) -> int:
        """How many units there are."""
        ...

    def live_channels(self) -> Tensor:
        """Return the indices of the units whose factor is alive, int64 (kept,)."""
        ...

    def silence(self) -> None:
        """Hold what is dead at exactly 0, in place."""
        ...


class Units:
    """The units of a layer as they are: nothing is put into the network.

    A dead one has its entries of `weights` at 0: those of the layer, or of the norm behind it, so that it gives 0.

    Args:
        model: the network, bare.
        layer: the name of the layer that makes the units.
        weights: the parameters that end in the units' values, with the axis of the units.
        size: how many units there are.
    """

    def __init__(self, model: nn.Module, layer: str, weights: Sequence[Slot], size: int) -> None:
        self.model, self.layer, self.weights = model, layer, tuple(weights)
        device = model.get_parameter(self.weights[0].tensor).device
        #: (units,) each, following every removal and saved with the session; `alive`, and what a method remembers.
        self.state = {"alive": torch.ones(size, dtype=torch.bool, device=device)}

    @property
    def alive(self) -> Tensor:
        """Which units are alive, bool (units,)."""
        return self.state["alive"]

    @property
    def channels(self) -> int:
        """How many units there are."""
        return len(self.alive)

    def live_channels(self) -> Tensor:
        """Return the indices of the living, int64 (kept,)."""
        return self.alive.nonzero().flatten()

    def rows(self) -> list[Tensor]:
        """Return what the units' values end in, each (units, numbers)."""
        return [_rows(self.model.get_parameter(slot.tensor), slot.axis) for slot in self.weights]

    def gradients(self) -> list[Tensor]:
        """Return the gradients of `rows`, 0 where there is none."""
        found = [(self.model.get_parameter(slot.tensor), slot.axis) for slot in self.weights]
        return [_rows(torch.zeros_like(p) if p.grad is None else p.grad, axis) for p, axis in found]

    @torch.no_grad()
    def silence(self) -> None:
        """Set the dead units' entries to 0."""
        if bool(self.alive.all()):
            return
        for slot in self.weights:
            weight = self.model.get_parameter(slot.tensor)
            weight.movedim(slot.axis, 0)[~self.alive] = 0.0

    def follow(self, kept: Sequence[int]) -> None:
        """Keep what is remembered of the units `kept` only."""
        index = torch.tensor(list(kept), device=self.alive.device)
        self.state = {key: tensor[index] for key, tensor in self.state.items()}


def _rows(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


@dataclass(frozen=True, eq=False)
class Selected:
    """Selectors by name, where their factors are, the layers they stand for, the layers without, and why.

    `slots` name a tensor whose axis is one space of `graph`, that of the selector's factors.
    """

    selectors: Mapping[str, Selector]
    slots: Mapping[str, Slot]
    layers: Mapping[str, str]
    skipped: Mapping[str, str]
    graph: Graph
