"""Which weights belong to a unit: its row, or its columns in the layers that read it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pared.methods.unit_session import UnitSession
from pared.surgery import leaves_of, locate

#: A unit's group of weights: those that make it, or those that read it.
Groups = Literal["rows", "columns"]


@dataclass(frozen=True, eq=False)
class Members:
    """Weights of a selector's units: entry i of axis `axis` of the parameter `tensor` belongs to unit `unit[i]`, or -1."""

    tensor: str
    axis: int
    unit: Tensor


def members(session: UnitSession, name: str, groups: Groups) -> list[Members]:
    """Return the weights of the units of the selector `name`."""
    slot = session.slots[name]
    space = session.graph.at(slot.tensor, slot.axis)
    if groups == "rows":
        return [Members(slot.tensor, slot.axis, torch.arange(space.size))]
    found: list[Members] = []
    for consumer in session.graph.consumers:
        weight = consumer.weight
        if weight is None or weight.tensor is None:
            continue
        dim = weight.dims[consumer.weight_axis]
        if any(leaf is space.dim for leaf in leaves_of(dim)):
            placed = [dict(locate(dim, entry)).get(space.dim, -1) for entry in range(dim.size)]
            found.append(Members(weight.tensor, consumer.weight_axis, torch.tensor(placed)))
    return found


class GroupNorms:
    """The Euclidean norms of groups of weights, and steps that scale whole groups; made anew when sizes change."""

    def __init__(self, groups: Groups) -> None:
        self.groups: Groups = groups
        self._known: dict[str, tuple[int, list[Members]]] = {}

    def of(self, session: UnitSession, name: str) -> Tensor:
        """Return the norm of each unit's group, (units,); its gradient is 0 where a group is 0."""
        size = len(session.selectors[name].alive)
        total: Tensor | None = None
        for item in self._members(session, name):
            weight = session.parameter(item.tensor).movedim(item.axis, 0)
            squares = weight.reshape(len(weight), -1).square().sum(1)
            if total is None:
                total = squares.new_zeros(size + 1)
            total = total.index_add(0, item.unit.to(squares.device) % (size + 1), squares)  # -1 goes last
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
            weight.mul_(each[item.unit.to(weight.device)].view(-1, *[1] * (weight.ndim - 1)))

    def _members(self, session: UnitSession, name: str) -> list[Members]:
        size = session.params  # whatever was removed changes it
        if name not in self._known or self._known[name][0] != size:
            self._known[name] = size, members(session, name, self.groups)
        return self._known[name][1]
