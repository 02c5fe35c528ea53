"""A channel of zeros changes no sum, no length and no angle, and zeros and constants go through every operator that has a rule."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pared
from pared import surgery
from pared.errors import SurgeryError
from removing import Fn, check_each_unit

X, IMAGE = torch.randn(5, 4), torch.randn(2, 3, 6, 6)


def vector(change: Callable[[Any, Tensor], Tensor], given: int = 6, **more: Any) -> Callable[[], nn.Module]:
    """Return what makes a -> change -> b, on vectors."""
    return lambda: Fn(lambda m, x: m.b(change(m, m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(given, 2), **more)


def image(
    change: Callable[[Any, Tensor], Tensor], made: int = 6, given: int = 6, **more: Any
) -> Callable[[], nn.Module]:
    """Return what makes a -> relu -> change -> b, on images, with nothing padded."""
    return lambda: Fn(
        lambda m, x: m.b(change(m, m.a(x).relu())), a=nn.Conv2d(3, made, 1), b=nn.Conv2d(given, 2, 1), **more
    )


ALL = {"made", "read"}
#: name: (network, example, spaces, what is refused of "made" (weights zero, a bias left) and "read" (not read) units)
CASES: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, int], dict[str, set[str]]]] = {
    "sum": (vector(lambda m, y: y * y.sum(1, keepdim=True)), X, {"a": 6}, {"a": ALL}),
    "sum, last axis by keyword": (vector(lambda m, y: y / (2 + y.square().sum(dim=-1, keepdim=True))), X, {"a": 6}, {"a": ALL}),
    "sum over all": (vector(lambda m, y: y * y.sum()), X, {"a": 6}, {"a": ALL}),
    "sum over places": (image(lambda m, y: y * y.sum((-2, -1), keepdim=True)), IMAGE, {"a": 6}, {"a": {"made"}}),
    "L1 norm": (vector(lambda m, y: y / (1 + y.norm(1, dim=1, keepdim=True))), X, {"a": 6}, {"a": ALL}),
    "L2 norm": (vector(lambda m, y: y / (1 + torch.linalg.norm(y, dim=-1, keepdim=True))), X, {"a": 6}, {"a": ALL}),
    "largest": (vector(lambda m, y: y / (1 + torch.linalg.vector_norm(y, float("inf"), 1, True))), X, {"a": 6}, {"a": ALL}),
    "smallest": (vector(lambda m, y: y / (1 + torch.linalg.vector_norm(y, -1.0, 1, True))), X, {}, {}),
    "normalize": (vector(lambda m, y: F.normalize(y, dim=-1)), X, {"a": 6}, {"a": ALL}),
    "normalize channels": (image(lambda m, y: F.normalize(y, p=1.0)), IMAGE, {"a": 6}, {"a": ALL}),
    "mean": (vector(lambda m, y: y * y.mean(1, keepdim=True)), X, {}, {}),
    "angle": (
        lambda: Fn(
            lambda m, x: F.cosine_similarity(m.a(x), m.b(x), dim=-1).unsqueeze(1), a=nn.Linear(4, 6), b=nn.Linear(4, 6)
        ),
        X,
        {"a": 6},
        {"a": {"made"}},
    ),
    "distance": (
        lambda: Fn(lambda m, x: F.pairwise_distance(m.a(x), m.b(x)), a=nn.Linear(4, 6), b=nn.Linear(4, 6)), X, {}, {}
    ),
    "norms of heads": (
        vector(lambda m, y: F.layer_norm(y.view(len(y), -1, 2), (2,), m.w, m.c).flatten(1), w=nn.Parameter(torch.ones(2)), c=nn.Parameter(torch.ones(2))),
        X,
        {"a:0": 3},
        {},
    ),
    "transposed": (image(lambda m, y: m.t(y).relu(), t=nn.ConvTranspose2d(6, 5, 3, 2), given=5), IMAGE, {"a": 6, "t": 5}, {"a": {"made"}}),
    "transposed, one by one": (image(lambda m, y: m.t(y), t=nn.ConvTranspose2d(6, 5, 1, bias=False), given=5), IMAGE, {"a": 6, "t": 5}, {}),
    "transposed, cut at the edges": (image(lambda m, y: m.t(y), t=nn.ConvTranspose2d(6, 5, 3, padding=2), given=5), IMAGE, {"a": 6, "t": 5}, {}),
    "transposed, in groups": (
        image(lambda m, y: m.t(y).relu(), t=nn.ConvTranspose2d(6, 4, 1, groups=2), given=4), IMAGE, {"a:0": 2, "a:1": 3, "t:1": 2}, {}
    ),
    "pixel shuffle": (image(lambda m, y: F.pixel_shuffle(y, 2), made=12, given=3), IMAGE, {"a:0": 3}, {}),
    "no padding": (image(lambda m, y: F.pad(y, (0, 0, 0, 0))), IMAGE, {"a": 6}, {}),
    "cropping": (image(lambda m, y: F.pad(y, (-1, 0, 0, -1))), IMAGE, {"a": 6}, {}),
    "padding": (image(lambda m, y: F.pad(y, (1, 0))), IMAGE, {"a": 6}, {"a": {"made"}}),
    "reflection": (image(lambda m, y: F.pad(y + m.p, (1, 1, 0, 0), mode="reflect"), p=torch.randn(6)), IMAGE, {"a": 6}, {"a": {"made"}}),
    "padding of what varies": (image(lambda m, y: F.pad(y + m.p, (1, 1)), p=torch.randn(6)), IMAGE, {"a": 6}, {"a": {"made"}}),
    "average with a divisor": (image(lambda m, y: F.avg_pool2d(y, 2, divisor_override=3)), IMAGE, {"a": 6}, {"a": {"made"}}),
    "pool with indices": (image(lambda m, y: F.max_pool2d(y, 2, return_indices=True)[0]), IMAGE, {"a": 6}, {}),
    "bicubic": (image(lambda m, y: F.interpolate(y, scale_factor=2.0, mode="bicubic")), IMAGE, {"a": 6}, {}),
    "stack and unbind": (vector(lambda m, y: torch.stack([y, y.relu()], -1).unbind(2)[0]), X, {"a": 6}, {}),
    "stack": (vector(lambda m, y: torch.stack([y, y.relu()], -1).flatten(1), given=12), X, {"a": 6}, {}),
    "repeat": (vector(lambda m, y: y.repeat(1, 2), given=12), X, {"a": 6}, {}),
    "rolled rows": (image(lambda m, y: y.roll(1, -1).flip(2)), IMAGE, {"a": 6}, {}),
    "rows by number": (image(lambda m, y: y[:, :, [0, 2]].index_select(3, m.i), i=torch.tensor([1, 0])), IMAGE, {"a": 6}, {}),
    "largest of places": (image(lambda m, y: y.amax((2, 3), keepdim=True) + y.max(2, keepdim=True)[0]), IMAGE, {"a": 6}, {}),
    "spread of places": (image(lambda m, y: y.std((2, 3), keepdim=True)), IMAGE, {"a": 6}, {}),
    "raw weight and bias": (
        vector(lambda m, y: (y.relu() @ m.weight + m.bias).relu(), weight=nn.Parameter(torch.randn(6, 5)), bias=nn.Parameter(torch.randn(5)), given=5),
        X,
        {"a": 6, "weight[1]": 5},
        {},
    ),
    "raw weight and a bias later": (
        vector(lambda m, y: (y.relu() @ m.weight).relu() + m.bias, weight=nn.Parameter(torch.randn(6, 5)), bias=nn.Parameter(torch.randn(5)), given=5),
        X,
        {"a": 6, "weight[1]": 5},
        {"a": {"made"}},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize("name", CASES)
def test_removing_a_unit_is_zeroing_it(name: str) -> None:
    make, example, expected, refused = CASES[name]
    assert check_each_unit(make, example, expected) == refused


# --- cut off by zeros -------------------------------------------------------------------------------------------------


def dead(net: nn.Module, x: Tensor, zeros: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Zero entries of parameters, remove what is dead, and return it; the network computes the same."""
    net = net.double().eval()
    with torch.no_grad():
        for name, entries in zeros.items():
            surgery.tensors(net)[name][entries] = 0.0
    before = net(x.double())
    gone = pared.remove_dead(net, graph=pared.graph(net, x.double()))
    torch.testing.assert_close(net(x.double()), before, rtol=1e-10, atol=1e-10)
    return gone


