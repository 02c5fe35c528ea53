"""What a unit costs, by which the pressure on it can be weighed."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from pared.errors import ConfigError
from pared.measure.mac_counter import MacCounter, multiplies
from pared.methods.latencies import layer_latencies_us
from pared.surgery import Example, Graph, Slot, Space, Step, Value, leaves_of
from pared.surgery.axes import Dim

#: What the pressure on a factor is weighed by: nothing, or what its units cost.
Cost = Literal["none", "parameters", "macs", "latency"]


def check_cost(cost: str) -> None:
    """Make sure that `cost` is one of those known.

    Raises:
        ConfigError: it is not.
    """
    if cost not in get_args(Cost):
        raise ConfigError(f"cost must be one of {', '.join(get_args(Cost))}; got {cost!r}")


class Costs:
    """The weights of selectors, such that their mean over all factors is 1; asked again after each removal.

    "parameters" counts the numbers that leave with a unit, "macs" the multiply-accumulates of the layers and products that
    make and read it (attention's two, `x @ w`, and recurrent layers too), "latency" shares out the measured microseconds of
    those layers, which shrink with their multiply-accumulates.
    """

    def __init__(self, cost: Cost, model: nn.Module, graph: Graph, example: Example) -> None:
        self.cost, self.model, self.graph = cost, model, graph
        self.rates: dict[str, float] = {}
        if cost == "latency":
            measured, counted = layer_latencies_us(model, example), self._macs()
            self.rates = {layer: measured[layer] / macs for layer, macs in counted.items() if layer in measured}

    def weights(self, slots: Mapping[str, Slot]) -> dict[str, float]:
        """Return the weight of each selector, given where its factors are."""
        if self.cost == "none":
            return dict.fromkeys(slots, 1.0)
        spaces = {name: self.graph.at(slot.tensor, slot.axis, slot.leaf) for name, slot in slots.items()}
        each = {name: self.unit(space) for name, space in spaces.items()}
        units = sum(space.size for space in spaces.values())
        mean = sum(each[name] * space.size for name, space in spaces.items()) / units
        return {name: cost / mean if mean else 1.0 for name, cost in each.items()}

    def unit(self, space: Space) -> float:
        """Return what one entry of `space` costs."""
        if self.cost == "parameters":
            held = dict(self.model.named_parameters())
            names = {slot.tensor for slot in space.slots if not slot.tensor.endswith(".theta")}
            return sum(held[name].numel() for name in names & held.keys()) / space.size
        total = 0.0
        for step in _products(self.graph):
            if any(space.dim is leaf for dim in _dims(step) for leaf in leaves_of(dim)):
                total += self.price(step)
        return total / space.size

    def price(self, step: Step) -> float:
        """Return what a step costs, 0 where it is no product."""
        if not _is_product(step):
            return 0.0
        return _macs(step) * (self.rates.get(step.layer, 0.0) if self.cost == "latency" else 1.0)

    def _macs(self) -> dict[str, float]:
        counted: dict[str, float] = {}
        for step in _products(self.graph):
            counted[step.layer] = counted.get(step.layer, 0.0) + _macs(step)
        return counted


def _products(graph: Graph) -> list[Step]:
    """The steps that multiply, mostly by a weight."""
    return [step for step in graph.program.steps if _is_product(step)]


def _is_layer(step: Step) -> bool:
    return step.op in ("linear", "addmm") or step.op.startswith("conv")


def _is_product(step: Step) -> bool:
    return _is_layer(step) or multiplies(step.op)


def _weight(step: Step) -> Value:
    return step["mat2"] if step.op == "addmm" else step["weight"]


def _dims(step: Step) -> list[Dim]:
    """The axes whose entries a product's multiply-accumulates are shared by: its weight's, or those of all it takes."""
    return list(_weight(step).dims) if _is_layer(step) else [dim for value in step.values() for dim in value.dims]


def _macs(step: Step) -> float:
    """Multiply-accumulates of a product as the network is now."""
    if not _is_layer(step):
        return _counted(step)
    weight, out = math.prod(_weight(step).shape), math.prod(step.out.shape)
    if step.op == "addmm":
        return out * step["mat1"].shape[-1]
    if "transpose" in step.op:
        return math.prod(step["input"].shape) * weight / step["input"].shape[1 - len(_weight(step).shape)]
    return out * weight / step.out.shape[-1 if step.op == "linear" else 1 - len(_weight(step).shape)]


def _counted(step: Step) -> float:
    """The same of any operator: it runs without numbers on tensors of the sizes of now."""

    def empty(item: Any) -> Any:
        if isinstance(item, Value):
            return torch.empty(item.shape, device="meta")
        return [empty(part) for part in item] if isinstance(item, list | tuple) else item

    schema = step.target._schema.arguments
    given = {name: empty(item) for name, item in step.args.items()}
    first = [given.pop(one.name) for one in schema if not one.kwarg_only and one.name in given]
    with torch.no_grad(), MacCounter() as counter:
        step.target(*first, **given)
    return counter.total
