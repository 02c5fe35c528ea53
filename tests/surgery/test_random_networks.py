"""Whatever the network: removing what is dead changes nothing, not now and not in the steps that follow."""

import copy
import json
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pared import surgery
from pared.errors import SurgeryError
from pared.surgery import Plan
from zoo import kill, random_net

EXAMPLE = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def dead_net(seed: int) -> tuple[nn.Module, Any, dict[str, list[int]]]:
    """A random network with dead entries, its graph, and those entries that can go: not the refused ones."""
    net = random_net(seed)
    graph = surgery.graph(net, EXAMPLE)
    gone = kill(net, graph, random.Random(seed))
    try:
        surgery.make_plan(graph, net, keep_of(graph, gone))
    except SurgeryError:
        gone = {name: entries for name, entries in gone.items() if goes(graph, net, {name: entries})}
        while gone and not goes(graph, net, gone):  # together they may emit what alone they do not
            gone.popitem()
    return net, graph, gone


def keep_of(graph: Any, gone: dict[str, list[int]]) -> dict[str, list[int]]:
    return {name: [i for i in range(graph.find(name).size) if i not in lost] for name, lost in gone.items()}


def goes(graph: Any, net: nn.Module, gone: dict[str, list[int]]) -> bool:
    try:
        surgery.make_plan(graph, net, keep_of(graph, gone))
    except SurgeryError:
        return False
    return True


def check_function(net: nn.Module, graph: Any, gone: dict[str, list[int]]) -> int:
    """Remove in float64 and, by the same plan, in float32; return how many entries went."""
    single, before = copy.deepcopy(net).float(), net(EXAMPLE)
    plan = surgery.remove(net, gone, graph=graph)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    torch.testing.assert_close(net(EXAMPLE), before, rtol=1e-10, atol=1e-10)
    surgery.apply(plan, single)
    torch.testing.assert_close(single(EXAMPLE.float()), before.float(), rtol=1e-5, atol=1e-5)
    for name, tensor in net.state_dict().items():
        assert tuple(tensor.shape) == graph.program.tensors[name].shape, name
    return sum(map(len, gone.values()))


def masks_of(plan: Plan, net: nn.Module) -> dict[str, Tensor]:
    """True where the plan removes an entry, by the name of the parameter."""
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in net.named_parameters()}
    for item in plan.gathers:
        if item.tensor in masks:
            gone = [i for i in range(masks[item.tensor].shape[item.axis]) if i not in item.index]
            masks[item.tensor].index_fill_(item.axis, torch.tensor(gone, dtype=torch.long), True)
    return masks


def step(net: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor] | None = None) -> None:
    optimizer.zero_grad()
    (net(EXAMPLE) - 0.3).square().mean().backward()
    for name, parameter in net.named_parameters():
        if masks is not None and parameter.grad is not None:
            parameter.grad[masks[name]] = 0.0
    optimizer.step()


MAKERS: dict[str, Any] = {
    # Adam divides rounding by itself where a gradient is nothing but rounding: eps keeps that out.
    "Adam": lambda net: torch.optim.Adam(net.parameters(), lr=0.02, eps=1e-4),
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9),
}


def check_next_steps(net: nn.Module, graph: Any, gone: dict[str, list[int]], name: str) -> bool:
    """The survivors' next steps are those of a twin that keeps the dead path, frozen; tell whether there was one."""
    optimizer = MAKERS[name](net)
    untouched = copy.deepcopy(net.state_dict())
    for _ in range(2):  # there is some history to follow
        step(net, optimizer)
    net.load_state_dict(untouched)
    plan = surgery.make_plan(graph, net, keep_of(graph, gone))
    if any(item.bias not in untouched for item in plan.constants):
        return False  # a bias that the twin does not have
    twin = copy.deepcopy(net)
    other = MAKERS[name](twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masks = masks_of(plan, twin)
    for key, parameter in twin.named_parameters():
        for value in other.state[parameter].values():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                value[masks[key]] = 0.0
    surgery.apply(plan, net, optimizer=optimizer)
    for _ in range(3):
        step(net, optimizer)
        step(twin, other, masks)
    torch.testing.assert_close(net(EXAMPLE), twin(EXAMPLE), rtol=1e-8, atol=1e-9)
    folded = {item.bias for item in plan.constants}
    for key, value in net.state_dict().items():
        expected = twin.state_dict()[key]
        for item in plan.gathers:
            if item.tensor == key:
                expected = expected.index_select(item.axis, torch.tensor(item.index))
        if key not in folded:
            torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9)
    return bool(plan)


@pytest.mark.parametrize("part", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 10))])
def test_removal_preserves_the_function_and_the_next_steps_of_the_survivors(part: int) -> None:
    removed, followed = 0, 0
    for seed in range(50 * part, 50 * part + 50):
        net, graph, gone = dead_net(seed)
        followed += check_next_steps(copy.deepcopy(net), graph, gone, list(MAKERS)[seed % len(MAKERS)])
        removed += check_function(net, graph, gone) > 0
    assert removed > 30
    assert followed > 15


@pytest.mark.slow
def test_ten_thousand_networks() -> None:
    removed = [check_function(*dead_net(seed)) for seed in range(10_000)]
    assert sum(count > 0 for count in removed) > 7_000