def test_units_read_through_a_concatenation_leave() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.c(torch.cat([m.a(x), m.b(x)], 1).tanh())

    net = Fn(run, a=nn.Linear(4, 6), b=nn.Linear(4, 5), c=nn.Linear(11, 2))
    assert dead(net, X, {"c.weight": (slice(None), [1, 7, 10])}) == {"a": (1,), "b": (1, 4)}


def test_units_read_through_a_dense_block_leave_only_if_nobody_reads_them() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        y = torch.cat([y, m.b(y).relu()], 1)
        return m.d(torch.cat([m.c(y).relu(), y], 1))

    net = Fn(run, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(8, 4, 1), d=nn.Conv2d(12, 2, 1))
    # d does not read a's channels 0 and 1, b and c do not read 0; c does not read b's channel 2, and d does
    zeros = {"b.weight": (slice(None), [0]), "c.weight": (slice(None), [0, 6]), "d.weight": (slice(None), [4, 5])}
    assert dead(net, IMAGE, zeros) == {"a": (0,)}
    net = Fn(run, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(8, 4, 1), d=nn.Conv2d(12, 2, 1))
    assert dead(net, IMAGE, {**zeros, "d.weight": (slice(None), [4, 8 + 2, 3])}) == {"a": (0,), "b": (2,), "c": (3,)}


