"""Components that compete and leave, beyond the contract of all methods."""

import copy
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import images, network, task
from pared.errors import ConfigError, RunError, SurgeryError
from pared.methods import Gates, UnitSession
from pared.models import densenet, depth_groups, input_groups, resnet
from pared.nn import Channels, Competition, Gate, Gated, MaskConnect, SoftmaxGate, Zero
from pared.nn.scale import Scale
from pared.nn.top_k import TopKGate

IMAGES, LABELS = images()


def residual(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return resnet((3, 2), 2, channels=2, width=4, generator=torch.Generator().manual_seed(0)).to(dtype)


def bound(model: nn.Module, method: Gates, example: Tensor | None = None) -> UnitSession:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    x = IMAGES[:2].to(next(model.parameters()).dtype) if example is None else example
    return method.bind(model, optimizer, x, total_steps=100, steps_per_epoch=100)


def train(session: UnitSession, steps: int, after: Callable[[], None] = lambda: None) -> None:
    x = IMAGES.to(next(session.model.parameters()).dtype)
    for step in range(steps):
        rows = torch.arange(step * 32, step * 32 + 32) % len(x)
        (F.cross_entropy(session.model(x[rows]), LABELS[rows]) + session.penalty()).backward()
        session.step()
        session.optimizer.zero_grad()
        after()


def silence(gate: Gate, *places: int) -> None:
    """Let components have no share, and no way back in the steps to come."""
    with torch.no_grad():
        gate.theta[list(places)] = -30.0


def test_groups_have_one_gate_each_without_weight_decay_and_begin_even() -> None:
    model = residual()
    session = bound(model, Gates(0.1, depth_groups(model)))
    assert {title: gate.shares().tolist() for title, gate in session.gates.items()} == {
        "stage 0": pytest.approx([1 / 3] * 3),
        "stage 1": pytest.approx([1 / 2] * 2),
    }
    group = session.optimizer.param_groups[-1]
    assert group["weight_decay"] == 0.0
    assert sorted(p.numel() for p in group["params"]) == [1, 1, 2, 3]
    assert session.penalty().item() == pytest.approx(0.1 * (3 + 2))
    scaled = residual()
    bound(scaled, Gates(0.1, depth_groups(scaled), scaled=True))
    torch.testing.assert_close(scaled(IMAGES.double()), residual()(IMAGES.double()))


@pytest.mark.parametrize("cost", ["parameters", "macs", "latency"])
def test_costs_weigh_groups_by_what_leaves_with_a_component(cost: Any) -> None:
    model = residual(torch.float32)
    session = bound(model, Gates(1.0, depth_groups(model), cost=cost))
    counts = {title: len(gate.theta) for title, gate in session.gates.items()}
    assert sum(session.weights[t] * n for t, n in counts.items()) / sum(counts.values()) == pytest.approx(1.0)
    if cost == "parameters":  # two 3x3 convolutions and two norms each; the second stage's first block reads 4 channels
        first, second = 4 * 4 * 9 * 2 + 16, (4 * 8 * 9 + 8 * 8 * 9 + 32 + 8 * 8 * 9 * 2 + 32) / 2
        assert session.weights["stage 1"] / session.weights["stage 0"] == pytest.approx(second / first)


def test_removal_changes_no_output_and_no_later_step_of_the_others() -> None:
    stays, leaves = (bound(model, Gates(0.1, depth_groups(model), every=5)) for model in (residual(), residual()))
    assert stays.components is not None
    stays.components.remove = lambda session: None  # type: ignore[method-assign]  # killed, and still there
    for session in (stays, leaves):
        silence(session.gates["stage 0"], 1)
        silence(session.gates["stage 1"], 0)
        train(session, 5)
    assert [(e.layer, e.index, e.left) for e in leaves.events] == [("stage 0", (1,), 2), ("stage 1", (0,), 1)]
    assert isinstance(leaves.net.get_submodule("4"), nn.Identity)
    names = leaves.net.state_dict().keys()
    assert not any(name.startswith(("4.", "6.conv", "6.norm")) for name in names)
    assert "6.shortcut.0.weight" in names  # what changes shapes stays
    for _ in range(3):
        x = IMAGES.double()
        torch.testing.assert_close(leaves.model.eval()(x), stays.model.eval()(x), rtol=1e-10, atol=1e-10)
        for session in (stays, leaves):
            train(session, 4)
    mine, theirs = dict(leaves.net.named_parameters()), dict(stays.net.named_parameters())
    for name, parameter in mine.items():
        if ".gate." not in name:  # is named by the first who holds it
            torch.testing.assert_close(parameter, theirs[name], rtol=1e-9, atol=1e-10)
    for title, gate in leaves.gates.items():
        torch.testing.assert_close(gate.theta[gate.alive], stays.gates[title].theta[gate.alive], rtol=1e-9, atol=1e-10)


def test_who_wakes_between_two_removals_stays() -> None:
    model = residual()
    session = bound(model, Gates(0.0, depth_groups(model), every=6))
    gate = session.gates["stage 0"]
    silence(gate, 1)
    train(session, 4)
    with torch.no_grad():
        gate.theta[1] = 1.0
    train(session, 1)
    silence(gate, 1)
    train(session, 1)
    assert session.steps == 6
    assert gate.alive.all()
    train(session, 6)
    assert gate.alive.tolist() == [True, False, True]


def test_realizing_takes_out_who_has_no_share_now() -> None:
    model = residual()
    with pytest.warns(UserWarning, match="removes dead units every 1000 steps, and the run has 100"):
        session = bound(model, Gates(0.1, depth_groups(model), every=1000))
    train(session, 3)
    silence(session.gates["stage 0"], 0, 2)
    before = session.model.eval()(IMAGES.double())
    small = session.realize()
    assert session.gates["stage 0"].alive.all()  # of the session nothing has left
    assert not session.events
    torch.testing.assert_close(small(IMAGES.double()), before, rtol=1e-9, atol=1e-9)
    assert [type(small.get_submodule(str(place))) for place in (3, 5)] == [nn.Identity] * 2
    assert not any(isinstance(module, Gated | Gate | Scale) for module in small.modules())


def branches(count: int = 3) -> list[nn.Module]:
    generator = torch.Generator().manual_seed(0)
    made: list[nn.Module] = []
    for _ in range(count):
        linear = nn.Linear(12, 2)
        nn.init.normal_(linear.weight, generator=generator)
        made.append(linear)
    return made


def test_a_whole_group_dies_with_null_where_it_is_only_added() -> None:
    class Plus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.more = network(), Competition(branches(), null=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.more(x)

    model, (x, y) = Plus(), task()
    session = bound(model, Gates(0.1, every=2), x[:2])
    (gate,) = session.gates.values()
    with torch.no_grad():
        gate.theta.fill_(-30.0)
        gate.beta.fill_(5.0)
    before = model(x)
    for _ in range(2):
        (F.cross_entropy(model(x), y) + session.penalty()).backward()
        session.optimizer.zero_grad()  # nothing moves
        session.step()
    assert [event.left for event in session.events] == [1]  # the strongest stands, at a share of 0
    small = session.realize()
    torch.testing.assert_close(small(x), before)


@pytest.mark.parametrize(("bottleneck", "by_hand"), [(False, True), (True, False)])
def test_a_layer_whose_inputs_all_die_keeps_one_at_zero(bottleneck: bool, by_hand: bool) -> None:
    model = densenet((2,), 2, growth=3, channels=2, bottleneck=bottleneck, generator=torch.Generator().manual_seed(0))
    session = bound(model.double(), Gates(0.1, input_groups(model), null=True, every=2))
    gate = session.gates["1.layers.1"]
    with torch.no_grad():
        gate.theta.fill_(-30.0)
        gate.beta.fill_(40.0)
        gate.kill(torch.full((2,), by_hand))
    before = model.eval()(IMAGES.double())
    with torch.no_grad():
        session.optimizer.param_groups[0]["lr"] = session.optimizer.param_groups[1]["lr"] = 0.0
    train(session, 2)
    assert [(event.layer, event.left) for event in session.events] == [("1.layers.1", 1)]
    torch.testing.assert_close(model(IMAGES.double()), before)
    session.optimizer.param_groups[0]["lr"] = session.optimizer.param_groups[1]["lr"] = 0.05
    train(session, 4)
    assert len(session.events) == 1
    small, after = session.realize(), model.eval()(IMAGES.double())
    torch.testing.assert_close(small(IMAGES.double()), after)


def test_a_competition_with_one_branch_left_becomes_that_branch() -> None:
    model = nn.Sequential(Competition(branches()), nn.Identity())
    with pytest.warns(UserWarning, match="removes dead units every 1000 steps, and the run has 100"):
        session = bound(model, Gates(0.1, every=1000), task()[0][:2])
    (gate,) = session.gates.values()
    silence(gate, 0, 2)
    x = task()[0]
    before, small = model(x), session.realize()
    assert isinstance(small, nn.Sequential)
    assert isinstance(small[0], nn.Linear)
    torch.testing.assert_close(small(x), before)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ({"a": ["3.norm9"]}, "which is no module"),
        ({"a": [""]}, "which is no module"),
        ({"a": []}, "no modules"),
        ({"a": "3.norm2"}, "give a list of names"),
        ({"a": ["3.norm2", "3.norm2"]}, "more than once"),
        ({"a": ["3.norm2"], "b": ["3.norm2"]}, "more than once"),
        ({"a": 3}, "group 'a' must be a list of names"),
        ({"a": Channels("3.norm1", (1, 2))}, "group 'a' divides 3 channels on axis 1 of what module '3.norm1' gives"),
        ({"a": Channels("3.norm1", (2, 2), 4)}, "group 'a' divides 4 channels on axis 4"),
    ],
)
def test_groups_that_make_no_sense_leave_the_network_as_it_was(groups: Any, told: str) -> None:
    model = residual()
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises((ConfigError, SurgeryError), match=told):
        bound(model, Gates(0.1, groups))
    assert [(name, type(module)) for name, module in model.named_modules()] == before


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Channels("x", 4, -1), "a whole number of channels for each component"),  # type: ignore[arg-type]
        (lambda: Channels("x", (2.0, 2.0)), "a whole number of channels"),  # type: ignore[arg-type]
        (lambda: Channels("x", (2, 0)), "at least 1 each"),
        (lambda: Channels("x", (2, 2), "y"), "a dim that is a whole number"),  # type: ignore[arg-type]
        (lambda: Gate(2.0), "at least one component, got n=2.0"),  # type: ignore[arg-type]
        (lambda: Gate(2, sizes=4), "a whole number of channels"),  # type: ignore[arg-type]
        (lambda: Gates(None), "such as Geometric; got None"),  # type: ignore[arg-type]
        (lambda: Gates("0.1"), "got '0.1'"),  # type: ignore[arg-type]
        (lambda: Gates(0.1, ["a"]), "by title"),  # type: ignore[arg-type]
        (lambda: Gates(0.1, p="x"), "a number between"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_setting_is_refused_when_it_is_made(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()


def test_a_norm_without_room_is_refused_when_it_is_bound() -> None:
    model = residual()
    groups = {"a": Channels("2", (1,) * 4), **depth_groups(model)}
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(ConfigError, match="gate 'a': the p-norm of 4 shares .* got p=0.01, so give p of at least"):
        bound(model, Gates(0.1, groups, p=0.01))
    assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_a_wrapped_network_is_refused_with_what_to_do() -> None:
    model = nn.DataParallel(residual())
    with pytest.raises(
        SurgeryError, match="Gates removes units while it trains, and DataParallel .* bind the bare network"
    ):
        bound(model, Gates(0.1))


@pytest.mark.parametrize("outer_first", [True, False])
def test_a_module_and_parts_of_it_may_both_compete(outer_first: bool) -> None:
    groups = {"blocks": ["3", "4", "5"], "units": Channels("3.norm1", (2, 2))}
    session = bound(residual(), Gates(0.1, groups if outer_first else dict(reversed(groups.items())), every=1))
    F.cross_entropy(session.model(IMAGES.double()), LABELS).backward()
    assert all(gate.theta.grad is not None and bool(gate.theta.grad.any()) for gate in session.gates.values())
    silence(session.gates["units"], 0)
    train(session, 1)
    assert session.net.get_submodule("3.conv1").out_channels == 2


def test_a_module_may_hold_several_gates() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 5)
            self.inner, self.outer = Gate(6), Gate(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(torch.relu(self.last(self.inner(torch.relu(self.first(x))))))

    model = nn.Sequential(Two(), nn.Linear(5, 2))
    session = bound(model, Gates(1.0), torch.randn(2, 8))
    assert {title: len(gate.theta) for title, gate in session.gates.items()} == {"0": 6, "0.outer": 5}
    assert session.penalty().item() == pytest.approx(6 + 5)


class Summed(nn.Module):
    """Branches that are added up, the first to the second."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches(count))

    def forward(self, x: Tensor) -> Tensor:
        total, *others = (branch(x) for branch in self.branches)
        for other in others:
            total = total + other
        return total


class Sliced(nn.Module):
    """Branches of which some are called through slices of their list."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.head = nn.ModuleList(branches(5)), nn.Sequential(nn.Tanh(), nn.Linear(2, 2), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        y = self.b[0](x)
        for branch in self.b[1:][:2]:
            y = y + branch(x)
        for branch in self.b[:2:-1]:
            y = y + branch(x)
        return self.head[1:](y)


def test_members_may_be_called_through_slices_of_their_list() -> None:
    x = task()[0]
    with torch.random.fork_rng():
        model = nn.Sequential(Sliced(), nn.Identity())
    session = bound(model, Gates(0.0, {"a": [f"0.b.{n}" for n in (0, 1, 2, 4)]}, every=1), x[:2])
    silence(session.gates["a"], 1, 3)
    before = model(x)
    session.optimizer.zero_grad()
    session.step()
    assert [event.index for event in session.events] == [(1, 3)]
    torch.testing.assert_close(model(x), before)
    small = session.realize().get_submodule("0")
    assert [type(small.get_submodule(f"b.{n}")) for n in range(5)] == [nn.Linear, Zero, nn.Linear, nn.Linear, Zero]


def test_branches_die_alike_before_and_after_a_session_was_resumed() -> None:
    x = task()[0]
    sessions = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(Summed(), nn.Identity())
        sessions.append(bound(model, Gates(0.0, {"a": [f"0.branches.{n}" for n in range(3)]}, every=1), x[:2]))
    stays, resumed = sessions
    silence(stays.gates["a"], 0)
    for place in (None, 1):
        for session in sessions if place is not None else (stays,):
            silence(session.gates["a"], *([] if place is None else [place]))
            session.model(x).square().mean().backward()
            session.step()
            session.optimizer.zero_grad()
        if place is None:
            resumed.load_state_dict(copy.deepcopy(stays.state_dict()))
    assert [event.index for event in stays.events] == [(0,), (1,)]
    assert resumed.events == stays.events
    assert all(torch.equal(a, b) for a, b in zip(stays.net.parameters(), resumed.net.parameters(), strict=True))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "order",
    [
        pytest.param(order, marks=[] if order in ((0, 2, 1), (1, 2, 0)) else pytest.mark.slow)
        for order in permutations(range(4), 3)
    ],
)
def test_branches_die_alike_in_any_order_whenever_a_session_was_resumed(order: tuple[int, ...], own: bool) -> None:
    def begin() -> UnitSession:
        torch.manual_seed(0)
        summed: Any = Competition(branches(4)) if own else Summed(4)
        groups = None if own else {"a": [f"0.branches.{n}" for n in range(4)]}
        return bound(nn.Sequential(summed, nn.Linear(2, 2)), Gates(0.01, groups, every=1, cost="macs"), x[:2])

    x = task()[0]
    stays = begin()
    for place in order:
        resumed = begin()
        resumed.load_state_dict(copy.deepcopy(stays.state_dict()))
        for session in (stays, resumed):
            (gate,) = session.gates.values()
            silence(gate, place)
            (session.model(x).square().mean() + session.penalty()).backward()
            session.step()
            session.optimizer.zero_grad()
        assert stays.events[-1].index == (place,)
        mine, theirs = resumed.state_dict(), stays.state_dict()
        assert [mine[key] for key in ("events", "components", "kept")] == [
            theirs[key] for key in ("events", "components", "kept")
        ]
        torch.testing.assert_close(mine["model"], theirs["model"], rtol=0.0, atol=0.0)
        torch.testing.assert_close(mine["optimizer"], theirs["optimizer"], rtol=0.0, atol=0.0)


class Again(nn.Module):
    """A branch that is used twice, beside one that is used once."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once = branches(2)
        self.wide = nn.Linear(2, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.wide(self.twice(x))
        return self.once(x) + self.twice(y)


def test_who_is_used_twice_stays_and_is_named_with_the_reason() -> None:
    x, model = task()[0], nn.Sequential(Again(), nn.Linear(2, 2))
    session = bound(model, Gates(0.0, {"a": ["0.twice", "0.once"]}, every=1), x[:2])
    assert list(session.skipped) == ["0.twice"]
    assert "used once" in session.skipped["0.twice"]
    silence(session.gates["a"], 0)
    before = model(x)
    for _ in range(2):
        session.step()
    assert [(event.layer, event.removed, event.index) for event in session.events] == [("a", 0, (0,))]
    assert torch.equal(model(x), before)
    torch.testing.assert_close(session.realize()(x), before)


def test_a_network_with_gates_of_its_own_has_the_state_that_it_had_before() -> None:
    x = task()[0]
    before = nn.Sequential(Competition(branches()))
    model = copy.deepcopy(before)
    session = bound(model, Gates(0.1, every=4), x[:2])
    session.optimizer.step()
    session.detach()
    before.load_state_dict(model.state_dict())
    torch.testing.assert_close(before(x), model(x), rtol=0, atol=0)


def test_gates_that_keep_a_given_number_are_refused() -> None:
    model = nn.Sequential(Competition(branches(), gate=SoftmaxGate(3, k=2)))
    with pytest.raises(ConfigError, match="discretize"):
        bound(model, Gates(0.1), task()[0][:2])
    with pytest.raises(ConfigError, match="expected a gate of 3"):
        Competition(branches(), gate=Gate(4))


@pytest.mark.parametrize("kind", [SoftmaxGate, MaskConnect])
def test_what_they_killed_is_removed_once_they_are_discretized(kind: type[TopKGate]) -> None:
    gate = kind(3, k=2)
    model, x = nn.Sequential(Competition(branches(), gate=gate)), task()[0]
    with torch.no_grad():
        gate.theta.copy_(torch.tensor([0.4, 0.2, 0.8]))
    gate.discretize()
    before = model.eval()(x)
    session = bound(model, Gates(0.0), x[:2])
    small = session.realize()
    assert gate.alive.tolist() == [True, False, True]
    torch.testing.assert_close(small.eval()(x), before, rtol=1e-5, atol=1e-5)
    assert sum(isinstance(module, nn.Linear) for module in small.modules()) == 2


def test_a_session_of_another_network_is_refused_and_nothing_changes() -> None:
    model, other = residual(), resnet((2, 2), 2, channels=2, width=4).double()
    session = bound(model, Gates(0.1, depth_groups(model), every=1))
    silence(session.gates["stage 0"], 1)
    train(session, 1)
    state = copy.deepcopy(session.state_dict())
    state["components"] = [["99", "identity"]]
    fresh = bound(other, Gates(0.1, depth_groups(other)))
    names = list(other.state_dict())
    with pytest.raises(RunError, match="no module '99'"):
        fresh.load_state_dict(state)
    assert list(other.state_dict()) == names
