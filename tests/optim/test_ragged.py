"""Rows of sparse layers on the sphere: what masks do in a dense weight, without one."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn import SparseLinear
from pared.ops import lp_norm
from pared.ops.pattern import Pattern
from pared.optim import LpSGD, SphereSGD, lp_groups
from pared.optim.base import SphereOptimizer

Make = Callable[..., SphereOptimizer]
KINDS: dict[str, Make] = {
    "LpSGD": LpSGD,
    "LpSGD Nesterov": lambda *a, **k: LpSGD(*a, nesterov=True, **k),
    "LpSGD without momentum": lambda *a, **k: LpSGD(*a, momentum=0.0, **k),
    "LpSGD direct": lambda *a, **k: LpSGD(*a, form="direct", **k),
    "LpSGD direct Nesterov": lambda *a, **k: LpSGD(*a, form="direct", nesterov=True, **k),
    "SphereSGD": SphereSGD,
}


@pytest.fixture(params=KINDS, name="make")
def _make(request: pytest.FixtureRequest) -> Make:
    return KINDS[request.param]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def ragged(seed: int, rows: int, columns: int, density: float = 0.3) -> Tensor:
    """Return a mask with an empty row, a full one, and one of a single entry, where there are so many."""
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    for row, kind in zip(range(0, rows, 2), (False, True), strict=False):
        mask[row] = kind
    if rows > 4:
        mask[4], mask[4, columns // 2] = False, True
    return mask


def pair(
    mask: Tensor, make: Make, p: float, lr: float, dtype: torch.dtype = torch.float64
) -> tuple[SparseLinear, SphereOptimizer, nn.Parameter, SphereOptimizer]:
    """Return a sparse layer and its optimizer, and the same with a mask in a dense weight."""
    layer = SparseLinear(mask.shape[1], len(mask), mask=mask, dtype=dtype, generator=torch.Generator().manual_seed(0))
    whole = nn.Parameter(layer.to_dense().detach().clone())
    small = make([{"params": [layer.values], "crow": [layer.crow]}], lr=lr, p=p)
    large = make([whole], lr=lr, p=p)
    large.connections_changed(whole, mask, torch.zeros_like(mask))
    return layer, small, whole, large


def check(
    layer: SparseLinear,
    small: SphereOptimizer,
    whole: nn.Parameter,
    large: SphereOptimizer,
    tol: float,
    loose: float = 1.0,
) -> None:
    """Compare state and weights, these `loose`, entry by entry."""
    mask = layer.pattern.to_dense(torch.ones(layer.count)) > 0
    torch.testing.assert_close(layer.values.detach(), whole.detach()[mask], rtol=0, atol=tol * loose)
    mine, theirs = small.state[layer.values], large.state[whole]
    for part in ("v", "momentum_buffer"):
        if part in mine:  # a mask begins the dual vector earlier
            scale = 1.0 if part == "v" else float(theirs[part].abs().max())
            torch.testing.assert_close(mine[part], theirs[part][mask], rtol=0, atol=tol * scale)


@pytest.mark.parametrize("p", [1.05, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_hundred_steps_are_those_of_masks(make: Make, p: float, dtype: torch.dtype) -> None:
    mask = ragged(0, 11, 60)
    layer, small, whole, large = pair(mask, make, p, 0.02, dtype)
    check(layer, small, whole, large, 1e-6)
    for step in range(200):
        grad = draw(step, 11, 60, dtype=dtype) * 0.1
        grad[1] *= float(step > 20)  # a row whose momentum is all zeros, and then not
        whole.grad, layer.values.grad = grad, grad[mask]
        small.step()
        large.step()
    if dtype == torch.float64:
        check(layer, small, whole, large, 1e-10)
    elif make is SphereSGD:  # bent without bound where a weight is 0, so that roundings grow
        check(layer, small, whole, large, 1e-4 if p >= 2.0 else 1e-3)
    else:  # a rounding of v is one of w = v^(q - 1), q times as large, or below q = 2 a root's
        dual = "v" in small.state[layer.values]
        check(layer, small, whole, large, 5e-6, {1.05: 21.0, 3.0: 20.0}.get(p, 1.0) if dual else 0.2)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 999),
    st.integers(1, 9),
    st.integers(1, 70),
    st.floats(0.0, 1.0),
    st.floats(1.05, 6.0),
    st.sampled_from([0.001, 0.1, 0.45, 0.9]),
    st.sampled_from(sorted(KINDS.keys() - {"SphereSGD"})),
)
def test_any_pattern_steps_as_its_mask(
    seed: int, rows: int, columns: int, density: float, p: float, lr: float, kind: str
) -> None:
    mask = ragged(seed, rows, columns, density)
    layer, small, whole, large = pair(mask, KINDS[kind], p, lr)
    for step in range(5):
        grad = draw(seed + step, rows, columns) * 10.0 ** (step - 2)
        grad[-1] *= float(step > 1)
        whole.grad, layer.values.grad = grad, grad[mask]
        small.step()
        large.step()
        if layer.count == 0:
            return
        check(layer, small, whole, large, 1e-9 if lr == 0.45 else 1e-10)


@pytest.mark.parametrize("p", [1.3, 2.5])
def test_a_change_of_pattern_is_followed_as_with_masks(make: Make, p: float) -> None:
    mask = ragged(1, 9, 40)
    layer, small, whole, large = pair(mask, make, p, 0.05)

    def train(steps: int) -> None:
        for step in range(steps):
            grad = draw(step, 9, 40) * 0.1
            whole.grad, layer.values.grad = grad, grad[mask]
            small.step()
            large.step()

    for seed in range(4):
        grown = (draw(seed, 9, 40) > 1.0) & ~mask
        grown[0] = False  # the empty row stays empty, at first
        if seed == 2:
            grown[0, 3:9], mask[3] = True, False  # one comes to life, and one dies wholly
        mask = (mask & (draw(seed + 9, 9, 40) < 1.0)) | grown
        begin = draw(seed + 20, 9, 40) * (seed % 2)  # from 0, and from elsewhere
        source = layer.repattern(Pattern.from_mask(mask))
        with torch.no_grad():
            fresh = source < 0
            layer.values[fresh] = begin[mask][fresh]
            whole[grown] = begin[grown]
        small.pattern_changed(layer.values, layer.crow, source)
        large.connections_changed(whole, mask, grown)
        check(layer, small, whole, large, 1e-10)
        if "momentum_buffer" in small.state[layer.values]:
            assert small.state[layer.values]["momentum_buffer"][fresh].eq(0).all()
        live = mask.any(1) & layer.to_dense().detach().ne(0).any(1)
        torch.testing.assert_close(lp_norm(layer.to_dense().detach(), p), live.double(), rtol=0, atol=1e-12)
        train(3 + seed)
        check(layer, small, whole, large, 1e-10 if make is not SphereSGD else 1e-7)


def net(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dense = nn.Linear(8, 5)
    one, two, three = (
        SparseLinear(*sizes, density=share, generator=generator)
        for *sizes, share in ((6, 9, 0.5), (9, 8, 0.5), (5, 3, 0.9))
    )
    return nn.Sequential(one, nn.ReLU(), two, nn.ReLU(), dense, nn.ReLU(), three)


def train(model: nn.Module, optimizer: SphereOptimizer, steps: int, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 + step)
        x = torch.randn(20, 6, generator=generator)
        y = x[:, :3].argmax(1)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


def sparse(model: nn.Module, place: int) -> SparseLinear:
    layer = model.get_submodule(str(place))
    assert isinstance(layer, SparseLinear)
    return layer


def on_sphere(model: nn.Module, place: int, p: float) -> bool:
    layer = sparse(model, place)
    return bool(((lp_norm(layer.to_dense().detach(), p) - 1).abs() < 1e-5)[layer.crow.diff() > 0].all())


def test_groups_have_sparse_layers_with_their_rows() -> None:
    model = net()
    groups = lp_groups(model, [1.3, 1.7])
    assert [[name for name, _ in group["params"]] for group in groups[:2]] == [["0.values"], ["2.values", "4.weight"]]
    assert torch.equal(groups[0]["crow"][0], sparse(model, 0).crow)
    assert [crow is None for crow in groups[1]["crow"]] == [False, True]
    assert "crow" not in groups[2]
    everything = lp_groups(model, {"": 1.3, "6.values": 2.0}, constrain="all")
    assert [name for name, _ in everything[1]["params"]] == ["6.values"]
    chosen = lp_groups(model, 1.3, constrain=lambda name, _: name == "6.values")
    assert torch.equal(chosen[0]["crow"][0], sparse(model, 6).crow)
    one = nn.Sequential(SparseLinear(1, 3, density=1.0), SparseLinear(3, 2, density=1.0), nn.Linear(2, 2))
    assert [name for name, _ in lp_groups(one, 1.3)[0]["params"]] == ["1.values"]
    for kind in (LpSGD, SphereSGD):  # a group can be used again
        optimizer = kind(groups, lr=0.01, p=1.5)
        assert on_sphere(model, 2, 1.7)
        assert optimizer.holds(sparse(model, 2).values)
        assert all(not optimizer.holds(p) for name, p in model.named_parameters() if name.endswith("bias"))


def test_copies_go_on_equally_and_stay_on_the_sphere(make: Make) -> None:
    model = net()
    optimizer = make(lp_groups(model, [1.3, 1.7]), lr=0.03, p=1.5, euclidean_lr=0.2)
    start = train(model, optimizer, 3)
    for clone in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        other, twin = clone((model, optimizer))
        again = copy.deepcopy((model, optimizer))
        assert train(other, twin, 3, 3) == train(*again, 3, 3)
        assert on_sphere(other, 0, 1.3)
        assert on_sphere(other, 2, 1.7)
    assert sum(train(model, optimizer, 100)[-5:]) < 4.0 * start[0]


def test_state_goes_round_also_into_another_pattern(make: Make) -> None:
    model = net()
    optimizer = make(lp_groups(model, 1.4), lr=0.03, p=1.4)
    for steps in (0, 3):
        train(model, optimizer, steps)
        other = net(1)
        again = make(lp_groups(other, 2.0), lr=0.9, p=2.0)
        train(other, again, 2)
        other.load_state_dict(model.state_dict())
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        crow = again.state[sparse(other, 0).values]["crow"]
        assert crow.dtype == torch.int32
        assert torch.equal(crow, sparse(other, 0).crow)
        twin = copy.deepcopy((model, optimizer))
        assert train(*twin, 4, 3) == train(other, again, 4, 3)


def test_weights_set_by_hand_are_put_back(make: Make) -> None:
    model = net()
    optimizer = make(lp_groups(model, 1.4), lr=0.03, p=1.4)
    train(model, optimizer, 2)
    with torch.no_grad():
        sparse(model, 2).values.mul_(3.0)
    assert not on_sphere(model, 2, 1.4)
    optimizer.normalize_()
    assert on_sphere(model, 2, 1.4)


def test_vectors_without_rows_are_euclidean_and_groups_may_be_added(make: Make) -> None:
    layer, vector = SparseLinear(5, 4, density=0.6), nn.Parameter(torch.randn(4))
    kept = vector.detach().clone()
    optimizer = make([vector], lr=0.03, p=1.4)
    assert optimizer.param_groups[0]["p"] is None
    optimizer.add_param_group({"params": layer.values, "p": 1.4, "crow": layer.crow})
    assert optimizer.holds(layer.values)
    assert not optimizer.holds(vector)
    assert "crow" not in optimizer.param_groups[1]
    assert torch.equal(vector.detach(), kept)
    plain = make([SparseLinear(5, 4, density=0.6).values], lr=0.03, p=1.4)
    assert plain.param_groups[0]["p"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda crow: [crow, crow], "an entry for each of the group's 1 parameters, got 2"),
        (lambda crow: [crow.clamp(max=11)], "rise from 0 to 12"),
        (lambda crow: [crow + 1], "rise from 0 to 12"),
        (lambda crow: [crow.float()], "got torch.float32"),
        (lambda crow: [crow.tolist()], "got list"),
        (lambda crow: [torch.tensor([0, 9, 3, 12])], "it falls"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_added(make: Make, change: Any, words: str) -> None:
    layer = SparseLinear(5, 4, density=0.6)
    optimizer = make([nn.Parameter(torch.randn(2, 2))], lr=0.03, p=1.4)
    before = layer.values.detach().clone()
    with pytest.raises(ConfigError, match=words):
        optimizer.add_param_group({"params": [layer.values], "crow": change(layer.crow)})
    assert len(optimizer.param_groups) == 1
    assert layer.values not in optimizer.state
    assert torch.equal(layer.values.detach(), before)
    with pytest.raises(ConfigError, match="crow is for vectors"):
        optimizer.add_param_group({"params": [torch.ones(2, 2)], "crow": [layer.crow]})


def test_changes_the_optimizer_was_not_told_of_are_found(make: Make) -> None:
    for more in (1, -1):
        layer = SparseLinear(5, 4, density=0.6)
        optimizer = make([{"params": [layer.values], "crow": [layer.crow]}], lr=0.03, p=1.4)
        for _ in range(2):
            layer.repattern(Pattern.random(4, 5, (layer.count + more) / 20))
            layer.values.grad = torch.ones(layer.count)
            with pytest.raises(ConfigError, match="pattern_changed"):
                optimizer.step()
            optimizer.pattern_changed(layer.values, layer.crow, torch.full((layer.count,), -1))
            optimizer.step()


def test_changes_that_make_no_sense_are_refused(make: Make) -> None:
    layer, bias = SparseLinear(5, 4, density=0.6), nn.Parameter(torch.ones(12))
    optimizer = make([{"params": [layer.values, bias], "crow": [layer.crow, None]}], lr=0.03, p=1.4)
    layer.values.grad = torch.ones(12)
    optimizer.step()
    before, same = copy.deepcopy((layer, optimizer.state[layer.values])), torch.arange(12)
    cases: list[tuple[str, Callable[[], None]]] = [
        ("rise from 0", lambda: optimizer.pattern_changed(layer.values, layer.crow[1:], same)),
        ("integers of shape", lambda: optimizer.pattern_changed(layer.values, layer.crow, same[1:])),
        ("integers of shape", lambda: optimizer.pattern_changed(layer.values, layer.crow, same.float())),
        ("lp_groups", lambda: optimizer.pattern_changed(bias, layer.crow, same)),
        ("pattern_changed", lambda: optimizer.connections_changed(layer.values, same > 3, same > 30)),
    ]
    if optimizer.param_groups[0]["momentum"] or "v" in optimizer.state[layer.values]:
        cases.append(("below 12", lambda: optimizer.pattern_changed(layer.values, layer.crow, same + 1)))
    for words, call in cases:
        with pytest.raises(ConfigError, match=words):
            call()
    with pytest.raises(ConfigError, match="cannot be cut"):
        optimizer.resize(optimizer.state[layer.values], [], layer.values)
    assert torch.equal(before[0].values, layer.values)
    for part, value in before[1].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(optimizer.state[layer.values][part]))


def test_a_rate_may_be_a_tensor_and_a_layer_without_weights_stays(make: Make) -> None:
    layer, empty = SparseLinear(5, 4, density=0.6), SparseLinear(5, 4, density=0.0)
    parts = {"params": [layer.values, empty.values], "crow": [layer.crow, empty.crow]}
    optimizer = make([parts], lr=torch.tensor(0.03), p=1.4)
    for values in parts["params"]:
        values.grad = torch.ones_like(values)
    optimizer.step()
    norm = lp_norm(layer.to_dense().detach(), 1.4)
    torch.testing.assert_close(norm, (layer.crow.diff() > 0).float(), rtol=0, atol=1e-5)
    source = empty.repattern(Pattern.random(4, 5, 0.5))
    with torch.no_grad():
        empty.values.fill_(1.0)
    optimizer.pattern_changed(empty.values, empty.crow, source)
    source = layer.repattern(Pattern.random(4, 5, 0.0))
    optimizer.pattern_changed(layer.values, layer.crow, source)
    empty.values.grad, layer.values.grad = torch.ones(empty.count), torch.ones(0)
    optimizer.step()
    norm = lp_norm(empty.to_dense().detach(), 1.4)
    torch.testing.assert_close(norm, (empty.crow.diff() > 0).float(), rtol=0, atol=1e-5)
