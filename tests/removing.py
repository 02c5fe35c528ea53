"""Each unit of a network removed alone, beside the same unit zeroed: what the network computes has to stay."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pared import surgery
from pared.errors import SurgeryError
from pared.surgery import Graph, Slot, Space
from pared.surgery.axes import positions


class Fn(nn.Module):
    """A network whose forward pass is a function of itself and its inputs."""

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *x: Tensor) -> Any:
        return self.run(self, *x)


def _wide(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.double() if item.is_floating_point() else item
    return tuple(_wide(part) for part in item)


def _slots(graph: Graph, space: Space, what: str) -> Iterator[Slot]:
    read = {(c.weight.tensor, c.weight_axis) for c in graph.consumers if c.weight is not None}
    for slot in space.slots:
        if what == "all" or what == ("read" if (slot.tensor, slot.axis) in read else "made"):
            yield slot


@torch.no_grad()
def zero(net: nn.Module, graph: Graph, space: Space, entry: int, what: str = "all") -> bool:
    """Zero what makes a unit ("made", its biases are 0.7), what reads it ("read"), or "all"; tell whether there was some."""
    held, found = surgery.tensors(net), False
    keep = {space.dim: [place for place in range(space.size) if place != entry]}
    for slot in _slots(graph, space, what):
        dim, tensor = graph.program.tensors[slot.tensor].dims[slot.axis], held[slot.tensor]
        if tensor.is_floating_point() and not slot.tensor.endswith("running_var"):
            kept = set(positions(dim, keep))
            lost = [place for place in range(dim.size) if place not in kept]
            says = 0.7 if what == "made" and slot.tensor.rpartition(".")[2].startswith("bias") else 0.0
            tensor.index_fill_(slot.axis, torch.tensor(lost, dtype=torch.long), says)
            found = True
    return found


def check_each_unit(make: Callable[[], nn.Module], example: Any, expected: dict[str, int]) -> dict[str, set[str]]:
    """Remove the first and last entry of every space of a network where it was zeroed; return what was refused, by space.

    `expected` says which spaces there are, and how large. A unit all of whose numbers are zero may not be refused.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = make().double().eval()
    x = _wide(example if isinstance(example, tuple) else (example,))
    graph = surgery.graph(net, x)
    assert {space.name: space.size for space in graph.removable()} == expected, str(graph)
    refused: dict[str, set[str]] = {}
    for space in graph.removable():
        for entry in (0, space.size - 1):
            for what in ("all", "made", "read"):
                small, known = copy.deepcopy((net, graph))
                if not zero(small, known, known.find(space.name), entry, what):
                    continue
                try:
                    _remove(small, known, x, space.name, entry)
                except SurgeryError:
                    if what == "all":
                        raise
                    refused.setdefault(space.name, set()).add(what)
    return refused


def _remove(net: nn.Module, graph: Graph, x: Any, space: str, entry: int) -> None:
    before = net(*x)
    surgery.remove(net, {space: [entry]}, graph=graph)
    torch.testing.assert_close(net(*x), before, rtol=1e-10, atol=1e-10)
    again = surgery.graph(net, x)
    assert sorted(s.size for s in again.removable()) == sorted(s.size for s in graph.removable())
