"""Whole blocks leave: the function, the next steps, the graph and the file stay true."""

import copy
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pared
from networks import resnet50
from pared.errors import SurgeryError
from pared.nn import Zero
from pared.surgery import Graph

IMAGE = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def small_resnet() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return resnet50(4, 5).double()


class Gated(nn.Module):
    """A branch behind a gate, between two convolutions."""

    def __init__(self, branch: nn.Module, gate: float = 0.0) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Conv2d(3, 6, 3), branch, nn.Conv2d(6, 4, 1)
        self.gate = nn.Parameter(torch.full((1,), gate))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last((y + self.branch(y)).relu())


class GatedBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(6, 6, 3, padding=1), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.conv(x).tanh()


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    loss = model(IMAGE).square().mean()
    loss.backward()
    optimizer.step()  # type: ignore[call-arg]
    optimizer.zero_grad()
    return float(loss.detach())


def test_a_residual_block_becomes_the_identity() -> None:
    net = small_resnet()
    graph, optimizer = pared.graph(net, IMAGE), torch.optim.AdamW(net.parameters(), weight_decay=0.0)
    ema = copy.deepcopy(net)
    step(net, optimizer)
    for each in (net, ema):
        with torch.no_grad():
            block: Any = each.get_submodule("4.1")
            block.bn3.weight.zero_()
            block.bn3.bias.zero_()
    before, count = net.eval()(IMAGE), len(list(net.parameters()))
    assert pared.remove_blocks(net, ["4.1"], graph=graph, optimizer=optimizer, ema=[ema]) == {"4.1": "identity"}
    torch.testing.assert_close(net(IMAGE), before, rtol=1e-12, atol=1e-12)
    assert type(net.get_submodule("4.1")) is type(ema.get_submodule("4.1")) is nn.Identity
    assert len(list(net.parameters())) == count - 9 == sum(len(g["params"]) for g in optimizer.param_groups)
    assert set(optimizer.state) == set(net.parameters())
    # The graph is that of the network as it is now.
    fresh = pared.graph(net, IMAGE)
    assert [(s.name, s.size, s.slots, s.fixed) for s in graph.spaces] == [
        (s.name, s.size, s.slots, s.fixed) for s in fresh.spaces
    ]
    with torch.no_grad():
        norm: Any = net.get_submodule("4.2.bn1")
        norm.weight[1], norm.bias[1] = 0.0, 0.0
    before = net(IMAGE)
    pared.remove(net, {"4.2.conv1": [1]}, graph=graph, optimizer=optimizer)
    torch.testing.assert_close(net(IMAGE), before, rtol=1e-12, atol=1e-12)
    step(net.train(), optimizer)


@pytest.mark.parametrize("kind", ["gate", "weights"])
def test_a_dead_branch_becomes_zero(kind: str, tmp_path: Path) -> None:
    net = Gated(GatedBranch() if kind == "gate" else nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())).double()
    if kind == "weights":
        with torch.no_grad():
            for parameter in net.branch.parameters():
                parameter.zero_()
    graph, before = pared.graph(net, IMAGE), net(IMAGE)
    assert pared.remove_blocks(net, ["branch"], graph=graph) == {"branch": "zero"}
    assert type(net.branch) is Zero
    assert torch.equal(net(IMAGE), before)
    with torch.no_grad():
        net.first.weight[2], net.first.bias[2] = 0.0, 0.5  # type: ignore[index]
    before = net(IMAGE)
    pared.remove(net, {"first": [2]}, graph=graph)
    torch.testing.assert_close(net(IMAGE), before, rtol=1e-12, atol=1e-12)
    other = Gated(GatedBranch() if kind == "gate" else nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()))
    pared.load(other.double(), pared.save(net, tmp_path / "net.safetensors"))
    assert torch.equal(other(IMAGE), net(IMAGE))


