"""Edges of learned graphs that compete under the method, beyond the contract of all methods."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import pared
from helpers import Nodes, nodes, task
from pared.errors import RunError
from pared.methods import Gates, UnitSession
from pared.nn import FixedAdjacency, SparseAdjacency, Zero

X, Y = task()


def bound(net: nn.Module, method: Gates) -> UnitSession:
    return method.bind(net, torch.optim.SGD(net.parameters(), 0.02, momentum=0.9), X[:2].to(type_of(net)))


def type_of(net: nn.Module) -> torch.dtype:
    return next(net.parameters()).dtype


def step(session: UnitSession) -> Tensor:
    loss = F.cross_entropy(session.model(X.to(type_of(session.model))), Y) + session.penalty()
    loss.backward()
    session.step()
    session.optimizer.zero_grad()
    return loss.detach()


def silence(adjacency: SparseAdjacency, seed: int, theta: float = -30.0) -> None:
    """Let half of the entries be 0, or most of them, with no way back in the steps to come."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        adjacency.theta[torch.rand(len(adjacency.theta), generator=generator) < 0.5] = theta


@settings(max_examples=4)
@given(
    options=st.fixed_dictionaries(
        {
            "scaling": st.sampled_from(["sinkhorn", "balanced", "row"]),
            "symmetric": st.booleans(),
            "loops": st.booleans(),
            "dead_grad": st.sampled_from(["none", "elu"]),
        }
    ),
    seed=st.integers(0, 99),
)
def test_removed_edges_change_no_output_and_no_later_step(options: dict[str, Any], seed: int) -> None:
    stays, leaves = (
        bound(nodes(SparseAdjacency(4, iterations=2, **options)).double(), Gates(1e-3, every=2)) for _ in range(2)
    )
    assert stays.components is not None
    stays.components.remove = lambda session: None  # type: ignore[method-assign]  # killed, and still there
    average = AveragedModel(leaves.model)
    leaves.follow(average)
    for session in (stays, leaves):
        silence(graph(session), seed, -4.0)  # which still adds to sums
        step(session)
    average.update_parameters(leaves.model)
    expected = copy.deepcopy(average)
    step(leaves)
    step(stays)
    assert len(graph(leaves).theta) == int(graph(stays).alive.sum()) < len(graph(stays).theta)
    assert leaves.events[0].index == tuple((~graph(stays).alive).nonzero().flatten().tolist())
    for _ in range(3):
        torch.testing.assert_close(step(leaves), step(stays), rtol=1e-8, atol=1e-10)
        theta = graph(stays).theta[graph(stays).alive]
        torch.testing.assert_close(graph(leaves).theta, theta, rtol=1e-7, atol=1e-9)
    twin = next(m for m in expected.modules() if isinstance(m, SparseAdjacency))
    twin.kill(~graph(stays).alive)
    torch.testing.assert_close(average(X.double()), expected(X.double()), rtol=1e-9, atol=1e-10)


def graph(session: UnitSession) -> SparseAdjacency:
    return next(module for module in session.model.modules() if isinstance(module, SparseAdjacency))


def test_the_method_presses_as_by_hand_and_counts_what_a_message_costs() -> None:
    net = nodes(SparseAdjacency(6, iterations=2))
    session = bound(net, Gates(0.1, p=0.7, every=1))
    torch.testing.assert_close(session.penalty(), 0.1 * net.adjacency.penalty(0.7))
    group = session.optimizer.param_groups[-1]
    assert sorted(p.numel() for p in group["params"]) == [6, 6, 36]
    assert session.params == sum(p.numel() for p in net.parameters()) - 12  # an edge is a number, a threshold is not


@pytest.mark.parametrize("cost", ["parameters", "macs", "latency"])
def test_edges_are_weighed_by_their_messages(cost: Any) -> None:
    class Two(nn.Module):
        """One graph carries 16 numbers along each edge, the other 4 in both directions."""

        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = SparseAdjacency(3, scaling="row"), SparseAdjacency(3, symmetric=True, iterations=2)
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(self.narrow(x.view(-1, 3, 4))).relu()
            return self.last(self.wide(x).sum(1))

    session = bound(Two(), Gates(1.0, cost=cost, every=1))
    assert 9 * session.weights["wide"] + 6 * session.weights["narrow"] == pytest.approx(9 + 6)
    ratio = session.weights["wide"] / session.weights["narrow"]
    if cost == "parameters":
        assert ratio == 1.0
    elif cost == "macs":
        assert ratio == pytest.approx(16 / 8)


