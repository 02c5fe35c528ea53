"""Learned graphs: values, dead edges, and what stays as it was when they are taken out."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from pared.errors import ConfigError
from pared.nn import FixedAdjacency, SparseAdjacency
from pared.ops import sinkhorn
from pared.ops.competition import p_norm
from pared.surgery import edges_plan, remove_edges

SCALINGS = ["sinkhorn", "balanced", "row"]
seeds = st.integers(0, 10_000)
options = st.fixed_dictionaries(
    {
        "scaling": st.sampled_from(SCALINGS),
        "symmetric": st.booleans(),
        "thresholds": st.sampled_from(["sum", "max"]),
        "loops": st.booleans(),
        "positive": st.sampled_from(["sigmoid", "exp"]),
        "dead_grad": st.sampled_from(["none", "leaky", "elu"]),
    }
)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pattern(n: int, seed: int) -> tuple[Tensor, Tensor]:
    row, col = (torch.rand(n, n, generator=drawn(seed)) < 0.5).nonzero(as_tuple=True)
    return row, col


def learned(n: int, seed: int, *, full: bool = False, spread: float = 2.0, **given: Any) -> SparseAdjacency:
    """A graph as after some training: strengths and thresholds apart, some edges at 0."""
    made = SparseAdjacency(n, edges=None if full else pattern(n, seed), dtype=torch.float64, **given)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=drawn(seed + 1), dtype=torch.float64)
    return made


def by_hand(a: SparseAdjacency) -> Tensor:
    """The formula of the paper, on a matrix, edge by edge."""
    n = a.nodes
    gamma = torch.zeros(n, n, dtype=torch.float64)
    for i, j, strength in zip(a.row.tolist(), a.col.tolist(), a.gamma().tolist(), strict=True):
        gamma[i, j] = strength
        if a.symmetric:
            gamma[j, i] = strength
    beta_col, rest_col = (a.beta_row, a.rest_row) if a.beta_col is None else (a.beta_col, a.rest_col)
    assert rest_col is not None
    raw = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            of_row = a.beta_row[i].sigmoid() * (gamma[i].sum() + a.rest_row[i])
            of_col = beta_col[j].sigmoid() * (gamma[:, j].sum() + rest_col[j])
            threshold = of_row + of_col if a.thresholds == "sum" else max(of_row, of_col)
            if i == j and a.loops:
                threshold = min(threshold, gamma[i, i] / 1.001)
            raw[i, j] = max(gamma[i, j] - threshold, torch.zeros(()))
    if a.scaling == "row":
        return raw / raw.sum(1, keepdim=True).where(raw.sum(1, keepdim=True) > 0, torch.ones(()))
    return sinkhorn(raw, a.iterations, a.scaling)


@settings(max_examples=30)
@given(n=st.integers(1, 6), seed=seeds, given_=options, full=st.booleans())
def test_values_are_those_of_the_formula(n: int, seed: int, given_: dict[str, Any], full: bool) -> None:
    a = learned(n, seed, full=full, **given_)
    matrix = a.matrix()
    torch.testing.assert_close(matrix, by_hand(a), rtol=1e-9, atol=1e-12)
    h = torch.randn(2, n, 3, generator=drawn(seed), dtype=torch.float64)
    torch.testing.assert_close(a(h), matrix @ h)
    torch.testing.assert_close(a(h, a.values()), matrix @ h)
    row, col, value = a.edges()
    found = torch.zeros(n, n, dtype=torch.float64)
    found[row, col] = value
    torch.testing.assert_close(found, matrix)
    assert len(value) == int((matrix > 0).sum())


@given(n=st.integers(1, 12), seed=seeds, thresholds=st.sampled_from(["sum", "max"]), symmetric=st.booleans())
def test_nothing_is_dead_at_the_start(n: int, seed: int, thresholds: Any, symmetric: bool) -> None:
    for edges in (None, pattern(n, seed), ([], [])):
        a = SparseAdjacency(n, edges=edges, thresholds=thresholds, symmetric=symmetric)
        assert not a.dead().any()
        (by_weight := a.values()).square().sum().backward()
        assert bool(by_weight.isfinite().all())
    full = SparseAdjacency(n, thresholds=thresholds)
    torch.testing.assert_close(full.matrix(), torch.full((n, n), 1.0 / n))
    share = full.beta_row.sigmoid() * n * (2 if thresholds == "sum" else 1)  # of its strength, that an entry loses
    torch.testing.assert_close(share, torch.full((n,), 1.0 / (n + 1)))


@settings(max_examples=30)
@given(n=st.integers(2, 7), seed=seeds, scaling=st.sampled_from(["sinkhorn", "balanced"]), symmetric=st.booleans())
def test_rows_and_columns_add_up_to_one_where_all_pairs_are_there(
    n: int, seed: int, scaling: Any, symmetric: bool
) -> None:
    a = learned(n, seed, full=True, spread=0.02, scaling=scaling, symmetric=symmetric, iterations=60)
    assert not a.dead().any()
    for dim in (0, 1):
        torch.testing.assert_close(a.matrix().sum(dim), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-4)


@settings(max_examples=30)
@given(n=st.integers(1, 8), seed=seeds, given_=options)
def test_symmetric_graphs_are_symmetric_unless_scaling_is_not(n: int, seed: int, given_: dict[str, Any]) -> None:
    a = learned(n, seed, **given_ | {"symmetric": True, "scaling": "balanced"})
    torch.testing.assert_close(a.matrix(), a.matrix().t(), rtol=1e-12, atol=0)
    assert len(a.theta) == len(a.row) <= n * (n + 1) // 2


@settings(max_examples=30)
@given(n=st.integers(1, 7), seed=seeds, given_=options, full=st.booleans())
def test_renumbered_nodes_give_the_renumbered_matrix(n: int, seed: int, given_: dict[str, Any], full: bool) -> None:
    a = learned(n, seed, full=full, **given_)
    order = torch.randperm(n, generator=drawn(seed))  # node i becomes order[i]
    b = SparseAdjacency(n, edges=(order[a.row], order[a.col]), dtype=torch.float64, **given_)
    place = {(int(i), int(j)): k for k, (i, j) in enumerate(zip(b.row, b.col, strict=True))}
    with torch.no_grad():
        for k, (i, j) in enumerate(zip(order[a.row].tolist(), order[a.col].tolist(), strict=True)):
            b.theta[place[(min(i, j), max(i, j)) if a.symmetric else (i, j)]] = a.theta[k]
        b.beta_row[order] = a.beta_row
        if a.beta_col is not None and b.beta_col is not None:
            b.beta_col[order] = a.beta_col
    torch.testing.assert_close(b.matrix()[order][:, order], a.matrix(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(b.penalty(), a.penalty())


@settings(max_examples=30)
@given(
    n=st.integers(1, 6),
    seed=seeds,
    given_=options,
    beta=st.floats(-8, 8),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_derivatives_are_finite_with_any_number_dead(
    n: int, seed: int, given_: dict[str, Any], beta: float, dtype: torch.dtype
) -> None:
    a = learned(n, seed, spread=4.0, **given_).to(dtype)
    with torch.no_grad():
        a.beta_row.fill_(beta)
    (a(torch.randn(n, 2, generator=drawn(seed), dtype=dtype)).square().sum() + a.penalty()).backward()
    assert bool(a.values().isfinite().all())
    for parameter in a.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("scaling", SCALINGS)
def test_derivatives_are_right(scaling: Any) -> None:
    a = learned(4, 3, spread=3.0, scaling=scaling, iterations=3)
    assert a.dead().any()
    assert a.beta_col is not None

    def values(theta: Tensor, beta_row: Tensor, beta_col: Tensor) -> Tensor:
        changed = {"theta": theta, "beta_row": beta_row, "beta_col": beta_col}
        return torch.func.functional_call(a, changed, (torch.eye(4, dtype=torch.float64),))

    assert torch.autograd.gradcheck(values, (a.theta, a.beta_row, a.beta_col))


@settings(max_examples=30)
@given(n=st.integers(1, 6), seed=seeds, given_=options, p=st.sampled_from([0.5, 0.7]))
def test_the_penalty_is_the_norms_of_rows_and_columns(n: int, seed: int, given_: dict[str, Any], p: float) -> None:
    a = learned(n, seed, **given_)
    matrix = a.matrix()
    norms = [p_norm(matrix, p, dim, linear_below=1e-4).sum() for dim in (0, 1)]
    torch.testing.assert_close(a.penalty(p), norms[0] + norms[1])
    torch.testing.assert_close(a.penalty(p, a.values()), a.penalty(p))


def test_self_loops_never_die_and_without_them_lines_may_be_empty() -> None:
    for loops in (True, False):
        a = SparseAdjacency(4, loops=loops)
        with torch.no_grad():
            a.beta_row.fill_(9.0)
        expected = torch.eye(4) if loops else torch.zeros(4, 4)
        torch.testing.assert_close(a.matrix(), expected)
        assert a.isolated().tolist() == [0, 1, 2, 3]
    a = SparseAdjacency(3)
    with pytest.raises(ConfigError, match="self loops cannot be killed"):
        a.kill(torch.ones(9, dtype=torch.bool))
    assert a.alive.all()


def test_a_node_is_isolated_when_its_own_edge_is_all_it_has() -> None:
    assert SparseAdjacency(4, edges=([0, 1], [1, 1])).isolated().tolist() == [2, 3]
    assert FixedAdjacency(4, ([0, 1], [1, 1])).isolated().tolist() == [2, 3]


@pytest.mark.parametrize("dead_grad", ["none", "leaky", "elu"])
def test_what_is_dead_comes_back_only_where_that_was_asked_for(dead_grad: Any) -> None:
    a = SparseAdjacency(3, scaling="row", dead_grad=dead_grad)
    with torch.no_grad():
        a.theta[1] = -3.0
        a.beta_row.fill_(-2.0)
        a.beta_col.fill_(-20.0) if a.beta_col is not None else None
    assert a.dead().tolist() == [False, True] + [False] * 7
    # What row 0 takes from node 1 would help: node 1 alone knows anything.
    a(torch.tensor([[0.0], [1.0], [0.0]]))[0].sum().backward()
    assert a.theta.grad is not None
    plain = SparseAdjacency(3, scaling="row")
    plain.load_state_dict(a.state_dict())
    plain(torch.tensor([[0.0], [1.0], [0.0]]))[0].sum().backward()
    assert plain.theta.grad is not None
    helps = float(a.theta.grad[1] - plain.theta.grad[1])
    assert helps == 0.0 if dead_grad == "none" else helps > 1e-3


@settings(max_examples=30)
@given(n=st.integers(2, 7), seed=seeds, given_=options, full=st.booleans())
def test_killing_what_is_zero_changes_no_value(n: int, seed: int, given_: dict[str, Any], full: bool) -> None:
    a = learned(n, seed, full=full, **given_)
    before, dead = a.matrix(), a.dead()
    if not a.loops:
        dead &= torch.rand(len(dead), generator=drawn(seed)) < 0.7
    a.kill(dead)
    torch.testing.assert_close(a.matrix(), before, rtol=1e-9, atol=1e-12)
    a.kill(dead)  # again, to no effect
    torch.testing.assert_close(a.matrix(), before, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        a.theta.add_(20.0)
        for beta in (a.beta_row, a.beta_col):
            if beta is not None:
                beta.fill_(-40.0)
    assert torch.equal(a.dead(), dead)  # never back, whatever the strengths; and nothing else is dead


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=30)
@given(n=st.integers(3, 7), seed=seeds, given_=options, full=st.booleans())
def test_removed_edges_leave_everything_else_as_it_was(
    name: str, n: int, seed: int, given_: dict[str, Any], full: bool
) -> None:
    net = nn.Sequential(learned(n, seed, full=full, **given_), nn.Linear(3, 2, dtype=torch.float64))
    h = torch.randn(5, n, 3, generator=drawn(seed), dtype=torch.float64)

    def step(net: nn.Sequential, optimizer: Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = net(h).square().mean() + 1e-3 * graph(net).penalty()
        loss.backward()
        optimizer.step()
        return loss.detach()

    optimizer = OPTIMIZERS[name](list(net.parameters()))
    for _ in range(2):
        step(net, optimizer)
    averaged = AveragedModel(net)
    graph(net).kill(graph(net).dead())  # the copy hears of it from the removal
    twin = copy.deepcopy(net)
    other = OPTIMIZERS[name](list(twin.parameters()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    dead, before = int((~graph(net).alive).sum()), net(h)
    told = copy.deepcopy(averaged)
    graph(told).kill(~graph(net).alive)
    smooth = told(h)
    remove_edges(net, optimizer=optimizer, ema=[averaged])
    a = graph(net)
    assert len(a.theta) == len(a.alive) == len(a.row) == len(a.col) == len(graph(twin).theta) - dead
    assert a.alive.all()
    torch.testing.assert_close(net(h), before, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(averaged(h), smooth, rtol=1e-9, atol=1e-12)
    for _ in range(3):
        torch.testing.assert_close(step(net, optimizer), step(twin, other), rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(a.theta, graph(twin).theta[graph(twin).alive], rtol=1e-7, atol=1e-9)
    assert not edges_plan(net)


def graph(net: nn.Module) -> SparseAdjacency:
    return next(module for module in net.modules() if isinstance(module, SparseAdjacency))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("n", "dense"), [(6, True), (120, False)])
def test_a_realized_graph_gives_the_same_without_learning(n: int, dense: bool, scaling: Any) -> None:
    ring = torch.arange(n)
    a = SparseAdjacency(n, edges=(ring, (ring + 1) % n) if not dense else None, scaling=scaling)
    with torch.no_grad():
        a.theta.copy_(2.0 * torch.randn(a.theta.shape, generator=drawn(0)))
    fixed = a.realize()
    assert not list(fixed.parameters())
    assert (fixed.value.ndim == 2) is dense
    h = torch.randn(2, n, 3, generator=drawn(1))
    torch.testing.assert_close(fixed(h), a(h), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fixed.matrix(), a.matrix(), rtol=1e-5, atol=1e-6)
    assert len(fixed.edges()[0]) == len(a.edges()[0])


@pytest.mark.parametrize("products", [1, 2, None])
def test_nodes_that_no_one_reads_can_be_left_out(products: Any) -> None:
    a = FixedAdjacency(6, ([0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 3, 0, 5, 0]), torch.arange(1.0, 8.0))
    needed = a.needed([0], products)
    assert needed.tolist() == list(range({1: 2, 2: 3, None: 4}[products]))
    assert a.needed([5]).tolist() == [5]  # an isolated node
    h = torch.randn(2, 6, 3, generator=drawn(0))
    small, large, part = h[:, needed], h, a.part(needed)
    for _ in range(products or 5):
        small, large = part(small), a(large)
    torch.testing.assert_close(small[:, 0], large[:, 0])
    torch.testing.assert_close(a.part([3, 2]).matrix(), a.matrix()[[3, 2]][:, [3, 2]])
    for wrong, told in (([0, 0], "twice"), ([6], "nodes 0 to 5")):
        with pytest.raises(ConfigError, match=told):
            a.part(wrong)


def test_given_graphs_are_normalized_as_kipf_and_welling_do() -> None:
    edges = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1])
    whole = torch.eye(4)
    whole[edges] = 1.0
    root = whole.sum(1).rsqrt()
    torch.testing.assert_close(FixedAdjacency.normalized(4, edges).matrix(), root[:, None] * whole * root)
    rows = FixedAdjacency.normalized(4, edges, torch.full((4,), 3.0), scaling="row", loops=False).matrix()
    torch.testing.assert_close(rows, torch.tensor([[0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
    with pytest.raises(ConfigError, match="balanced or row"):
        FixedAdjacency.normalized(4, edges, scaling="both")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("symmetric", [False, True])
def test_copies_states_devices_and_what_is_said(symmetric: bool) -> None:
    a = learned(5, 0, symmetric=symmetric)
    again = SparseAdjacency(5, edges=pattern(5, 0), dtype=torch.float64, symmetric=symmetric)
    again.load_state_dict(a.state_dict())
    assert torch.equal(again.matrix(), a.matrix())
    assert torch.equal(copy.deepcopy(a).matrix(), a.matrix())
    a.kill(a.dead())
    a.reset_parameters()
    fresh = SparseAdjacency(5, edges=pattern(5, 0), dtype=torch.float64, symmetric=symmetric)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert "scaling='sinkhorn'" in repr(a)
    assert ("symmetric" in repr(a)) is symmetric
    meta = SparseAdjacency(5, device="meta", symmetric=symmetric)
    assert all(t.is_meta for t in (*meta.parameters(), *meta.buffers()))


@pytest.mark.parametrize("edges", [None, (list(range(200)), [*range(1, 200), 0])])
def test_products_under_autocast(edges: Any) -> None:
    a, layer, h = SparseAdjacency(200, edges=edges), nn.Linear(3, 3), torch.rand(2, 200, 3, generator=drawn(0))
    with torch.autocast("cpu", torch.bfloat16):
        y = a(layer(h))
    torch.testing.assert_close(y.float(), a(layer(h)), rtol=0.02, atol=0.02)
    y.float().sum().backward()
    assert a.theta.grad is not None
    assert bool(a.theta.grad.isfinite().all())


@pytest.mark.parametrize("full", [False, True])
def test_graphs_can_be_exported(full: bool) -> None:
    a, h = learned(30, 0, full=full), torch.ones(2, 30, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.export.export(a, (h,)).module()(h), a(h))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 0}, "at least one node"),
        ({"nodes": 3, "edges": ([0], [1, 2])}, "of one length"),
        ({"nodes": 3, "edges": ([0], [3])}, "nodes 0 to 2"),
        ({"nodes": 3, "edges": ([-1], [0])}, "nodes 0 to 2"),
        ({"nodes": 3, "scaling": "softmax"}, "scaling must be one of sinkhorn, balanced, row"),
        ({"nodes": 3, "thresholds": "min"}, "thresholds must be one of"),
        ({"nodes": 3, "positive": "relu"}, "positive must be one of"),
        ({"nodes": 3, "dead_grad": "some"}, "dead_grad must be one of"),
        ({"nodes": 3, "iterations": -1}, "iterations must be at least 0"),
        ({"nodes": 3, "slope": 0.0}, "slope must be above 0"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseAdjacency(**arguments)


def test_values_of_fixed_graphs_fit_their_edges() -> None:
    for value in (torch.ones(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(ConfigError, match="expected 2 values of edges"):
            FixedAdjacency(3, ([0, 1], [1, 2]), value)
    with pytest.raises(ValueError, match="features of 3 nodes"):
        FixedAdjacency(3, ([0, 1], [1, 2]))(torch.ones(2, 3))


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0])
def test_a_p_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(ConfigError, match="p must be above 0 and below 1"):
        SparseAdjacency(3).penalty(p)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_norm_without_room_is_refused_by_the_longest_row_or_column(symmetric: bool) -> None:
    with pytest.raises(ConfigError, match="p-norm of 300 shares"):
        SparseAdjacency(300, edges=(torch.arange(300), torch.zeros(300).long()), symmetric=symmetric).penalty(0.05)
    others = torch.arange(299)
    chain = SparseAdjacency(300, edges=(others, others + 1), symmetric=symmetric)
    assert chain.penalty(0.05).isfinite()
