"""Every matrix that a network multiplies by is found, with its units' axis, and what is left dense is named."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.errors import ConfigError
from pared.measure.matrices import matrices
from pared.methods import SNFS, DeepR, LpSS, RigL, Static, WeightMethod
from pared.ops import lp_norm
from pared.optim import ClassRateSGD, LpSGD, lp_groups
from pared.topology import Masked


class Turned(nn.Module):
    """A layer whose weight is (in, out), as that of GPT-2's `Conv1D`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Language(nn.Module):
    """A small language model: tied table, positions, attention, turned layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(12, 8), nn.Parameter(torch.zeros(5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = Turned(8, 16), Turned(16, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x + self.down(self.up(x).relu()))


class Raw(nn.Module):
    """Parameters that are multiplied by without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.e, self.f = (nn.Parameter(torch.randn(size)) for size in ((8, 6), (6, 8), (7, 8)))
        self.heads, self.kernel = nn.Parameter(torch.randn(3, 8, 4)), nn.Parameter(torch.randn(4, 8, 3))
        self.gru, self.unused, self.scale = nn.GRU(8, 5), nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.gru(x * self.scale)[0].repeat(1, 1, 2)[..., :8]
        F.linear(x, self.f)
        torch.einsum("btk,hkd->bhtd", x, self.heads)
        F.conv1d(x.transpose(1, 2), self.kernel)
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ self.w
        return torch.einsum("btk,ok->bto", y.float(), self.e.t())


IDS, X = torch.arange(10).view(2, 5), torch.randn(2, 5, 8)
COVERED = ["attention.in_proj_weight", "attention.out_proj.weight", "up.weight", "down.weight"]


def bound(method: WeightMethod, model: nn.Module, example: Any, **options: Any) -> Any:
    return method.bind(model, torch.optim.Adam(model.parameters(), 0.01), example, **options)


def test_parameters_are_found_with_the_axis_of_their_units() -> None:
    found = {one.name: one.axis for one in matrices(Raw(), X).found}
    gru = {"gru.weight_ih_l0": 0, "gru.weight_hh_l0": 0}
    assert found == {"w": 1, "e": 1, "f": 0, "heads": 2, "kernel": 0, **gru}
    assert matrices(Raw(), X).others.keys() == {"unused", "scale"}
    transposed, before = nn.ConvTranspose2d(4, 6, 3), torch.get_rng_state()
    assert matrices(transposed, torch.ones(1, 4, 5, 5)).found[0].axis == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_a_table_that_is_tied_to_the_output_stays_whole_unless_it_is_named() -> None:
    session = bound(Static(0.5), Language(), IDS)
    assert list(session.connections) == COVERED
    assert session.skipped.keys() == {"table.weight", "places"}
    assert "embedding" in session.skipped["table.weight"]
    assert f"of {session.covered[0]:,} of {session.covered[1]:,} weights" in str(session)
    assert session.covered == (4 * 64 + 256, 4 * 64 + 256 + 96 + 40)
    assert "not covered: table.weight" in str(session)
    named = bound(Static(0.5, where=lambda name, weight: name == "head.weight"), Language(), IDS)
    assert list(named.connections) == ["table.weight"]
    assert list(bound(Static(0.5, where="but last"), Language(), IDS).connections) == COVERED


def test_without_an_example_what_is_not_known_is_warned_of_by_name() -> None:
    with pytest.warns(UserWarning, match=r"places, up\.weight, down\.weight is not known"):
        session = bound(Static(0.5), Language(), ())
    assert list(session.connections) == COVERED[:2]
    with pytest.raises(ConfigError, match="does not take this example"):
        bound(Static(0.5), Language(), torch.ones(3))


