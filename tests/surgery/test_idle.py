"""Modules that work for nothing, and what stands where modules were."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pared import surgery
from pared.nn import Zero
from pared.surgery import leading_to, remove_idle, stand_in

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block as people write it: the branch is no module of its own, and one layer serves two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.side, self.head = nn.Conv2d(4, 3, 1), nn.Linear(3, 2)
        self.both = False

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        out = x + self.last(self.second(y))
        if self.both:
            out = out + self.side(y)
        return self.head(out.mean((2, 3)))


def test_what_leads_to_a_module_alone() -> None:
    net = Block()
    program = surgery.graph(net, IMAGE).program
    assert {step.layer for step in leading_to(program, "last")} == {"first", "norm", "", "second", "last"}
    assert {step.layer for step in leading_to(program, "second")} == {"first", "norm", "", "second"}
    net.both = True
    program = surgery.graph(net, IMAGE).program
    assert {step.layer for step in leading_to(program, "last")} == {"second", "last"}


def ties(graph: surgery.Graph) -> list[list[str]]:
    return sorted(sorted(f"{s.tensor}[{s.axis}]" for s in space.slots) for space in graph.spaces if space.fixed is None)


@pytest.mark.parametrize("both", [False, True])
def test_layers_before_a_dead_branch_leave_with_their_state(both: bool) -> None:
    net = Block().eval()
    net.both = both
    nn.init.zeros_(net.last.weight)
    nn.init.zeros_(net.last.bias)
    optimizer, average = torch.optim.Adam(net.parameters()), copy.deepcopy(net)
    net(IMAGE).sum().backward()
    optimizer.step()
    nn.init.zeros_(net.last.weight)
    nn.init.zeros_(net.last.bias)
    before, graph = net(IMAGE), surgery.graph(net, IMAGE)
    assert surgery.remove_blocks(net, ["last"], graph=graph, optimizer=optimizer, ema=[average]) == {"last": "zero"}
    gone = remove_idle(net, graph=graph, optimizer=optimizer, ema=[average])
    assert gone == (["second"] if both else ["first", "norm", "second"])
    assert isinstance(net.last, Zero)
    assert torch.equal(net(IMAGE), before)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters()}
    assert {id(p) for p in optimizer.state} <= held
    assert net.state_dict().keys() == average.state_dict().keys()
    assert remove_idle(net, graph=graph) == []
    assert ties(graph) == ties(surgery.graph(net, IMAGE))


def test_standing_in_is_whole_or_not_at_all() -> None:
    net, optimizer = Block(), torch.optim.SGD(Block().parameters(), lr=0.1)
    optimizer.param_groups[0]["params"] = list(net.parameters())
    before = list(net.modules())
    with pytest.raises(KeyError):
        stand_in({"first": "identity", "nothing": "zero"}, net, optimizer=optimizer)
    assert list(net.modules()) == before
    assert optimizer.param_groups[0]["params"] == list(net.parameters())
    shared = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shared[1].weight = shared[0].weight
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.1)
    stand_in({"1": "identity"}, shared, optimizer=optimizer)
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [(2, 2), (2,)]  # the tied weight stays


def test_modules_with_more_arguments_stay_and_what_is_in_them_leaves() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor, factor: float) -> Tensor:
            return self.inner(x) * factor

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scaled, self.drop, self.zero, self.head = Scaled(), nn.Dropout(), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.drop(self.zero(self.scaled(x, 2.0))))

    net, x = Net().eval(), torch.ones(4, 3)
    for parameter in net.zero.parameters():
        nn.init.zeros_(parameter)
    before, graph = net(x), surgery.graph(net, x)
    assert surgery.remove_blocks(net, ["zero"], graph=graph) == {"zero": "zero"}  # through the dropout behind it
    assert remove_idle(net, graph=graph) == ["scaled.inner"]
    torch.testing.assert_close(net(x), before)
    assert [name for name, _ in net.named_parameters()] == ["head.weight", "head.bias"]
