"""A removal as plain data: what to gather, which constants to fold, which attributes to set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.nn import Switch
from pared.surgery.graph import ELEMENTWISE, Graph, Space


@dataclass(frozen=True)
class Gather:
    """Along `axis` of `tensor`, entry i becomes the old entry `index[i]`, or zero with zero state where that is -1."""

    tensor: str
    axis: int
    index: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """Channels `index` (old numbering) feed constants `values` to `weight`: `bias` takes weight[:, index] @ values."""

    weight: str
    bias: str
    index: tuple[int, ...]
    values: tuple[float, ...]


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
            tuple(Constant(c["weight"], c["bias"], tuple(c["index"]), tuple(c["values"])) for c in data["constants"]),
            tuple(Resize(**r) for r in data["resizes"]),
        )


def make_plan(graph: Graph, model: nn.Module, keep: Mapping[str, Sequence[int] | Tensor]) -> Plan:
    """Return the plan that keeps, in each named space, the given entries and removes the rest.

    `keep` maps a space's name to sorted indices: of channels, or of factors where the space's switch is grouped.
    A removed channel of a switched space is taken to be dead (its factor is 0); the constant that it still emits
    through what follows the switch is folded into the consumer's bias.

    Raises:
        SurgeryError: an unknown or fixed space, an index out of range, or nothing left of a space.
    """
    spaces = {space.name: space for space in graph.spaces}
    gathers: list[Gather] = []
    constants: list[Constant] = []
    resizes: list[Resize] = []
    for name, indices in keep.items():
        space = spaces.get(name)
        if space is None or not space.removable:
            raise SurgeryError(
                f"no space {name!r} to remove from; choose one of "
                f"{', '.join(s.name for s in graph.spaces if s.removable)}"
            )
        factors = tuple(int(i) for i in indices)
        channels = _channels(space, model, factors)
        _check(space, channels)
        gathers += [Gather(slot.tensor, slot.axis, factors) for slot in space.factors]
        gathers += [Gather(slot.tensor, slot.axis, channels) for slot in space.slots]
        resizes += [Resize(module, attribute, len(channels)) for module, attribute in space.attributes]
        constant = _constant(space, model, channels)
        if constant is not None:
            constants.append(constant)
    return Plan(tuple(gathers), tuple(constants), tuple(resizes))


def _channels(space: Space, model: nn.Module, factors: tuple[int, ...]) -> tuple[int, ...]:
    switch = model.get_submodule(space.switch) if space.switch else None
    if not isinstance(switch, Switch) or switch.sizes is None:
        return factors
    ends = switch.sizes.cumsum(0).tolist()
    sizes = switch.sizes.tolist()
    if any(not 0 <= factor < len(sizes) for factor in factors):
        raise SurgeryError(f"factors to keep in {space.name!r} must be within 0..{len(sizes) - 1}; got {factors[:8]}")
    return tuple(channel for factor in factors for channel in range(ends[factor] - sizes[factor], ends[factor]))


def _check(space: Space, channels: tuple[int, ...]) -> None:
    if not channels:
        raise SurgeryError(f"space {space.name!r} would lose all its {space.size} channels; keep at least one")
    if list(channels) != sorted(set(channels)) or channels[0] < 0 or channels[-1] >= space.size:
        raise SurgeryError(
            f"indices to keep in {space.name!r} must be sorted, distinct and within 0..{space.size - 1}; got "
            f"{channels[:8]}…"
        )


def _constant(space: Space, model: nn.Module, channels: tuple[int, ...]) -> Constant | None:
    """What the removed channels still emit, having been zeroed by the switch."""
    kept = set(channels)
    dead = tuple(i for i in range(space.size) if i not in kept)
    if not dead or space.switch is None or space.consumer is None:
        return None
    after = space.chain[space.chain.index(space.switch) + 1 :]
    values = _emit(model, after, space.size)[list(dead)]
    if not values.any():
        return None
    return Constant(f"{space.consumer}.weight", f"{space.consumer}.bias", dead, tuple(values.tolist()))


@torch.no_grad()
def _emit(model: nn.Module, chain: Sequence[str], size: int) -> Tensor:
    """Push zeros through `chain` as in evaluation, float64 (size,), without touching the modules' own state."""
    x = torch.zeros(size, dtype=torch.float64)
    for name in chain:
        module = model.get_submodule(name)
        if isinstance(module, nn.BatchNorm1d):
            x = _batch_norm(module, x)
        elif isinstance(module, Switch):
            x = x * module.factors().to(x)
        elif isinstance(module, nn.Dropout | nn.AlphaDropout):
            continue
        elif isinstance(module, ELEMENTWISE):
            x = type(module).forward(module, x)
    return x


def _batch_norm(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    if norm.running_mean is None or norm.running_var is None:
        raise SurgeryError(
            "a BatchNorm1d without running statistics emits a constant that depends on the batch; use "
            "track_running_stats=True"
        )
    x = (x - norm.running_mean.to(x)) / (norm.running_var.to(x) + norm.eps).sqrt()
    x = x if norm.weight is None else x * norm.weight.to(x)
    return x if norm.bias is None else x + norm.bias.to(x)