@pytest.mark.parametrize("method", [RigL(0.8, every=3), SNFS(0.8, every=3), LpSS(0.7, every=2, initial=0.3)])
def test_along_another_axis_of_units_all_is_as_if_the_weight_were_turned(method: WeightMethod) -> None:
    def net(turned: bool) -> nn.Module:
        kind: Any = Turned if turned else nn.Linear
        return nn.Sequential(kind(8, 16), nn.ReLU(), kind(16, 3)).double()

    x, y = torch.randn(20, 8, dtype=torch.float64), torch.arange(20) % 3
    sessions = [bound(method, net(turned), x, total_steps=20) for turned in (False, True)]
    masks = {name: one.mask.clone() for name, one in sessions[0].connections.items()}
    weights = {name: torch.randn(mask.shape, dtype=torch.float64) for name, mask in masks.items()}
    for session in sessions:  # from the same start, as masks are drawn on the weight as it lies
        with torch.no_grad():
            for name, one in session.connections.items():
                one.mask.copy_(masks[name] if one.axis == 0 else masks[name].t())
                one.weight.copy_(weights[name] if one.axis == 0 else weights[name].t())
                one.hold()
                session.parameter(name.replace("weight", "bias")).zero_()
        for _ in range(20):
            F.cross_entropy(session.model(x), y).backward()
            session.step()
            session.optimizer.zero_grad()
    plain, turned = (session.connections for session in sessions)
    assert sessions[1].events == sessions[0].events != []
    for name in plain:
        assert (plain[name].shape, plain[name].rows) == (turned[name].shape, turned[name].rows)
        assert torch.equal(plain[name].mask, turned[name].mask.t())
        torch.testing.assert_close(plain[name].weight, turned[name].weight.t())


def test_soft_signs_and_rescaling_follow_the_axis_too() -> None:
    session = bound(DeepR(0.8, noise=1.0, soft=True), Language(), IDS, total_steps=10)
    for _ in range(5):
        session.model(IDS).square().mean().backward()
        session.step()
    assert all(not one.weight[~one.mask].any() for one in session.connections.values())
    weight = nn.Parameter(torch.ones(4, 2))
    weight_net = Turned(4, 2)
    weight_net.weight = weight
    one = bound(Static(0.5, rescale=True), weight_net, torch.ones(1, 4)).connections["weight"]
    assert torch.allclose(weight.square().sum(0)[one.mask.any(0)], torch.tensor(4.0))
    assert Masked(weight, axis=1).rows == 2


@pytest.mark.parametrize("form", ["momentum", "direct"])
def test_neurons_along_another_axis_are_on_spheres_of_their_own(form: Any) -> None:
    net = nn.Sequential(Turned(8, 16), nn.ReLU(), Turned(16, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = LpSGD(lp_groups(net, 1.3, example=X[0], euclidean_lr=0.1), lr=0.05, p=1.3, form=form)
    session = RigL(0.5, every=2).bind(net, optimizer, X[0], total_steps=8)
    for _ in range(8):
        net(X[0]).square().mean().backward()
        session.step()
        optimizer.zero_grad()
    for name in ("0.weight", "2.weight"):
        norms = lp_norm(net.get_parameter(name), 1.3, dim=0)
        living = net.get_parameter(name).any(0)
        torch.testing.assert_close(norms[living], torch.ones(int(living.sum())), rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match=r"0\.weight, 2\.weight is not known"), pytest.raises(ConfigError):
        lp_groups(net, 1.3)


def test_attention_s_own_layer_has_no_rates_and_says_so() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.read, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            x = F.linear(self.attention(x, x, x)[0].mean(1), self.read.weight * 1.0)
            return self.last(x)

    net = Net()
    optimizer = ClassRateSGD(net, classes=3)
    assert {"attention.out_proj.weight", "attention.in_proj_weight", "last.weight"} == optimizer.skipped.keys()
    with optimizer.classes(torch.tensor([0, 2])):
        F.cross_entropy(net(X), torch.tensor([0, 2])).backward()
    with pytest.warns(UserWarning, match=r"read\.weight has a gradient that came neither"):
        optimizer.step()
