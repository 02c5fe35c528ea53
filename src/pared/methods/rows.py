"""Entries of parameters that belong to units, wherever along an axis they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pared import surgery
from pared.surgery.axes import Dim, Kind


@dataclass(frozen=True, eq=False)
class Rows:
    """Entries of a parameter that belong to units: entry i of axis `axis` to unit `unit[i]`, to none where that is -1.

    Without `unit` entry i belongs to unit i.
    """

    tensor: str
    axis: int
    unit: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return these entries of `tensor`, (units, numbers), where every unit has equally many."""
        moved = tensor.movedim(self.axis, 0)
        if self.unit is None:
            return moved.reshape(len(moved), -1)
        order = self.unit.argsort(stable=True)[int((self.unit < 0).sum()) :]
        return moved[order.to(tensor.device)].reshape(int(self.unit.max()) + 1, -1)

    def mask(self, units: Tensor) -> Tensor:
        """Return which entries of the axis belong to one of `units`, given as bool (units,)."""
        if self.unit is None:
            return units
        belongs = self.unit.to(units.device)
        return units[belongs.clamp(min=0)] & (belongs >= 0)


def units_along(dim: Dim, leaf: Dim) -> Tensor:
    """Return which entry of `leaf` each entry of `dim` belongs to, -1 where to none: int64 (size,)."""
    dim = surgery.find(dim)
    if dim.kind is Kind.LEAF:
        return torch.arange(dim.size) if dim is leaf else torch.full((dim.size,), -1)
    parts = [units_along(part, leaf) for part in dim.parts]
    if dim.kind is Kind.SUM:
        return torch.cat(parts)
    if dim.kind is Kind.RAGGED:
        return parts[0].repeat_interleave(torch.tensor(dim.blocks))
    found = parts[0]
    for part in parts[1:]:
        found = torch.maximum(found.unsqueeze(1), part.unsqueeze(0)).flatten()
    return found
