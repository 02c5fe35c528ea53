"""Which weights belong to a unit: its row, or its columns in the layers that read it."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pared.methods.makers import readers, rows_of
from pared.methods.rows import Rows
from pared.methods.unit_session import UnitSession

#: A unit's group of weights: those that make it, or those that read it.
Groups = Literal["rows", "columns"]


def members(session: UnitSession, name: str, groups: Groups) -> list[Rows]:
    """Return the weights of the units of the selector `name`."""
    if groups == "rows" and name in session.units:
        return session.units[name].made()
    slot = session.slots[name]
    space = session.graph.at(slot.tensor, slot.axis, slot.leaf)
    if groups == "rows":
        return [Rows(slot.tensor, slot.axis)]
    learnt = dict(session.net.named_parameters(remove_duplicate=False))
    return [rows_of(session.graph, slot, space) for slot in readers(session.graph, space) if slot.tensor in learnt]


class GroupNorms:
    """The Euclidean norms of groups of weights, and steps that scale whole groups; made anew when sizes change."""

    def __init__(self, groups: Groups) -> None:
        self.groups: Groups = groups
        self._known: dict[str, tuple[int, list[Rows]]] = {}

    def of(self, session: UnitSession, name: str) -> Tensor:
        """Return the norm of each unit's group, (units,); its gradient is 0 where a group is 0."""
        size = len(session.selectors[name].alive)
        total: Tensor | None = None
        for item in self._members(session, name):
            weight = session.parameter(item.tensor).movedim(item.axis, 0)
            squares = weight.reshape(len(weight), -1).square().sum(1)
            if total is None:
                total = squares.new_zeros(size + 1)
            total = total.index_add(0, self._unit(item, size, squares.device) % (size + 1), squares)  # -1 goes last
        assert total is not None
        total = total[:size]
        return torch.where(total > 0, total, 1.0).sqrt() * (total > 0)

    @torch.no_grad()
    def scale_(self, session: UnitSession, name: str, factors: Callable[[float], Tensor]) -> None:
        """Multiply each unit's group by its factor, which may depend on the learning rate of the weights."""
        rates = session.learning_rates()
        for item in self._members(session, name):
            parameter = session.parameter(item.tensor)
            weight = parameter.movedim(item.axis, 0)
            each = torch.cat(
                [factors(rates.get(id(parameter), 0.0)), torch.ones(1, device=weight.device, dtype=weight.dtype)]
            )
            unit = self._unit(item, len(each) - 1, weight.device)
            weight.mul_(each[unit].view(-1, *[1] * (weight.ndim - 1)))

    @staticmethod
    def _unit(item: Rows, size: int, device: torch.device) -> Tensor:
        return torch.arange(size, device=device) if item.unit is None else item.unit.to(device)

    def _members(self, session: UnitSession, name: str) -> list[Rows]:
        size = session.params  # whatever was removed changes it
        if name not in self._known or self._known[name][0] != size:
            self._known[name] = size, members(session, name, self.groups)
        return self._known[name][1]
