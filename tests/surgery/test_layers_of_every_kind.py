"""One small network for each kind of layer: what can be removed from it, and that removing it changes nothing."""

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared import surgery
from pared.errors import SurgeryError
from pared.nn import Switch
from zoo import kill


class Fn(nn.Module):
    """A network whose forward pass is a function of itself and its input."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def image(m: Any, x: Tensor) -> Tensor:
    return m.b(m.n(m.a(x)).relu())


def recurrent(m: Any, x: Tensor) -> Tensor:
    return m.head(m.rnn(x)[0])


def last(m: Any, x: Tensor) -> Tensor:
    return m.head(m.rnn(x)[1][0][0])


def raw(m: Any, x: Tensor) -> Tensor:
    return torch.einsum("nc,oc->no", (x @ m.a).tanh(), m.b)


def prefix(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu()) + m.c(m.a(x)[:, :2])


def reused(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(m.a(x).relu()).relu())


def literal(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).view(-1, 12))


def counted(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y / y.shape[-1])


def held(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).view(x.shape[0], m.heads, 3).tanh().flatten(1))


def shuffled(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).view(x.shape[0], 2, -1).transpose(1, 2).flatten(1, 2)
    return m.b(y)


def tied(m: Any, x: Tensor) -> Tensor:
    return F.linear(m.a(x).tanh(), m.a.weight.t())


def rotary(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    half = y.shape[-1] // 2
    return m.b(y * m.cos + torch.cat([-y[..., half:], y[..., :half]], -1))


def grouped_switch(m: Any, x: Tensor) -> Tensor:
    return m.b(m.switch(m.a(x)))


def held_net() -> Fn:
    net = Fn(held, a=nn.Linear(4, 12), b=nn.Linear(12, 2))
    vars(net)["heads"] = 4
    return net


def image_net(dims: int, transposed: bool = False) -> Fn:
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    back = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    return Fn(image, a=(back if transposed else conv)(2, 6, 3), n=norm(6), b=conv(6, 3, 1))


VECTOR, SEQUENCE = torch.randn(5, 4), torch.randn(3, 5, 4)

#: name: (network, example, what can be removed)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int]]] = {
    "conv 1d": (lambda: image_net(1), torch.randn(2, 2, 7), {"a": 6}),
    "conv 2d": (lambda: image_net(2), torch.randn(2, 2, 7, 7), {"a": 6}),
    "conv 3d": (lambda: image_net(3), torch.randn(2, 2, 5, 5, 5), {"a": 6}),
    "transposed 1d": (lambda: image_net(1, True), torch.randn(2, 2, 7), {"a": 6}),
    "transposed 2d": (lambda: image_net(2, True), torch.randn(2, 2, 7, 7), {"a": 6}),
    "transposed groups": (
        lambda: Fn(image, a=nn.Conv2d(2, 6, 1), n=nn.ConvTranspose2d(6, 4, 2, 2, groups=2), b=nn.Conv2d(4, 2, 1)),
        torch.randn(2, 2, 4, 4),
        {"a:0": 2, "a:1": 3, "n:1": 2},
    ),
    "pixel shuffle": (
        lambda: Fn(image, a=nn.Conv2d(2, 12, 1), n=nn.PixelShuffle(2), b=nn.Conv2d(3, 2, 1)),
        torch.randn(2, 2, 4, 4),
        {"a:0": 3},
    ),
    "prelu": (
        lambda: Fn(image, a=nn.Conv2d(2, 5, 1), n=nn.PReLU(5), b=nn.Conv2d(5, 2, 1)),
        torch.randn(2, 2, 4, 4),
        {"a": 5},
    ),
    "upsample": (
        lambda: Fn(image, a=nn.Conv2d(2, 5, 3), n=nn.Upsample(scale_factor=2), b=nn.Conv2d(5, 2, 1)),
        torch.randn(2, 2, 6, 6),
        {"a": 5},
    ),
    "lstm": (
        lambda: Fn(recurrent, rnn=nn.LSTM(4, 5, batch_first=True), head=nn.Linear(5, 2)),
        SEQUENCE,
        {"rnn.weight_ih_l0[0]'": 5},
    ),
    "lstm both ways": (
        lambda: Fn(recurrent, rnn=nn.LSTM(4, 5, batch_first=True, bidirectional=True), head=nn.Linear(10, 2)),
        SEQUENCE,
        {"rnn.weight_ih_l0[0]'": 5},
    ),
    "lstm state": (
        lambda: Fn(last, rnn=nn.LSTM(4, 5, batch_first=True), head=nn.Linear(5, 2)),
        SEQUENCE,
        {"rnn.weight_ih_l0[0]'": 5},
    ),
    "gru": (
        lambda: Fn(recurrent, rnn=nn.GRU(4, 5, batch_first=True), head=nn.Linear(5, 2)),
        SEQUENCE,
        {"rnn.weight_ih_l0[0]'": 5},
    ),
    "raw parameters": (
        lambda: Fn(raw, a=nn.Parameter(torch.randn(4, 6)), b=nn.Parameter(torch.randn(2, 6))),
        VECTOR,
        {"a[1]": 6},
    ),
    "reused": (lambda: Fn(reused, a=nn.Linear(4, 4), head=nn.Linear(4, 2)), VECTOR, {}),
    "tied weights": (lambda: Fn(tied, a=nn.Linear(4, 7)), VECTOR, {"a": 7}),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
        torch.randint(0, 9, (3, 4)),
        {"0.weight[1]": 6, "1": 5},
    ),
    "shuffled channels": (lambda: Fn(shuffled, a=nn.Linear(4, 6), b=nn.Linear(6, 2)), VECTOR, {"a:1": 3}),
    "an attribute that holds a size": (held_net, VECTOR, {"a:0": 4}),
    "rotary": (
        lambda: Fn(rotary, a=nn.Linear(4, 6), b=nn.Linear(6, 2), cos=nn.Parameter(torch.randn(6))),
        VECTOR,
        {"a": 3},
    ),
    "grouped switch": (
        lambda: Fn(grouped_switch, a=nn.Linear(4, 6), switch=Switch(6, sizes=[1, 3, 2]), b=nn.Linear(6, 2)),
        VECTOR,
        {"a": 3},
    ),
    "a size written down": (lambda: Fn(literal, a=nn.Linear(4, 12), b=nn.Linear(12, 2)), VECTOR, {}),
    "a factor made of a size": (lambda: Fn(counted, a=nn.Linear(4, 6), b=nn.Linear(6, 2)), VECTOR, {}),
    "a place told by its number": (
        lambda: Fn(prefix, a=nn.Linear(4, 6), b=nn.Linear(6, 2), c=nn.Linear(2, 2)),
        VECTOR,
        {"a:1": 4},
    ),
    "own attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 7, batch_first=True),
        SEQUENCE,
        {"linear1": 7},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_can_be_removed_is_found_and_removing_it_changes_nothing(name: str) -> None:
    make, example, expected = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = make().double().eval()
        for tensor in net.buffers():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    x = example.double() if example.is_floating_point() else example
    graph = surgery.graph(net, x)
    assert {space.name: space.size for space in graph.removable()} == expected
    refused = 0
    for seed in range(8):
        small, copied = copy.deepcopy((net, graph))
        gone = kill(small, copied, random.Random(seed))
        before = small(x)
        try:
            surgery.remove(small, gone, graph=copied)
        except SurgeryError:
            refused += 1
            continue
        torch.testing.assert_close(small(x), before, rtol=1e-10, atol=1e-10)
        small(x).sum().backward()
        again = surgery.graph(small, x)
        assert sorted(s.size for s in again.removable()) == sorted(s.size for s in copied.removable())
    assert refused < 8


def test_input_features_leave_and_the_kept_ones_are_told() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double()
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    assert surgery.graph(net, x).find("0").fixed is None
    assert surgery.graph(net, x).find("input[1]").fixed == "it is an input of the network"
    graph, left = surgery.graph(net, x, inputs=True), list(range(6))
    with pytest.raises(SurgeryError, match=r"entry 2 of 'input\[1\]' is alive"):
        surgery.remove(net, {"input[1]": [2]}, graph=graph)
    for gone in ([0, 4], [1]):
        with torch.no_grad():
            net[0].weight[:, gone] = 0.0  # type: ignore[operator,index]
        before = net(x[:, left])
        surgery.remove(net, {"input[1]": gone}, graph=graph)
        left = [feature for place, feature in enumerate(left) if place not in gone]
        assert graph.find("input[1]").kept == tuple(left)
        torch.testing.assert_close(net(x[:, left]), before)
    assert net[0].in_channels == 3


# --- what a person may get wrong --------------------------------------------------------------------------------------


def pair() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))


def test_entries_may_be_a_mask_and_nothing_else_is_taken_for_numbers() -> None:
    x, mask = torch.randn(2, 3, 6, 6), torch.zeros(8, dtype=torch.bool)
    mask[5] = True
    for given in (mask, mask.tolist(), torch.tensor([5]), [5]):
        net = pair()
        graph = surgery.graph(net, x)
        surgery.remove(net, {"0": given}, graph=graph, living="cut")
        assert graph.find("0").kept == (0, 1, 2, 3, 4, 6, 7)
    net = pair()
    graph = surgery.graph(net, x)
    for wrong, message in ((mask[:7], "needs its 8 entries, got 7"), ([1.0], "are integers"), ([-1], "numbered 0..7")):
        with pytest.raises(SurgeryError, match=message):
            surgery.remove(net, {"0": wrong}, graph=graph, living="cut")  # type: ignore[dict-item]


def test_a_graph_that_missed_a_removal_is_refused() -> None:
    x, net = torch.randn(2, 3, 6, 6), pair()
    graph, late = surgery.graph(net, x), surgery.graph(net, x)
    surgery.remove(net, {"0": [7]}, graph=graph, living="cut")
    with pytest.raises(SurgeryError, match="not of this network as it is now"):
        surgery.remove(net, {"0": [0]}, graph=late, living="cut")


def test_several_optimizers_follow() -> None:
    x, net = torch.randn(2, 3, 6, 6), pair()
    graph = surgery.graph(net, x)
    optimizers = [torch.optim.Adam(net[0].parameters()), torch.optim.SGD(net[2].parameters(), 0.1, momentum=0.9)]
    net(x).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    surgery.remove(net, {"0": [7]}, graph=graph, living="cut", optimizer=optimizers)
    for optimizer, layer in zip(optimizers, (net[0], net[2]), strict=True):
        assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], layer.parameters(), strict=True))
        assert set(optimizer.state) == set(layer.parameters())


def test_channels_last_stays_channels_last() -> None:
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    net: Any = pair()
    net.to(memory_format=torch.channels_last)
    graph = surgery.graph(net, x)
    surgery.remove(net, {"0": [7]}, graph=graph, living="cut")
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in (net[0], net[2]))
