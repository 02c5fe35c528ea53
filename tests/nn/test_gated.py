"""Branches that compete: what a dead one learns, and that everything around a gate takes it as any other module."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.func import functional_call

import pared
from pared.errors import ConfigError, SurgeryError
from pared.nn import Competition, Gate, Gated, Switched
from pared.nn.gate import DeadGrad


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def linear(inputs: int, outputs: int, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return layer


def competition(n: int = 3, dead_grad: DeadGrad = "none", normed: bool = False) -> Competition:
    """Branches of which the last has no share."""
    norm = (lambda: nn.BatchNorm1d(4, affine=False, dtype=torch.float64)) if normed else None
    made = Competition([linear(5, 4, seed) for seed in range(n)], norm=norm, dead_grad=dead_grad)
    gate_of(made).theta.data[-1] = -20.0
    assert gate_of(made).shares()[-1] == 0
    return made


def layers_of(made: Competition) -> list[nn.Module]:
    return [branch.layer for branch in made.branches if isinstance(branch, Gated)]


def gate_of(made: Competition) -> Gate:
    (gate,) = {module for module in made.modules() if isinstance(module, Gate)}
    return gate


def grouped() -> nn.Sequential:
    made = nn.Sequential(linear(5, 6), Switched(nn.ReLU(), Gate(3, sizes=[1, 2, 3], dtype=torch.float64)), linear(6, 4))
    made[1].switch.theta.data[1] = -20.0  # pyright: ignore
    return made


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "competition": competition,
    "with a way back": lambda: competition(dead_grad="elu"),
    "normed": lambda: competition(normed=True),
    "channels": grouped,
}


@pytest.mark.parametrize("normed", [False, True])
def test_a_competition_is_the_sum_of_its_branches_by_their_shares(normed: bool) -> None:
    made = competition(normed=normed)
    layers = layers_of(made)
    a = gate_of(made).shares()
    expected = torch.stack([copy.deepcopy(layer)(x(7, 5)) for layer in layers]).mul(a.view(-1, 1, 1)).sum(0)
    torch.testing.assert_close(made(x(7, 5)), expected)
    assert sum(parameter.numel() for parameter in made.parameters()) == 3 * 24 + 4
    if normed:  # what branches give has a size of its own, so that a share is what it counts
        assert all(layer(x(7, 5)).std(0, correction=0).allclose(torch.ones(4).double(), atol=1e-4) for layer in layers)


@pytest.mark.parametrize("dead_grad", ["none", "elu", "leaky"])
def test_weights_of_a_dead_branch_have_a_gradient_of_exactly_0(dead_grad: DeadGrad) -> None:
    made = competition(dead_grad=dead_grad)
    (made(x(7, 5)).square().mean() + gate_of(made).penalty()).backward()
    *living, dead = layers_of(made)
    assert all(p.grad is not None and not p.grad.any() for p in dead.parameters())
    assert all(p.grad is not None and p.grad.all() for layer in living for p in layer.parameters())


@pytest.mark.parametrize("saving", [False, True])
def test_shares_are_made_once_in_a_training_pass(saving: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls, h = competition(5), [], x(2, 5)
    factors = Gate.factors
    monkeypatch.setattr(Gate, "factors", lambda gate: calls.append(0) or factors(gate))
    outputs, gradients = [], []
    for training in (True, False):
        made.train(training)
        calls.clear()
        y = torch.utils.checkpoint.checkpoint(made, h, use_reentrant=False) if saving else made(h)
        assert len(calls) == (1 if training else 5)
        outputs.append(y)
        gradients.append(torch.autograd.grad(y.square().sum(), list(made.parameters())))
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients)


def test_a_branch_can_be_read_through_its_gate() -> None:
    branch = competition().branches[0]
    assert isinstance(branch, Gated)
    assert branch.out_features == 4
    assert branch.extra_repr() == "place=0"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        branch.nothing  # noqa: B018
    with pytest.raises(ConfigError, match="at least one branch"):
        Competition([])


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
class TestEveryNetwork:
    def test_state_copies_and_pickles(self, make: Callable[[], nn.Module]) -> None:
        made, other = make().eval(), make().eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(0.9)
        other.load_state_dict(made.state_dict())
        for twin in (other, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert torch.equal(twin(x(7, 5)), made(x(7, 5)))
            gates = [module for module in twin.modules() if isinstance(module, Gate)]
            assert len(gates) == 1  # branches of a copy share its gate
            assert all(gate is not g for gate in gates for g in made.modules())

    def test_compiles_with_gradients(self, make: Callable[[], nn.Module]) -> None:
        made = make()
        compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
        parameters = list(made.parameters())
        got = torch.autograd.grad(compiled(x(7, 5)).square().sum(), parameters)
        expected = torch.autograd.grad(made(x(7, 5)).square().sum(), parameters)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)

    def test_exports_and_calls_functionally(self, make: Callable[[], nn.Module]) -> None:
        made = make().eval()
        torch.testing.assert_close(torch.export.export(made, (x(7, 5),)).module()(x(7, 5)), made(x(7, 5)))
        state = {**dict(made.named_parameters()), **dict(made.named_buffers())}
        torch.testing.assert_close(functional_call(made, state, (x(7, 5),)), made(x(7, 5)))


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("positive", ["sigmoid", "exp"])
@pytest.mark.parametrize("dead_grad", ["none", "elu", "leaky"])
def test_surgery_takes_what_was_killed_and_folds_the_shares(null: bool, positive: str, dead_grad: str) -> None:
    gate = Gate(3, sizes=[1, 2, 3], null=null, positive=positive, dead_grad=dead_grad, dtype=torch.float64)  # pyright: ignore
    made = nn.Sequential(linear(5, 6), Switched(nn.ReLU(), gate), linear(6, 4)).eval()
    gate.theta.data[1] = -20.0
    before = made(x(7, 5))
    graph = pared.graph(made, x(7, 5))
    with pytest.raises(SurgeryError, match="alive"):  # its strength still counts in the threshold
        pared.remove(made, {graph.at("1.switch.theta").name: [1]}, graph=graph)
    gate.kill(gate.shares() == 0)
    pared.remove(made, {graph.at("1.switch.theta").name: [1]}, graph=graph)
    torch.testing.assert_close(made(x(7, 5)), before, rtol=1e-12, atol=1e-12)
    assert (gate.channels, len(gate.theta), made[0].out_features, made[2].in_features) == (4, 2, 4, 4)
    folded = pared.fold(made, x(7, 5))
    torch.testing.assert_close(folded(x(7, 5)), before, rtol=1e-12, atol=1e-12)
    assert not any(isinstance(module, Gate) for module in folded.modules())


def test_what_leaves_changes_no_gradient_of_a_tiny_share() -> None:
    gate = Gate(8, dtype=torch.float64)
    made = nn.Sequential(linear(5, 8), Switched(nn.ReLU(), gate), linear(8, 4)).eval()
    with torch.no_grad():
        gate.theta.fill_(-20.0)
        gate.theta[0] = 0.0
        gate.beta.fill_(-1.0)
        cut = gate.beta.sigmoid() * 0.5
        gate.theta[1] = ((cut + 7e-5) / (1.0 - gate.beta.sigmoid())).logit()
    assert 1e-3 / 8 < gate.shares()[1] < 1e-3 / 2  # where powers are linear in a gate of two, and not in one of eight
    before = torch.autograd.grad(gate.penalty(), [gate.theta, gate.beta])
    gate.kill(gate.shares() == 0)
    graph = pared.graph(made, x(7, 5))
    pared.remove(made, {"0": range(2, 8)}, graph=graph)
    after = torch.autograd.grad(gate.penalty(), [gate.theta, gate.beta])
    torch.testing.assert_close(after[0], before[0][:2], rtol=1e-9, atol=0)
    torch.testing.assert_close(after[1], before[1], rtol=1e-9, atol=0)
