"""Gates that keep a given number of components: softmax, and binary gates that are drawn."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import pared
from pared.errors import ConfigError
from pared.nn import Gate, MaskConnect, SoftmaxGate, Switched
from pared.nn.gated import Competition, Gated
from pared.nn.top_k import TopKGate

KINDS: list[type[TopKGate]] = [SoftmaxGate, MaskConnect]
both = pytest.mark.parametrize("kind", KINDS)
ALPHAS = st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def gate(kind: type[TopKGate], theta: Any, k: int, **options: Any) -> Any:
    made = kind(len(theta), k=k, dtype=torch.float64, **options)
    with torch.no_grad():
        made.theta.copy_(torch.as_tensor(theta, dtype=torch.float64))
    if isinstance(made, MaskConnect):
        made.refresh(seeded(0))
    return made


def competition(rival: Gate, inputs: int = 5, outputs: int = 4) -> Competition:
    layers = [nn.Linear(inputs, outputs, dtype=torch.float64) for _ in rival.theta]
    for seed, p in enumerate(p for layer in layers for p in layer.parameters()):
        nn.init.normal_(p, generator=seeded(seed))
    made = Competition(layers)
    for branch in made.branches:
        assert isinstance(branch, Gated)
        branch.gate = rival
    return made


def layers_of(made: Competition) -> list[nn.Module]:
    return [branch.layer for branch in made.branches if isinstance(branch, Gated)]


@both
def test_all_start_alike_and_press_for_nothing(kind: type[TopKGate]) -> None:
    made = kind(6, k=2, dtype=torch.float64)
    assert isinstance(made, Gate)
    assert [name for name, _ in made.named_parameters()] == ["theta"]
    assert made.theta.unique().tolist() == [0.5 if kind is MaskConnect else 0.0]
    assert made.penalty().item() == made.penalty(0.3).item() == 0.0
    assert (made.penalty() + made.theta.sum()).dtype == torch.float64
    assert bool((made.gamma() > 0).all())
    assert repr(made).endswith(", k=2)")
    theta = made.theta.detach().clone()
    with torch.no_grad():
        made.theta.add_(torch.arange(6))
    made.kill(torch.arange(6) == 5)
    assert torch.equal(made.dead(), torch.arange(6) == 5)
    made.reset_parameters()
    assert torch.equal(made.theta, theta)
    assert bool(made.alive.all())
    for k in (0, 7):
        with pytest.raises(ConfigError, match=f"between 1 and the 6 components, got {k}"):
            kind(6, k=k)


@both
@given(st.data(), ALPHAS)
def test_the_largest_are_kept_for_good(kind: type[TopKGate], data: st.DataObject, theta: list[float]) -> None:
    n = len(theta)
    k, dead = data.draw(st.integers(1, n)), torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assume(not bool(dead.all()))
    made = gate(kind, theta, k)
    values = made.theta.detach().tolist()
    made.kill(dead)
    living = [place for place in range(n) if not dead[place]]
    best = sorted(living, key=lambda place: (-values[place], place))[:k]
    assert made.largest().nonzero().flatten().tolist() == sorted(best)
    made.discretize()
    assert made.alive.nonzero().flatten().tolist() == sorted(best)
    for training in (True, False):
        made.train(training)
        assert torch.equal(made.shares() != 0, made.alive)
    assert made.shares().sum().item() == pytest.approx(1.0 if kind is SoftmaxGate else len(best))
    assert bool((made.gamma()[~made.alive] == 0).all())
    assert made.rest.item() == 0.0
    if isinstance(made, MaskConnect):
        made.refresh(seeded(1))
    assert torch.equal(made.train().shares() != 0, made.alive)
    (gradient,) = torch.autograd.grad((made.shares() * draw(n)).sum(), made.theta)
    assert bool((gradient[~made.alive] == 0).all())


@both
def test_they_stand_where_gates_stand(kind: type[TopKGate]) -> None:
    rival = gate(kind, [0.9, 0.2, 0.7], 2)
    made, x = competition(rival), draw(7, 5)
    for training in (True, False):
        made.train(training)
        results = torch.stack([layer(x) for layer in layers_of(made)])
        torch.testing.assert_close(made(x), (results * rival.shares().view(-1, 1, 1)).sum(0))
    wide = gate(kind, [0.9, 0.2, 0.7], 2, sizes=[1, 2, 3]).eval()
    torch.testing.assert_close(wide(x.new_ones(2, 6))[1], wide.shares()[torch.tensor([0, 1, 1, 2, 2, 2])])


@both
def test_state_copies_pickles_compiles_and_exports(kind: type[TopKGate]) -> None:
    x = draw(7, 5)
    rival = gate(kind, [0.9, 0.2, 0.7], 2)
    rival.kill(torch.tensor([False, True, False]))
    made, other = competition(rival), competition(kind(3, k=2, dtype=torch.float64))
    other.load_state_dict(made.state_dict())
    for twin in (other, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        for training in (True, False):
            assert torch.equal(twin.train(training)(x), made.train(training)(x))
    for training in (True, False):
        made.train(training)
        parameters = list(made.parameters())
        compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(x).square().sum(), parameters)
        for one, two in zip(got, torch.autograd.grad(made(x).square().sum(), parameters), strict=True):
            torch.testing.assert_close(one, two)
    made.eval()
    torch.testing.assert_close(torch.export.export(made, (x,)).module()(x), made(x))
    state = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    torch.testing.assert_close(functional_call(made, state, (x,)), made(x))


@both
def test_surgery_takes_what_was_killed_and_folds_the_rest(kind: type[TopKGate]) -> None:
    rival = gate(kind, [0.9, 0.2, 0.7], 2, sizes=[1, 2, 3])
    made = nn.Sequential(nn.Linear(5, 6), Switched(nn.ReLU(), rival), nn.Linear(6, 4)).double().eval()
    x = draw(7, 5)
    rival.discretize()
    before = made(x)
    graph = pared.graph(made, x)
    pared.remove(made, {graph.at("1.switch.theta").name: [1]}, graph=graph)
    torch.testing.assert_close(made(x), before, rtol=1e-12, atol=1e-12)
    assert (rival.channels, len(rival.theta), len(rival.alive)) == (4, 2, 2)
    if isinstance(rival, MaskConnect):
        rival.refresh(seeded(2))
        torch.testing.assert_close(made.train()(x), before, rtol=1e-12, atol=1e-12)
    folded = pared.fold(made.eval(), x)
    torch.testing.assert_close(folded(x), before, rtol=1e-12, atol=1e-12)
    assert not any(isinstance(module, Gate) for module in folded.modules())


@both
def test_the_branches_that_matter_win(kind: type[TopKGate]) -> None:
    """Four branches see one column each; two of the columns make the target."""
    x = draw(256, 4)
    y = x[:, [1]].sin() - x[:, [3]].square()

    class See(nn.Module):
        def __init__(self, place: int) -> None:
            super().__init__()
            self.place = place
            self.net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()
            for seed, p in enumerate(self.net.parameters()):
                nn.init.normal_(p, std=0.5, generator=seeded(10 * place + seed))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x[:, [self.place]])

    rival = kind(4, k=2, dtype=torch.float64)
    made = Competition([See(place) for place in range(4)])
    for branch in made.branches:
        branch.gate = rival  # pyright: ignore[reportAttributeAccessIssue]
    weights = [p for p in made.parameters() if p is not rival.theta]
    optimizer = torch.optim.Adam([{"params": weights}, {"params": [rival.theta], "lr": 0.02}], lr=0.02)
    noise = seeded(3)
    for _ in range(300):
        optimizer.zero_grad()
        (made(x) - y).square().mean().backward()
        optimizer.step()
        if isinstance(rival, MaskConnect):
            rival.refresh(noise)
    rival.discretize()
    assert rival.alive.tolist() == [False, True, False, True]


@given(ALPHAS)
def test_softmax_is_softmax_over_the_living(theta: list[float]) -> None:
    made, n = gate(SoftmaxGate, theta, 1), len(theta)
    reference = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    for dead in (torch.zeros(n, dtype=torch.bool), torch.arange(n) % 2 == 1):
        made.kill(dead)
        expected = reference[~dead].softmax(0)
        torch.testing.assert_close(made.shares()[~dead], expected)
        assert bool((made.shares()[dead] == 0).all())
        weights = draw(n)
        (mine,) = torch.autograd.grad((made.shares() * weights).sum(), made.theta)
        (theirs,) = torch.autograd.grad((expected * weights[~dead]).sum(), reference)
        torch.testing.assert_close(mine, theirs)


def test_softmax_never_comes_to_zero_and_stays_finite() -> None:
    made = gate(SoftmaxGate, [700.0, 0.0, 1.0], 1)
    assert bool((made.shares() > 0).all())
    with torch.no_grad():
        made.theta.copy_(torch.tensor([1e30, -1e30, 1e30]))
    made.kill(torch.tensor([True, False, False]))
    assert made.shares().tolist() == [0.0, 0.0, 1.0]
    (gradient,) = torch.autograd.grad(made.shares()[1], made.theta)
    assert bool(gradient.isfinite().all())
    made.alive.zero_()
    assert made.shares().tolist() == [0.0, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(made.shares().sum(), made.theta)
    assert bool((gradient == 0).all())
    half = SoftmaxGate(3, k=1, dtype=torch.bfloat16)
    assert half.shares().dtype == torch.bfloat16


def chances(values: list[float], k: int) -> Tensor:
    """How likely each is among `k` that are drawn one after the other, in proportion to `values`, none twice."""
    found = torch.zeros(len(values))
    for order in itertools.permutations(range(len(values)), k):
        chance, left = 1.0, sum(values)
        for place in order:
            chance *= values[place] / left
            left -= values[place]
        found[list(order)] += chance
    return found


@pytest.mark.parametrize(("values", "k"), [([0.9, 0.3, 0.1], 1), ([0.9, 0.3, 0.1], 2), ([0.2, 1.0, 0.6, 0.4], 2)])
def test_active_ones_are_drawn_in_proportion_to_their_gates(values: list[float], k: int) -> None:
    made, generator = gate(MaskConnect, values, k), seeded(5)
    counts = torch.zeros(len(values))
    for _ in range(2000):
        made.refresh(generator)
        shares = made.shares().detach()
        assert bool(((shares == 0) | (shares == 1)).all())
        assert int(shares.sum()) == k
        counts += shares
    torch.testing.assert_close(counts / 2000, chances(values, k), rtol=0, atol=0.04)
    assert torch.equal(made.eval().shares() > 0, torch.tensor(values) >= sorted(values)[-k])


def test_gates_are_clipped_and_those_at_zero_are_drawn_only_where_others_are_missing() -> None:
    made, generator = gate(MaskConnect, [1.7, -0.3, 0.4, 0.0], 2), seeded(0)
    assert made.theta.tolist() == [1.0, 0.0, 0.4, 0.0]
    for k, expected in ((2, 2), (3, 3)):
        made.k = k
        for _ in range(50):
            made.refresh(generator)
            assert made.drawn[[0, 2]].all()
            assert int(made.drawn.sum()) == expected
    made.kill(torch.tensor([True, False, False, False]))
    assert made.shares()[0] == 0
    made.refresh(generator)
    assert made.drawn.tolist() == [False, True, True, True]


def test_the_same_generator_draws_the_same_and_a_state_goes_on() -> None:
    def drawn(made: MaskConnect, generator: torch.Generator, steps: int) -> list[list[bool]]:
        seen = []
        for _ in range(steps):
            seen.append(made.drawn.tolist())
            made.refresh(generator)
        return seen

    first, second = (MaskConnect(9, k=3, generator=seeded(4)) for _ in range(2))
    assert torch.equal(first.drawn, second.drawn)
    assert drawn(first, seeded(1), 20) == drawn(second, seeded(1), 20)
    assert len({tuple(row) for row in drawn(first, seeded(2), 20)}) > 5
    generator = seeded(3)
    drawn(first, generator, 5)
    again, state = MaskConnect(9, k=3), generator.get_state()
    again.load_state_dict(first.state_dict())
    other = torch.Generator()
    other.set_state(state)
    assert drawn(first, generator, 10) == drawn(again, other, 10)


def test_gradients_reach_the_gates_of_branches_that_are_not_active() -> None:
    rival = gate(MaskConnect, [0.9, 0.2, 0.7, 0.4], 2)
    rival.kill(torch.tensor([False, False, True, False]))
    rival.refresh(seeded(1))
    made, x, target = competition(rival), draw(7, 5), draw(7, 4, seed=1)
    result = made(x)
    (result * target).sum().backward()
    pull = torch.stack([(layer(x) * target).sum() for layer in layers_of(made)])
    torch.testing.assert_close(rival.theta.grad, pull.detach() * torch.tensor([1.0, 1.0, 0.0, 1.0]))
    for layer, active in zip(layers_of(made), rival.drawn.tolist(), strict=True):
        assert all(p.grad is not None and bool(p.grad.any()) == active for p in layer.parameters())
    assert rival.drawn.tolist().count(True) == 2