def test_a_head_without_values_leaves() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(4, 24), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, -1, 2).permute(2, 0, 3, 1, 4).unbind(0)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    rows = [16 + 2, 16 + 3]  # of the second head of four
    gone = dead(Heads(), torch.randn(2, 5, 4), {"qkv.weight": (rows,), "qkv.bias": (rows,)})
    assert list(gone.values()) == [(1,)]


def test_a_factor_that_is_a_buffer_kills() -> None:
    net = Fn(lambda m, x: m.b(m.a(x) * m.mask), a=nn.Linear(4, 6), b=nn.Linear(6, 2), mask=torch.ones(6))
    assert dead(net, X, {"mask": ([2, 3],)}) == {"a": (2, 3)}


# --- a bias takes what is meant for it --------------------------------------------------------------------------------


def shared(m: Any, x: Tensor) -> Tensor:
    return m.b(F.linear(m.a(x), m.v, m.c) + F.linear(m.a(x), m.w, m.c))


def later(m: Any, x: Tensor) -> Tensor:
    return m.b(m.d(m.a(x)).relu() + m.d.bias)


def one_zero(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(m.d(y.relu()).relu() + m.d((-y).relu()).relu())


def unrelated(m: Any, x: Tensor) -> Tensor:
    return m.b((F.linear(m.a(x), m.weight) * 2 + m.bias).relu())


@pytest.mark.parametrize("run", [shared, later, one_zero, unrelated])
def test_a_constant_goes_into_no_bias_that_others_read(run: Callable[[Any, Tensor], Tensor]) -> None:
    v, w, weight = (nn.Parameter(torch.randn(5, 6)) for _ in range(3))
    c, bias = (nn.Parameter(torch.randn(5)) for _ in range(2))
    net = Fn(run, a=nn.Linear(4, 6), d=nn.Linear(6, 5), b=nn.Linear(5, 2), v=v, w=w, c=c, weight=weight, bias=bias)
    net = net.double()
    with torch.no_grad():
        net.get_parameter("a.weight")[1], net.get_parameter("a.bias")[1] = 0.0, 0.7
    before, graph = net(X.double()), pared.graph(net, X.double())
    with pytest.raises(SurgeryError, match="read elsewhere|used more than once|cannot take into a bias"):
        pared.remove(net, {"a": [1]}, graph=graph)
    assert torch.equal(net(X.double()), before)
