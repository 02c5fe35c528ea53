"""What removed entries still say to those who read them: nothing, a constant for a bias, or too much."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.surgery import constant_rules as _constant_rules  # noqa: F401  (registers its handlers)
from pared.surgery.axes import Cut, Dim, locate
from pared.surgery.constants import Constants
from pared.surgery.graph import Consumer, Graph
from pared.surgery.plan import Constant
from pared.surgery.recurrent import GATES, check_recurrent
from pared.surgery.trace import Value


def emitted(graph: Graph, model: nn.Module, cut: Cut, held: Mapping[str, Tensor]) -> list[Constant]:
    """Return the constants that the removed entries feed to biases; `held` are all tensors of `model` by name.

    Raises:
        SurgeryError: a removed entry is alive, or its constant cannot be taken into a bias exactly.
    """
    known = Constants(graph.program, held, cut)
    found: dict[tuple[str, str], Constant] = {}
    for consumer in graph.consumers:
        if not cut.touches(consumer.operand.dims[consumer.axis]):
            continue
        item = _fold_into(graph, consumer, model, known)
        if item is None:
            continue
        before = found.setdefault((item.weight, item.bias), item)
        if before != item:
            raise SurgeryError(
                f"layer {consumer.step.layer!r} is used more than once and gets different constants from dead channels, "
                "which one bias cannot hold; keep these channels, or let them emit zero"
            )
    for step in graph.program.steps:
        if step.op in GATES:
            check_recurrent(step, known)
    return list(found.values())


def _fold_into(graph: Graph, consumer: Consumer, model: nn.Module, known: Constants) -> Constant | None:
    """The constants that reach a consumer, None where they are all zero or not read."""
    if known.is_zero(consumer.operand, consumer.step):
        return None
    step, dim = consumer.step, consumer.operand.dims[consumer.axis]
    values, mask = known.along(consumer.operand, consumer.axis, step)
    index = known.gone(dim)
    index = index[~(mask & (values == 0))[index]]
    if not len(index):
        return None
    needed = index[_read(consumer, known, index)]
    alive = needed[~mask[needed]]
    if len(alive):
        raise SurgeryError(
            f"entry {_entry(graph, known.cut, dim, int(alive[0]))} is alive: what it gives to {step.where()} varies with "
            "the input, and the weights there are not zero; let it die first (its weights, norm or switch at zero), or "
            "cut it with living='cut'"
        )
    if not len(needed):
        return None
    weight, bias = consumer.weight, _bias_name(consumer, model)
    says = f"entry {_entry(graph, known.cut, dim, int(needed[0]))} emits the constant {float(values[needed[0]]):g}"
    if weight is None or weight.tensor is None or bias is None or "transpose" in step.op:
        raise SurgeryError(
            f"{says}, which {step.where()} ({step.op}) cannot take into a bias exactly; let it emit zero, or keep it"
        )
    if _pads_with_zeros(consumer):
        raise SurgeryError(
            f"{says} into the zero padding of {step.where()}, so that no bias can replace it; put the switch after the "
            "last activation, so that it emits zero, or keep it"
        )
    constants = tuple(values[needed].tolist())
    return Constant(weight.tensor, bias, tuple(needed.tolist()), constants, consumer.weight_axis, _groups(consumer))


def _entry(graph: Graph, cut: Cut, dim: Dim, place: int) -> str:
    """The removed entry that entry `place` of an axis stands for, by its number and space."""
    for leaf, entry in locate(dim, place):
        if leaf in cut.keep and entry not in cut.keep[leaf]:
            return f"{entry} of {next((space.name for space in graph.spaces if space.dim is leaf), 'an axis')!r}"
    return str(place)


def _read(consumer: Consumer, known: Constants, index: Tensor) -> Tensor:
    """Which of the entries `index` meet a weight that is not zero (or not known to be), in a row that stays."""
    other, axis = consumer.weight, consumer.weight_axis
    if other is None or not len(index):
        return torch.ones(len(index), dtype=torch.bool)
    weight = known.weight(other) if other.tensor is not None else None
    if weight is None:
        values, mask = known.along(other, axis, consumer.step)
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
