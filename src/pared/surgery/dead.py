"""What removed entries still say to those who read them: nothing, a constant for a bias, or too much."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.surgery import constant_axes as _constant_axes  # noqa: F401  (registers its handlers)
from pared.surgery import constant_images as _constant_images  # noqa: F401
from pared.surgery import constant_products as _constant_products  # noqa: F401
from pared.surgery import constant_rules as _constant_rules  # noqa: F401
from pared.surgery.axes import Cut, Dim, find, locate
from pared.surgery.constants import Constants, meets_all
from pared.surgery.graph import Consumer, Graph
from pared.surgery.plan import Constant
from pared.surgery.recurrent import GATES, check_recurrent
from pared.surgery.trace import Step, Value


def emitted(graph: Graph, model: nn.Module, cut: Cut, held: Mapping[str, Tensor]) -> list[Constant]:
    """Return the constants that the removed entries feed to biases; `held` are all tensors of `model` by name.

    Raises:
        SurgeryError: a removed entry is alive, or its constant cannot be taken into a bias exactly.
    """
    known = Constants(graph.program, held, cut)
    touched = [c for c in graph.consumers if cut.touches(c.operand.dims[c.axis])]
    items = [(consumer, _fold_into(graph, consumer, model, known)) for consumer in touched]
    found: dict[tuple[str, str], Constant] = {}
    found = {(item.weight, item.bias): item for _, item in items if item is not None}
    for consumer, item in items:
        if item is not None:
            _check_readers(graph, consumer, item, [other.step for other, same in items if same == item])
    for step in graph.program.steps:
        if step.op in GATES:
            check_recurrent(step, known)
    return list(found.values())


def _check_readers(graph: Graph, consumer: Consumer, item: Constant, taking: Sequence[Step]) -> None:
    """Make sure that the bias of `item` is added only where the constants of `item` come."""
    mine = {id(step) for step in taking} | {id(_added(graph, step)) for step in taking}
    bias = graph.program.tensors.get(item.bias)
    read = consumer.weight if bias is None else bias
    for step in graph.program.steps:
        if id(step) in mine or not any(value is read for value in step.values()):
            continue
        if any(value is consumer.weight for value in step.values()):
            raise SurgeryError(
                f"layer {consumer.step.layer!r} is used more than once and gets different constants from dead channels, "
                "which one bias cannot hold; keep these channels, or let them emit zero"
            )
        raise SurgeryError(
            f"dead channels emit constants, and {item.bias!r}, which should hold them, is read elsewhere, too "
            f"({step.where()}, {step.op}); keep these channels, or let them emit zero"
        )


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
    weight, bias = consumer.weight, _bias_name(graph, consumer, model)
    says = f"entry {_entry(graph, known.cut, dim, int(needed[0]))} emits the constant {float(values[needed[0]]):g}"
    if weight is None or weight.tensor is None or bias is None:
        raise SurgeryError(
            f"{says}, which {step.where()} ({step.op}) cannot take into a bias exactly; let it emit zero, or keep it"
        )
    if not meets_all(step, weight.shape):
        why = f"places that {step.where()} ({step.op}) reaches unequally, so that no bias"
        if "transpose" not in step.op:
            why = f"the zero padding of {step.where()}, so that no bias"
        raise SurgeryError(
            f"{says} into {why} can replace it; put the switch after the last activation, so that it emits zero, or keep it"
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
    if _groups(consumer) == 1:
        columns = weight.index_select(axis, index) != 0
        for place, dim in enumerate(other.dims):
            if place != axis and known.cut.touches(dim):
                columns = columns.index_select(place, (~known.lost(dim)).nonzero().flatten().to(weight.device))
        return columns.movedim(axis, 0).flatten(1).any(1).cpu()
    within = weight.shape[axis] if axis else weight.shape[0] // _groups(consumer)
    stays = torch.ones(weight.shape[1 - axis], dtype=torch.bool, device=weight.device)
    stays[known.gone(other.dims[1 - axis])] = False
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


def _bias_name(graph: Graph, consumer: Consumer, model: nn.Module) -> str | None:
    """The bias that is added to what the consumer sums up, and to nothing else, or one that its layer can be given."""
    step, weight = consumer.step, consumer.weight
    bias = step.get("self") if step.op == "addmm" else step.get("bias")
    if isinstance(bias, Value):
        return bias.tensor if len(bias.dims) == 1 else None
    if weight is None or weight.tensor is None:
        return None
    added = _added(graph, step)
    if added is not None:
        return next(value.tensor for value in added.values() if value is not step.out)
    path, _, name = weight.tensor.rpartition(".")
    other = name.replace("weight", "bias", 1)
    if other == name:
        return None
    full = f"{path}.{other}" if path else other
    module = model.get_submodule(path)
    if step.op == "declared":
        return full if other in module._parameters else None
    if full in graph.program.tensors:  # of a recurrent layer
        return full if any(value is graph.program.tensors[full] for value in step.values()) else None
    empty = other in module._parameters and isinstance(module, _WITH_BIAS) and step.layer == path
    return full if empty and not ("transpose" in step.op and _groups(consumer) > 1) else None


#: Layers that take a bias where they have none.
_WITH_BIAS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def _added(graph: Graph, step: Step) -> Step | None:
    """The step that adds a parameter to a product with a raw weight, where no one else reads the product."""
    if step.op not in ("matmul", "mm", "linear") or not isinstance(step.out, Value):
        return None
    readers = [other for other in graph.program.steps if any(value is step.out for value in other.values())]
    told = any(value is step.out for value in graph.program.outputs)
    if len(readers) != 1 or told or readers[0].op != "add" or readers[0].get("alpha", 1) != 1:
        return None
    others = [value for value in readers[0].values() if value is not step.out]
    plain = len(others) == 1 and others[0].tensor is not None and len(others[0].dims) == 1
    return readers[0] if plain and find(others[0].dims[0]) is find(step.out.dims[-1]) else None
