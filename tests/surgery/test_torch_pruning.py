"""Torch-Pruning as an oracle: the same entries cut, the same network left; and where it fails, what ours does."""

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import ViT, densenet121, mobilenet, resnet50
from pared import surgery
from pared.errors import SurgeryError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning as tp

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet": lambda: resnet50(4, 5),
    "DenseNet": lambda: densenet121(3, 5, (3, 4, 3)),
    "MobileNet": lambda: mobilenet(4, 5),
    "ViT": lambda: ViT(32, 8, 16, 2, 4, 5),
}


def theirs(net: nn.Module, layer: str, entries: list[int], example: Any = IMAGE) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(net, example_inputs=example, verbose=False)
        module = net.get_submodule(layer)
        prune = tp.prune_linear_out_channels if isinstance(module, nn.Linear) else tp.prune_conv_out_channels
        graph.get_pruning_group(module, prune, idxs=entries).prune()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_cut_gives_the_same_network(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = NETWORKS[name]().eval()
    graph, rng = surgery.graph(net, IMAGE), random.Random(0)
    spaces = [space for space in graph.removable() if ":" not in space.name]  # they know no heads of a fused projection
    assert spaces
    for space in rng.sample(spaces, min(8, len(spaces))):
        gone = sorted(rng.sample(range(space.size), rng.randint(1, space.size - 1)))
        (ours, copied), other = copy.deepcopy((net, graph)), copy.deepcopy(net)
        surgery.remove(ours, {space.name: gone}, graph=copied, living="cut")
        theirs(other, space.layers[0], gone)
        mine, wanted = ours.state_dict(), other.state_dict()
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(mine[key], wanted[key]) for key in mine), space.name
        assert torch.equal(ours(IMAGE), other(IMAGE))


# --- where it is known to fail --------------------------------------------------------------------------------------


class Block(nn.Module):
    """A convolution between two, the middle one and its norm of a kind to be told."""

    def __init__(self, middle: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.norm = nn.Conv2d(3, 8, 3), middle, norm
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.middle(self.first(x).relu())).sigmoid())


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x).tanh())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


def plain() -> Block:
    return Block(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def test_frozen_weights_stay_frozen() -> None:
    net, other = seeded(plain), seeded(plain)
    for each in (net, other):
        each.requires_grad_(False)
    surgery.remove(net, {"first": [1]}, graph=surgery.graph(net, IMAGE), living="cut")
    assert not any(p.requires_grad for p in net.parameters())
    with pytest.raises(
        ValueError, match="not in the dependency graph"
    ):  # theirs follows autograd, and finds nothing to follow
        theirs(other, "first", [1])


def test_tied_weights_stay_tied() -> None:
    net: Any = seeded(Both)
    graph = surgery.graph(net, torch.zeros(2, 3, dtype=torch.long))
    surgery.remove(net, {"embed.weight[1]": [0, 2]}, graph=graph, living="cut")
    assert net.out.weight is net.embed.weight
    assert net.out.in_features == net.embed.embedding_dim == 4
    other: Any = seeded(Both)
    example = torch.zeros(2, 3, dtype=torch.long)
    known = tp.DependencyGraph().build_dependency(other, example_inputs=example, verbose=False)
    known.get_pruning_group(other.embed, tp.prune_embedding_out_channels, idxs=[0, 2]).prune()
    assert other.out.weight is not other.embed.weight


def test_groups_leave_as_groups() -> None:
    net: Any = seeded(lambda: Block(nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8)))
    graph = surgery.graph(net, IMAGE)
    with torch.no_grad():
        net.middle.weight[2:4] = 0.0
        net.last.weight[:, 2:4] = 0.0
        net.middle.weight[0::2] = 0.0  # and the first channel of every group
    before = net(IMAGE)
    group = next(s.name for s in graph.removable() if s.size == 4)
    surgery.remove(net, {group: [1]}, graph=graph)
    torch.testing.assert_close(net(IMAGE), before)
    assert net.middle.groups == 3
    assert net.first.out_channels == net.middle.in_channels == net.middle.out_channels == 6
    other = seeded(lambda: Block(nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8)))
    theirs(other, "middle", [2, 3])
    with pytest.raises(RuntimeError, match="divisible by 4"):
        other(IMAGE)