def test_an_edge_that_wakes_in_time_stays_and_the_last_one_does_too() -> None:
    session = bound(nodes(SparseAdjacency(3, loops=False, scaling="row")), Gates(0.0, every=3))
    adjacency = graph(session)
    with torch.no_grad():
        adjacency.theta[adjacency.row != adjacency.col] = -30.0
    for value in (1.0, -30.0, -30.0):
        step(session)
        with torch.no_grad():
            adjacency.theta[1] = value
    assert session.events[0].index == (2, 3, 5, 6, 7)
    with torch.no_grad():  # thresholds above all strengths
        adjacency.beta_row.fill_(9.0)
    for _ in range(3):
        step(session)
    assert [event.left for event in session.events] == [4, 1]
    before = session.model.eval()(X)
    small = session.realize()
    assert isinstance(small, Nodes)
    torch.testing.assert_close(small(X), before)


def test_a_session_resumes_bit_equally_after_edges_left() -> None:
    def made() -> UnitSession:
        return bound(nodes(SparseAdjacency(6, scaling="row")), Gates(0.1, every=2))

    session, other = made(), made()
    silence(graph(session), 0)
    for _ in range(4):
        step(session)
    assert session.events
    assert session.graph.program.tensors["adjacency.theta"].shape == graph(session).theta.shape
    other.load_state_dict(copy.deepcopy(session.state_dict()))
    for one in (session, other):
        silence(graph(one), 1)
        for _ in range(4):
            step(one)
    assert len(session.events) == 2
    assert session.events == other.events
    theirs = other.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in session.model.state_dict().items())


def test_a_bound_network_has_the_state_that_it_had_before(tmp_path: Path) -> None:
    net = nodes(SparseAdjacency(6, scaling="row"))
    before, fresh = copy.deepcopy(net), nodes(SparseAdjacency(6, scaling="row"), seed=1)
    session = bound(net, Gates(0.1, every=2))
    before.load_state_dict(net.state_dict())
    silence(graph(session), 0)
    for _ in range(3):
        step(session)
    assert session.events
    session.detach()
    pared.load(fresh, pared.save(net, tmp_path / "net.safetensors"))
    assert torch.equal(fresh(X), net(X))
    again = bound(fresh, Gates(0.1, every=2))
    assert not graph(again).awake.any()


@pytest.mark.parametrize(("start", "left"), [(360, 200), (360, 340), (250, 100)])
def test_a_file_of_a_realised_network_loads_whether_its_graph_is_dense_or_not(
    start: int, left: int, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    place = torch.randperm(120**2, generator=generator)[:start]
    row, col, value = place // 120, place % 120, torch.rand(start, generator=generator)
    small = nn.Sequential(FixedAdjacency(120, (row[:left], col[:left]), value[:left]), nn.Linear(2, 2))
    fresh = nn.Sequential(FixedAdjacency(120, (row, col)), nn.Linear(2, 2))
    x = torch.randn(3, 120, 2, generator=generator)
    pared.load(fresh, pared.save(small, tmp_path / "net.safetensors"))
    assert torch.equal(fresh(x), small(x))
    assert repr(fresh) == repr(small)
    with pytest.raises(RunError, match="nodes"):
        pared.load(nn.Sequential(FixedAdjacency(7, ([], [])), nn.Linear(3, 2)), tmp_path / "net.safetensors")


def test_a_graph_in_a_block_that_dies_leaves_with_it() -> None:
    class Plus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.some, self.more = (nodes(SparseAdjacency(3, scaling="row"), seed) for seed in (0, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.some(x) + self.more(x)

    session = bound(Plus(), Gates(0.1, {"parts": ["some", "more"]}, every=2))
    with torch.no_grad():
        session.gates["parts"].theta[1] = -30.0
    for _ in range(4):
        step(session)
    assert isinstance(session.net.get_submodule("more"), Zero)
    assert session.weights.keys() == {"parts", "some.layer.adjacency"}
    small, before = session.realize(), session.model.eval()(X)
    torch.testing.assert_close(small(X), before)
    assert isinstance(small.get_submodule("some.adjacency"), FixedAdjacency)


def test_a_graph_under_two_names_is_one() -> None:
    adjacency = SparseAdjacency(4, scaling="row")
    net = nn.Sequential(nn.Unflatten(1, (4, 3)), adjacency, nn.ReLU(), adjacency, nn.Flatten(), nn.Linear(12, 2))
    session = bound(net, Gates(0.1, every=1))
    silence(adjacency, 0)
    step(session)
    assert len(session.events) == 1
    small, before = session.realize(), session.model.eval()(X)
    assert isinstance(small, nn.Sequential)
    assert small[1] is small[3]
    torch.testing.assert_close(small(X), before)
