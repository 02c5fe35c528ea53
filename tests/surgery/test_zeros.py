"""Units that zeros among the weights have cut off are removed, and no others."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pared
from pared.errors import SurgeryError
from pared.models import mlp, resnet, two_layer_cnn, vgg
from pared.surgery.graph import Graph


def sparse(model: nn.Module, density: float, seed: int) -> nn.Module:
    """Set most weights to 0 and return the model in evaluation mode, with norms that have seen something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.ndim > 1):
            weight.mul_(torch.rand(weight.shape, generator=generator) < density)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator)
    return model.eval()


def connected(layers: list[nn.Linear]) -> list[int]:
    """Return how many units of each hidden layer have weights on both sides, when the others are gone, one at least."""
    alive = [torch.ones(layer.out_features, dtype=torch.bool) for layer in layers[:-1]]
    while True:
        before = [int(one.sum()) for one in alive]
        for place in range(len(alive)):
            columns = alive[place - 1] if place else torch.ones(layers[0].in_features, dtype=torch.bool)
            rows = alive[place + 1] if place + 1 < len(alive) else torch.ones(layers[-1].out_features, dtype=torch.bool)
            leading = (layers[place].weight[:, columns] != 0).any(1)
            reading = (layers[place + 1].weight[rows] != 0).any(0)
            left = alive[place] & leading & reading
            if not left.any():  # one stays
                left = alive[place] & (torch.arange(len(left)) == alive[place].nonzero()[0, 0])
            alive[place] = left
        if before == [int(one.sum()) for one in alive]:
            return before


@settings(max_examples=25)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.02, 0.05, 0.1, 0.3]),
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
)
def test_a_perceptron_keeps_the_units_that_are_connected(seed: int, density: float, hidden: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = sparse(mlp(6, 3, hidden, generator=generator), density, seed)
    x = torch.randn(9, 6, generator=generator)
    before, layers = (
        model(x),
        [one for one in model if isinstance(one, nn.Linear)] if isinstance(model, nn.Sequential) else [],
    )
    most = connected(layers)
    graph = pared.graph(model, x)
    gone = pared.remove_dead(model, graph=graph)
    torch.testing.assert_close(model(x), before)
    left = [layer.out_features for layer in layers[:-1]]
    assert left == most
    for place, name in enumerate(str(2 * i) for i in range(len(hidden))):
        if hidden[place] > 1:
            assert sorted((*gone.get(name, ()), *graph.find(name).kept)) == list(range(hidden[place]))


@pytest.mark.parametrize("density", [0.003, 0.03, 0.3])
@pytest.mark.parametrize(
    "make", [lambda: two_layer_cnn(size=8), lambda: vgg([8, 0, 16, 16, 0], size=8, channels=1), lambda: resnet((1, 1), width=8, channels=1)]
)  # fmt: skip
def test_convolutions_compute_the_same_with_fewer_channels(make: type[nn.Module], density: float) -> None:
    torch.manual_seed(0)
    model = sparse(make(), density, 0)
    x = torch.randn(5, 1, 8, 8)
    before, size = model(x), sum(p.numel() for p in model.parameters())
    graph = pared.graph(model, x)
    pared.remove_dead(model, graph=graph)
    torch.testing.assert_close(model(x), before)
    if density < 0.01:
        assert sum(p.numel() for p in model.parameters()) < size / 2
    assert pared.remove_dead(model, graph=graph) == {}


def channels(bias: float) -> tuple[nn.Sequential, Tensor]:
    """Return two convolutions, of which the first has a channel without weights and with that bias."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].get_parameter("weight")[2] = 0.0
        model[0].get_parameter("bias")[2] = bias
    return model, torch.randn(2, 1, 5, 5)


@pytest.mark.parametrize(("bias", "stays"), [(0.5, True), (-0.5, False)])
def test_a_constant_that_meets_zero_padding_stays(bias: float, stays: bool) -> None:
    model, x = channels(bias)
    before = model(x)
    assert pared.remove_dead(model, graph=pared.graph(model, x)) == ({} if stays else {"0": (2,)})
    assert torch.equal(model(x), before)


def test_a_norms_zero_is_a_death_and_optimizer_and_copies_follow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 3)).sum().backward()
    optimizer.step()
    average = copy.deepcopy(model).eval()
    with torch.no_grad():
        for one in (model, average):
            one.get_parameter("1.weight")[[1, 4]] = 0.0
    x = torch.randn(5, 3)
    before, other = model.eval()(x), average(x)
    graph = pared.graph(model, x)
    assert pared.remove_dead(model, graph=graph, optimizer=optimizer, ema=[average]) == {"0": (1, 4)}
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(average(x), other)
    assert optimizer.state[model.get_parameter("0.weight")]["exp_avg"].shape == (4, 3)
    assert optimizer.state[model.get_parameter("3.weight")]["exp_avg"].shape == (2, 4)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (nn.Linear(a, b) for a, b in ((4, 8), (8, 6), (6, 8), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        return self.head(y + self.outer(self.inner(y).relu()))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 9, bias=False), nn.Linear(4, 9), nn.Linear(9, 3)
        self.scale = nn.Parameter(torch.ones(1, 9))
        self.mix = nn.Parameter(torch.randn(3, 7))
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.down(nn.functional.silu(self.gate(x)) * self.up(x) * self.scale) @ self.mix).relu())


def deconvolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten()
    )


def without_one_by_one(model: nn.Module, graph: Graph) -> None:
    """Remove units that a plan allows to be removed, one after the other, until there are none."""
    again = True
    while again:
        again = False
        for space in graph.removable():
            for entry in reversed(range(space.size)):
                if space.size == 1:
                    break
                try:
                    pared.remove(model, {space.name: [entry]}, graph=graph)
                except SurgeryError:
                    continue
                again, space = True, graph.find(space.name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("density", [0.15, 0.2, 0.3])
@pytest.mark.parametrize("make", [Residual, Gated, deconvolution])
def test_no_unit_is_left_that_a_plan_would_let_go(make: type[nn.Module], density: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = sparse(make(), density, seed)
    x = torch.randn(5, 1, 6, 6) if make is deconvolution else torch.randn(5, 4)
    before, other = model(x), copy.deepcopy(model)
    pared.remove_dead(model, graph=pared.graph(model, x))
    without_one_by_one(other, pared.graph(other, x))
    torch.testing.assert_close(model(x), before)
    assert sum(p.numel() for p in model.parameters()) <= sum(p.numel() for p in other.parameters())


def test_a_graph_of_another_network_is_refused() -> None:
    model, x = channels(0.0)
    graph = pared.graph(model, x)
    pared.remove(model, {"0": [2]}, graph=pared.graph(model, x))
    with pytest.raises(SurgeryError, match="not of this network"):
        pared.remove_dead(model, graph=graph)


def test_a_norms_zero_beside_a_residual_stream_is_no_death() -> None:
    """A norm's zero on a residual stream kills nothing, as others write there."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner, self.head = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.inner(self.norm(x)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Residual()).eval()
    with torch.no_grad():
        model.get_parameter("1.norm.weight")[1] = 0.0
    x = torch.randn(5, 3)
    assert pared.remove_dead(model, graph=pared.graph(model, x)) == {}