def test_recurrent_units_leave() -> None:
    net: Any = seeded(Recurrent)
    x = torch.randn(2, 5, 3)
    graph = surgery.graph(net, x)
    with torch.no_grad():
        for tensor in net.rnn.parameters():
            tensor.unflatten(0, (4, 6))[2, [1, 4]] = 0.0
    before = net(x)
    surgery.remove(net, {graph.at("rnn.weight_hh_l0", 1).name: [1, 4]}, graph=graph)
    torch.testing.assert_close(net(x), before)
    assert net.rnn.hidden_size == 4


def test_a_group_norm_keeps_what_it_divides_by() -> None:
    net: Any = seeded(lambda: Block(nn.Conv2d(8, 8, 3), nn.GroupNorm(4, 8)))
    graph = surgery.graph(net, IMAGE)
    with torch.no_grad():
        net.middle.weight[2:4], net.middle.bias[2:4] = 0.0, 0.5
    before = net(IMAGE)
    within = next(s for s in graph.spaces if s.fixed and "divides by" in s.fixed)
    with pytest.raises(SurgeryError, match="divides by how many channels a group has"):
        surgery.remove(net, {within.name: [0]}, graph=graph)
    group = next(s.name for s in graph.removable() if s.size == 4)
    surgery.remove(net, {group: [1]}, graph=graph)
    torch.testing.assert_close(net(IMAGE), before)
    assert net.norm.num_groups == 3
    other = seeded(lambda: Block(nn.Conv2d(8, 8, 3), nn.GroupNorm(4, 8)))
    theirs(other, "middle", [2, 3])
    with pytest.raises(RuntimeError, match="divisible by num_groups"):
        other(IMAGE)


def test_a_branch_leaves_whole() -> None:
    net, other = seeded(NETWORKS["ResNet"]), seeded(NETWORKS["ResNet"])
    norm: Any = net.get_submodule("4.1.bn3")
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.zero_()
    before = net(IMAGE)
    surgery.remove_blocks(net, ["4.1"], graph=surgery.graph(net, IMAGE))
    torch.testing.assert_close(net(IMAGE), before)
    theirs(other, "4.1.conv1", list(range(4)))
    with pytest.raises(RuntimeError, match="at least 1 at dimension 0"):
        other(IMAGE)


def test_constants_of_dead_channels_are_not_lost() -> None:
    net, other = seeded(plain), seeded(plain)
    for each in (net, other):
        with torch.no_grad():
            each.norm.weight[3], each.norm.bias[3] = 0.0, 2.0  # type: ignore[union-attr,operator,index]
    before = net(IMAGE)
    surgery.remove(net, {"middle": [3]}, graph=surgery.graph(net, IMAGE))
    torch.testing.assert_close(net(IMAGE), before)
    theirs(other, "middle", [3])
    assert (other(IMAGE) - before).abs().max() > 1e-3


def test_the_optimizer_follows() -> None:
    net, other = seeded(plain), seeded(plain)
    optimizers = [torch.optim.AdamW(each.parameters()) for each in (net, other)]
    for each, optimizer in zip((net, other), optimizers, strict=True):
        each(IMAGE).sum().backward()
        optimizer.step()
    surgery.remove(net, {"middle": [3]}, graph=surgery.graph(net, IMAGE), living="cut", optimizer=optimizers[0])
    theirs(other, "middle", [3])
    held = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in optimizers]
    assert {id(p) for p in net.parameters()} == held[0]
    assert all(s["exp_avg"].shape == p.shape for p, s in optimizers[0].state.items())
    assert {id(p) for p in other.parameters()} != held[1]
