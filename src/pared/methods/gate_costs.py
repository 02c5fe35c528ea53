"""What components cost, by which the pressure on those that compete is weighed."""

import math
from collections.abc import Mapping

from torch import nn

from pared import surgery
from pared.methods.components import loser_of, members_of, sizes_of
from pared.methods.costs import Cost, Costs
from pared.methods.selectors import Competing
from pared.methods.unit_session import switch_parameters
from pared.nn import SparseAdjacency
from pared.surgery import Example, Graph, Slot, leading_to


class GateCosts(Costs):
    """What a component costs: a segment of channels what leaves with it, a module what leads to it and to no other.

    An edge of a graph costs the messages that go along it in a forward pass: as many multiply-accumulates as they have
    numbers, their part of the time that products by the graph take, or, of "parameters", the one number that is its weight.
    """

    def __init__(
        self, cost: Cost, model: nn.Module, graph: Graph, example: Example, gates: Mapping[str, Competing]
    ) -> None:
        self.gates = dict(gates)
        super().__init__(cost, model, graph, example)

    def weights(self, slots: Mapping[str, Slot]) -> dict[str, float]:
        """Return the weight of each gate."""
        held = set(map(id, self.model.modules()))  # and not in a block that is gone
        gates = {title: gate for title, gate in self.gates.items() if id(gate) in held}
        if self.cost == "none":
            return dict.fromkeys(gates, 1.0)
        each: dict[str, float] = {}
        for title, gate in gates.items():
            if isinstance(gate, SparseAdjacency):
                each[title] = self._edge(title, gate)
            elif title in slots:
                each[title] = self.unit(self.graph.at(slots[title].tensor, slots[title].axis))
            elif members := list(members_of(self.model, gate)):
                each[title] = sum(map(self._module, members)) / len(members)
            elif (loser := loser_of(self.model, gate)) is not None and len(gate.theta) > 1:
                name, module = loser
                plans = [module.without([place], sizes_of(gate), name) for place in range(len(gate.theta))]
                each[title] = sum(map(self._plan, plans)) / len(plans)
        count = sum(int(self.gates[title].alive.sum()) for title in each)
        mean = sum(cost * int(self.gates[title].alive.sum()) for title, cost in each.items()) / max(count, 1)
        return {title: cost / mean if mean else 1.0 for title, cost in each.items()}

    def _edge(self, name: str, adjacency: SparseAdjacency) -> float:
        if self.cost == "parameters":
            return 1.0
        rate = self.rates.get(name, 0.0) if self.cost == "latency" else 1.0
        return rate * _carried(name, adjacency, self.graph)

    def _macs(self) -> dict[str, float]:
        graphs = {name: gate for name, gate in self.gates.items() if isinstance(gate, SparseAdjacency)}
        told = {name: len(gate.theta) * _carried(name, gate, self.graph) for name, gate in graphs.items()}
        return super()._macs() | told

    def _plan(self, plan: surgery.Plan) -> float:
        held, own = surgery.tensors(self.model), switch_parameters(self.model)
        shares = {g.tensor: 1.0 - len(g.index) / held[g.tensor].shape[g.axis] for g in plan.gathers}
        if self.cost == "parameters":
            named = dict(self.model.named_parameters())
            return sum(named[t].numel() * share for t, share in shares.items() if t in named and t not in own)
        steps = [(step, value.tensor) for step in self.graph.program.steps for value in step.values()]
        return sum(self.price(step) * shares[tensor] for step, tensor in steps if tensor in shares)

    def _module(self, name: str) -> float:
        steps = leading_to(self.graph.program, name)
        if self.cost == "parameters":
            names = {value.tensor for step in steps for value in step.values()} - switch_parameters(self.model)
            return sum(p.numel() for name, p in self.model.named_parameters() if name in names)
        return sum(self.price(step) for step in steps)


def _carried(name: str, adjacency: SparseAdjacency, graph: Graph) -> float:
    """How many numbers go along an edge of a graph in a forward pass; 1 where nothing calls the graph itself."""
    nodes = adjacency.nodes
    calls = [step for step in graph.program.steps if step.layer == name and step.op in ("matmul", "index_add")]
    products = [step.out.shape for step in calls if len(step.out.shape) > 1 and step.out.shape[-2] == nodes]
    ways = 2.0 if adjacency.symmetric else 1.0
    return ways * sum(math.prod(shape) / nodes for shape in products) or 1.0
