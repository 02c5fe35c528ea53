"""What decides over the units of a layer: a switch behind it, or the layer itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from pared.methods.rows import Rows, units_along
from pared.nn import Gate, SparseAdjacency
from pared.surgery import Graph, Slot, find

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

    A dead one has its entries of `weights` at 0: those of the layer, or of the norm after it, so that it gives 0.

    Args:
        model: the network, bare.
        graph: of the network, which is kept true.
        space: the name of the units' space.
        weights: the parameters that end in the units' values, with the axis of the units.
        makes: those of them, or others, whose norm is that of a unit: the weights of the layer.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        space: str,
        weights: Sequence[Rows],
        makes: Sequence[Rows],
    ) -> None:
        self.model, self.graph, self.dim = model, graph, find(graph.find(space).dim)
        self.weights, self.makes, size = tuple(weights), tuple(makes), graph.find(space).size
        self._known: dict[tuple[str, int, int, int], Rows] = {}
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
        return [rows.of(self.model.get_parameter(rows.tensor)) for rows in self._now(self.weights)]

    def gradients(self) -> list[Tensor]:
        """Return the gradients of `rows`, 0 where there is none."""
        found = [(rows, self.model.get_parameter(rows.tensor)) for rows in self._now(self.weights)]
        return [rows.of(torch.zeros_like(p) if p.grad is None else p.grad) for rows, p in found]

    def norm(self) -> Tensor:
        """Return the Euclidean norm of the weights that make each unit, (units,)."""
        norms = [rows.of(self.model.get_parameter(rows.tensor)).norm(dim=1) for rows in self.made()]
        return norms[0] if len(norms) == 1 else torch.stack(norms).norm(dim=0)

    def made(self) -> list[Rows]:
        """Return the weights that make the units."""
        return self._now(self.makes)

    def _now(self, parts: Sequence[Rows]) -> list[Rows]:
        """Where the units' entries are now, that others may have left the same axes."""
        return [rows if rows.unit is None else self._moved(rows) for rows in parts]

    def _moved(self, rows: Rows) -> Rows:
        dim = self.graph.program.tensors[rows.tensor].dims[rows.axis]
        key = (rows.tensor, rows.axis, dim.size, self.dim.size)
        if key not in self._known:
            self._known = {k: known for k, known in self._known.items() if k[:2] != key[:2]}
            self._known[key] = replace(rows, unit=units_along(dim, self.dim))
        return self._known[key]

    @torch.no_grad()
    def silence(self) -> None:
        """Set the dead units' entries to 0."""
        if bool(self.alive.all()):
            return
        for rows in self._now(self.weights):
            weight = self.model.get_parameter(rows.tensor)
            weight.movedim(rows.axis, 0)[rows.mask(~self.alive)] = 0.0

    def follow(self, kept: Sequence[int]) -> None:
        """Keep what is remembered of the units `kept` only."""
        index = torch.tensor(list(kept), device=self.alive.device)
        self.state = {key: tensor[index] for key, tensor in self.state.items()}


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
