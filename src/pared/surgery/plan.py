"""A removal as plain data: what to gather, which constants to fold, which attributes to set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Gather:
    """Along `axis` of `tensor`, entry i becomes the old entry `index[i]`, or zero with zero state where that is -1."""

    tensor: str
    axis: int
    index: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """Channels `index` (old numbering) feed constants `values` to `weight`, along its `axis`: `bias` takes their sum.

    For a convolution the entries of the kernel are added up; with `groups` the channels are numbered over all groups.
    """

    weight: str
    bias: str
    index: tuple[int, ...]
    values: tuple[float, ...]
    axis: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Resize:
    """Module `module` has its integer `attribute` set to `value`."""

    module: str
    attribute: str
    value: int


@dataclass(frozen=True)
class Plan:
    """One removal, whole: JSON-able, independent of the model object it was made from."""

    gathers: tuple[Gather, ...] = ()
    constants: tuple[Constant, ...] = ()
    resizes: tuple[Resize, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.gathers or self.constants or self.resizes)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """Rebuild a plan from `to_json`'s data."""
        return cls(
            tuple(Gather(g["tensor"], g["axis"], tuple(g["index"])) for g in data["gathers"]),
            tuple(
                Constant(**{**c, "index": tuple(c["index"]), "values": tuple(c["values"])}) for c in data["constants"]
            ),
            tuple(Resize(**r) for r in data["resizes"]),
        )