class Summed(nn.Module):
    """Branches that are added up, into the first one or not."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.last, self.inplace = nn.Linear(3, 2), inplace

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        for other in others:
            if self.inplace:
                first += other
            else:
                first = first + other
        return self.last(first)


@pytest.mark.parametrize("inplace", [False, True])
def test_branches_of_a_sum_leave_in_any_order_by_an_old_graph_as_by_a_new_one(inplace: bool) -> None:
    x = torch.randn(4, 3)
    first = Summed(inplace=inplace)
    graphs = {frozenset[int](): pared.graph(first, x)}
    for order in permutations(range(4), 3):
        net = copy.deepcopy(first)
        graph, gone = copy.deepcopy(graphs[frozenset()]), set[int]()
        for place in order:
            with torch.no_grad():
                for parameter in net.branches[place].parameters():
                    parameter.zero_()
            before, again = net(x), copy.deepcopy(net)
            if frozenset(gone) not in graphs:
                graphs[frozenset(gone)] = pared.graph(again, x)
            told = [_told(net, place, graph), _told(again, place, copy.deepcopy(graphs[frozenset(gone)]))]
            assert told == [not (inplace and place == 0)] * 2  # what others are added into has to stay
            gone |= {place} if told[0] else set()
            assert torch.equal(net(x), before)


def _told(net: nn.Module, place: int, graph: Graph) -> bool:
    """Whether a branch leaves."""
    try:
        return pared.remove_blocks(net, [f"branches.{place}"], graph=graph) == {f"branches.{place}": "zero"}
    except SurgeryError:
        return False


def test_what_still_does_something_is_refused_and_nothing_changes() -> None:
    net = small_resnet().eval()
    graph, before = pared.graph(net, IMAGE), net(IMAGE)
    modules = [type(module) for module in net.modules()]
    with torch.no_grad():
        for name in ("4.0", "4.1"):
            block: Any = net.get_submodule(name)
            block.bn3.weight.zero_()
            block.bn3.bias.zero_()
    cases = {
        "4.0": "neither its input nor zero",  # its way past is a convolution
        "4.2": "neither its input nor zero",  # alive
        "4": "neither its input nor zero",
        "nowhere": "no module 'nowhere'",
    }
    before = net(IMAGE)
    for name, message in cases.items():
        with pytest.raises(SurgeryError, match=message):
            pared.remove_blocks(net, ["4.1", name], graph=graph)
    assert torch.equal(net(IMAGE), before)
    assert [type(module) for module in net.modules()] == modules


class Signed(nn.Module):
    """relu(x + f(x)) is not x where x may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.conv(x)).relu()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.conv(x)


@pytest.mark.parametrize(("block", "message"), [(Signed(), "neither its input"), (Two(), "2 arguments")])
def test_other_blocks_are_refused(block: nn.Module, message: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), block, nn.Conv2d(6, 2, 1)).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    with pytest.raises(SurgeryError, match=message):
        pared.remove_blocks(net, ["1"], graph=pared.graph(net, IMAGE))


def test_a_block_after_a_relu_is_the_identity() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Signed(), nn.Conv2d(6, 2, 1)).double()
    with torch.no_grad():
        for parameter in net[2].parameters():
            parameter.zero_()
    before = net(IMAGE)
    graph = pared.graph(net, IMAGE)
    assert pared.remove_blocks(net, ["2"], graph=graph) == {"2": "identity"}
    assert torch.equal(net(IMAGE), before)
    with torch.no_grad():  # a constant goes past where the block was
        net[0].weight[1], net[0].bias[1] = 0.0, 0.7  # type: ignore[operator,index]
    before = net(IMAGE)
    pared.remove(net, {"0": [1]}, graph=graph)
    torch.testing.assert_close(net(IMAGE), before, rtol=1e-12, atol=1e-12)


class Less(Signed):
    """A block that takes one from what it adds, behind the back of the addition."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.conv(x)
        y.view(-1).sub_(1.0)  # through a view, which the trace does not follow back
        return y


class Spoilt(nn.Module):
    """What follows the first relu is no longer above zero when the block reads it."""

    def __init__(self, between: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Conv2d(3, 6, 3), block, nn.Conv2d(6, 2, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        y.view(-1).sub_(1.0)  # through a view, which the trace does not follow back
        return self.last(self.block(self.between(y)))


@pytest.mark.parametrize("block", [Signed(), Less()], ids=["signed", "less"])
@pytest.mark.parametrize("between", [nn.Identity(), nn.MaxPool2d(2), nn.Sequential(nn.AvgPool2d(2), nn.Dropout())])
def test_writing_in_place_is_seen(between: nn.Module, block: nn.Module) -> None:
    net = Spoilt(between, block).double()
    with torch.no_grad():
        for parameter in net.block.parameters():
            parameter.zero_()
    with pytest.raises(SurgeryError, match="module 'block' cannot be removed"):
        pared.remove_blocks(net, ["block"], graph=pared.graph(net, IMAGE))
