"""A removal as plain data: what to gather, which constants to fold, which attributes to set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.nn import Switch
from pared.surgery.axes import Dim, leaves, positions
from pared.surgery.constants import Constants
from pared.surgery.graph import Consumer, Graph, state_of
from pared.surgery.trace import Value, tensors

#: What happens to an entry that still says something: an error, or its contribution is dropped.
Living = Literal["refuse", "cut"]


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


def make_plan(
    graph: Graph, model: nn.Module, keep: Mapping[str, Sequence[int] | Tensor], *, living: Living = "refuse"
) -> Plan:
    """Return the plan that keeps, in each named space, the given entries and removes the rest.

    `keep` maps the name of a space, or of a layer, to sorted entries. The removed ones have to be dead: what reads
    them gets a constant, which is folded into its bias, or has zero weights for them. With `living="cut"` they may be
    alive, and what they would have contributed is dropped, which changes what the network computes.

    Raises:
        SurgeryError: an unknown or fixed space, an entry out of range or still alive, nothing left of a space, or a
            constant that cannot be folded exactly (through zero padding, or where there is no bias).
    """
    wanted: dict[Dim, tuple[int, ...]] = {}
    for name, entries in keep.items():
        space = graph.find(name)
        index = tuple(int(entry) for entry in entries)
        _check(space.name, space.size, index)
        if len(index) < space.size:
            if space.fixed is not None:
                raise SurgeryError(f"no entry of {space.name!r} can be removed: {space.fixed}")
            wanted[space.dim] = index
    if not wanted:
        return Plan()
    constants = _constants(graph, model, wanted) if living == "refuse" else ()
    return Plan(tuple(_gathers(graph, model, wanted)), tuple(constants), tuple(_resizes(graph, wanted)))


def _check(name: str, size: int, index: tuple[int, ...]) -> None:
    if not index:
        raise SurgeryError(f"space {name!r} would lose all its {size} entries; keep at least one")
    if list(index) != sorted(set(index)) or index[0] < 0 or index[-1] >= size:
        raise SurgeryError(
            f"entries to keep in {name!r} must be sorted, distinct and within 0..{size - 1}; got {index[:8]}"
        )


def _gathers(graph: Graph, model: nn.Module, keep: Mapping[Dim, tuple[int, ...]]) -> Iterator[Gather]:
    made: dict[int, tuple[int, ...]] = {}  # tensors of one dim share one index
    for name, value in _placed(graph, model):
        for axis, dim in enumerate(value.dims):
            if any(leaf in keep for leaf in leaves(dim)):
                leaf = keep.get(dim)
                index = made.setdefault(id(dim), leaf or tuple(positions(dim, keep)))
                yield Gather(name, axis, index)


def _placed(graph: Graph, model: nn.Module) -> Iterator[tuple[str, Value]]:
    """The tensors of the graph, and what rules of death have come to remember in switches since it was made."""
    yield from graph.program.tensors.items()
    for path, module in model.named_modules():
        if isinstance(module, Switch):
            for key in state_of(module):
                if f"{path}.{key}" not in graph.program.tensors:
                    yield f"{path}.{key}", graph.program.tensors[f"{path}.theta"]


def _resizes(graph: Graph, keep: Mapping[Dim, tuple[int, ...]]) -> Iterator[Resize]:
    for attribute in graph.attributes:
        if any(leaf in keep for leaf in leaves(attribute.dim)):
            yield Resize(attribute.module, attribute.name, len(positions(attribute.dim, keep)))


# --- what the removed entries still say -----------------------------------------------------------------------------


def _constants(graph: Graph, model: nn.Module, keep: Mapping[Dim, tuple[int, ...]]) -> list[Constant]:
    known = Constants(graph.program, tensors(model), keep)
    found: dict[tuple[str, str], Constant] = {}
    for consumer in graph.consumers:
        dim = consumer.operand.dims[consumer.axis]
        if not any(leaf in keep for leaf in leaves(dim)):
            continue
        item = _fold_into(consumer, model, known, known.gone(dim))
        if item is None:
            continue
        before = found.setdefault((item.weight, item.bias), item)
        if before != item:
            raise SurgeryError(
                f"layer {consumer.step.layer!r} is used more than once and gets different constants from dead channels, "
                "which one bias cannot hold; keep these channels, or let them emit zero"
            )
    _check_recurrent(graph, known)
    return list(found.values())


def _fold_into(consumer: Consumer, model: nn.Module, known: Constants, gone: list[int]) -> Constant | None:
    """The constants that reach a consumer, None where they are all zero or not read."""
    step, operand = consumer.step, consumer.operand
    values, mask = known.along(operand, consumer.axis)
    weight = consumer.weight
    index = torch.tensor(gone, dtype=torch.long)
    read = _read(consumer, known, index)
    needed = index[read.cpu()]
    alive = needed[~mask[needed]]
    if len(alive):
        raise SurgeryError(
            f"entry {int(alive[0])} of what {step.where()} takes is alive: it varies with the input, and its weights "
            "there are not zero; let it die first (its weights, norm or switch at zero), or cut it with living='cut'"
        )
    needed = needed[values[needed] != 0]
    if not len(needed):
        return None
    bias = _bias_name(consumer, model)
    if weight is None or weight.tensor is None or bias is None or "transpose" in step.op:
        raise SurgeryError(
            f"a dead channel emits the constant {float(values[needed[0]]):g}, which {step.where()} ({step.op}) cannot take "
            "into a bias exactly; let it emit zero, or keep it"
        )
    if _pads_with_zeros(consumer):
        raise SurgeryError(
            f"a dead channel emits the constant {float(values[needed[0]]):g} into the zero padding of {step.where()}, so "
            "that no bias can replace it; put the switch after the last activation, so that it emits zero, or keep it"
        )
    emitted = tuple(values[needed].tolist())
    return Constant(weight.tensor, bias, tuple(needed.tolist()), emitted, consumer.weight_axis, _groups(consumer))


def _read(consumer: Consumer, known: Constants, index: Tensor) -> Tensor:
    """Which of the entries `index` meet a weight that is not zero (or not known to be), in a row that stays."""
    other, axis = consumer.weight, consumer.weight_axis
    if other is None or not len(index):
        return torch.ones(len(index), dtype=torch.bool)
    weight = known.weight(other) if other.tensor is not None else None
    if weight is None:
        values, mask = known.along(other, axis)
        return ~(mask & (values == 0))[index]
    if weight.ndim < 2:
        return (weight[index] != 0).cpu()
    index = index.to(weight.device)
    within = weight.shape[axis] if axis else weight.shape[0] // _groups(consumer)
    stays = torch.ones(weight.shape[1 - axis], dtype=torch.bool, device=weight.device)
    stays[known.gone(other.dims[1 - axis])] = False
    if _groups(consumer) == 1:
        columns = weight.index_select(axis, index) != 0
        return columns.movedim(axis, 0)[:, stays].flatten(1).any(1).cpu()
    if axis == 0:  # transposed, in groups
        return (weight[index] != 0).flatten(1).any(1).cpu()
    by_group = ((weight != 0).flatten(2).any(2) & stays[:, None]).unflatten(0, (_groups(consumer), -1)).any(1)
    return by_group[index // within, index % within].cpu()


def _groups(consumer: Consumer) -> int:
    """The number of groups of a convolution, as of now."""
    weight = consumer.weight
    if weight is None or not consumer.step.op.startswith("conv"):
        return 1
    size = consumer.operand.dims[consumer.axis].size
    if consumer.weight_axis == 1:
        return size // weight.shape[1]
    return consumer.step.out.shape[-len(weight.dims) + 1] // weight.shape[1]


def _bias_name(consumer: Consumer, model: nn.Module) -> str | None:
    step = consumer.step
    bias = step.get("self") if step.op == "addmm" else step.get("bias")
    if isinstance(bias, Value):
        return bias.tensor if len(bias.dims) == 1 else None
    weight = consumer.weight
    if weight is None or weight.tensor is None:
        return None
    path, _, name = weight.tensor.rpartition(".")
    parameters = model.get_submodule(path)._parameters
    other = name.replace("weight", "bias", 1)
    return f"{path}.{other}" if other != name and other in parameters else None


def _pads_with_zeros(consumer: Consumer) -> bool:
    padding = consumer.step.get("padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _check_recurrent(graph: Graph, known: Constants) -> None:
    """A recurrent unit is read by its own layer, too: it has to be dead by itself."""
    for step in graph.program.steps:
        if step.op not in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            continue
        gone = known.gone(step.out[0].dims[-1])
        _, mask = known.along(step.out[0], len(step.out[0].dims) - 1)
        alive = [entry for entry in gone if not mask[entry]]
        if alive:
            raise SurgeryError(
                f"unit {alive[0]} of {step.where()} is alive; its candidate gate has to have zero weights and biases"
            )
