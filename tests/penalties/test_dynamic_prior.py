"""The dynamic prior: its limits, its counts, what its readings select, and that fast draws are those of the plain twin."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import pared
from pared.errors import ConfigError
from pared.models import cnn
from pared.nn import SparseLinear
from pared.penalties import L1, DynamicPrior, Sampling, l1
from pared.penalties import dynamic as module
from pared.penalties.candidates import Candidates, level_of, share_of
from pared.penalties.sampling import SMALL, Plain, Select, Subset, pool_of

PRIORS = ("magnitude", "uniform", "signed", "printed")
SHAPES = st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=4), min_size=1, max_size=3)
LARGE = (150, 200)  # more than are drawn plainly


def drawn(*shapes: Any, seed: int = 0, scale: float = 0.02) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [scale * torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]
    return [w.requires_grad_() for w in made]


def flat(weights: list[Tensor]) -> Tensor:
    return torch.cat([w.detach().flatten() for w in weights])


def gradients(weights: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(w.numel()) if w.grad is None else w.grad.flatten() for w in weights])


class Basis:
    """A pool whose draws are the basis vectors, one after the other."""

    def __init__(self, weight: Tensor) -> None:
        self.index: Tensor | None = None
        self.weight, self._next = weight, 0

    def draw(self) -> Tensor:
        hits = torch.arange(len(self.weight)) == self._next
        self._next += 1
        return hits


class Recorded:
    """A pool that keeps its draws, as masks over all weights."""

    def __init__(self, pool: Any, n: int) -> None:
        self.index, self.weight, self._pool, self._n = pool.index, pool.weight, pool, n
        self.masks: list[Tensor] = []

    def draw(self) -> Tensor:
        hits = self._pool.draw()
        mask = torch.zeros(self._n, dtype=torch.bool)
        mask[slice(None) if self.index is None else self.index] = hits
        self.masks.append(mask)
        return hits


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    found: list[Recorded] = []

    def recording(weights: list[Tensor], *rest: Any) -> Recorded:
        found.append(Recorded(pool_of(weights, *rest), sum(w.numel() for w in weights)))
        return found[-1]

    monkeypatch.setattr(module, "pool_of", recording)
    return found


@given(SHAPES, st.sampled_from(PRIORS), st.integers(0, 99))
def test_one_draw_of_all_weights_is_their_norm(shapes: list[list[int]], prior: Any, seed: int) -> None:
    weights = drawn(*shapes, seed=seed, scale=3.0)
    size = torch.linalg.vector_norm(flat(weights))
    torch.testing.assert_close(DynamicPrior(weights, 0.5, 1.0, 1, prior=prior)().detach(), 0.5 * size)
    squared = DynamicPrior(weights, 1.0, 1.0, 1, prior=prior, norm="l2_squared")
    torch.testing.assert_close(squared().detach(), size.square())
    squared().backward()
    torch.testing.assert_close(gradients(weights), 2.0 * flat(weights))


@given(SHAPES, st.integers(0, 99))
def test_the_basis_vectors_once_each_make_it_l1(shapes: list[list[int]], seed: int) -> None:
    weights = drawn(*shapes, seed=seed)
    n = len(flat(weights))
    value, slope = DynamicPrior(weights, 1.0, draws=n)._pressure(Basis(flat(weights)))
    torch.testing.assert_close(value, l1(weights).detach())
    torch.testing.assert_close(slope, flat(weights).sign())


def test_single_weights_uniformly_tend_to_l1_over_their_number() -> None:
    weights = drawn((4, 5))
    value = DynamicPrior(weights, 1.0, 1 / 20, 4000, prior="uniform")().detach() / 4000
    torch.testing.assert_close(value, l1(weights).detach() / 20, rtol=0.03, atol=0.0)


@pytest.mark.parametrize("norm", ["l2", "l2_squared"])
@pytest.mark.parametrize("shape", [(4, 5), LARGE])
@pytest.mark.parametrize("prior", PRIORS)
def test_zeros_have_no_penalty_and_no_gradient(prior: Any, shape: tuple[int, int], norm: Any) -> None:
    weight = torch.zeros(shape, requires_grad=True)
    value = DynamicPrior([weight], 1.0, 0.1, 3, prior=prior, norm=norm)()
    value.backward()
    assert value.item() == 0.0
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alive", [0, 1, 200, 5000])
def test_counts_hold_where_most_weights_are_zero(alive: int, dtype: torch.dtype) -> None:
    weight = torch.zeros(LARGE, dtype=dtype)
    weight.view(-1)[:alive] = torch.randn(alive, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight.requires_grad_()
    penalty = DynamicPrior([weight], 1.0, 0.01, 1)
    for _ in range(3):
        weight.grad = None
        penalty().backward()
        assert weight.grad is not None
        assert int(weight.grad.count_nonzero()) == min(300, alive)


@settings(max_examples=60)
@given(
    st.sampled_from([(3, 4), (9, 11, 2), LARGE]),
    st.sampled_from(PRIORS),
    st.sampled_from([0.003, 0.01, 0.07, 0.3, 0.6, 0.95, 1.0]),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.integers(0, 9),
)
def test_each_draw_selects_exactly_the_share_of_the_weights_rounded_up(
    shape: tuple[int, ...], prior: Any, density: float, momentum: float, seed: int
) -> None:
    weights = drawn(shape, seed=seed)
    penalty = DynamicPrior(weights, 1.0, density, 1, momentum, prior=prior, seed=seed)
    n = weights[0].numel()
    for _ in range(2):
        weights[0].grad = None
        penalty().backward()
        assert int(gradients(weights).count_nonzero()) == penalty.sampling.count(n)
        assert penalty.sampling.count(n) == -(-n * round(1000 * density) // 1000)
        weights[0].data += 0.01 * torch.randn(shape, dtype=torch.float64, generator=penalty.generator)


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("norm", ["l2", "l2_squared"])
@pytest.mark.parametrize("normalize_counts", [False, True])
@pytest.mark.parametrize("shapes", [[(3, 4), (2, 3, 3)], [LARGE, (5, 6)]], ids=["small", "large"])
@pytest.mark.parametrize("prior", PRIORS)
def test_value_and_gradient_are_those_of_autograd_over_its_masks(
    records: list[Recorded], prior: Any, shapes: Any, normalize_counts: bool, norm: Any, scope: Any
) -> None:
    weights = drawn(*shapes)
    penalty = DynamicPrior(weights, 0.3, 0.1, 4, prior=prior, norm=norm, scope=scope, normalize_counts=normalize_counts)
    penalty()
    for w in weights:
        w.data *= 1.1
    records.clear()
    value = penalty()
    (2.0 * value).backward()
    found, twin = gradients(weights), torch.zeros((), dtype=torch.float64)
    vectors = [torch.cat([w.flatten() for w in weights])] if scope == "global" else [w.flatten() for w in weights]
    assert len(records) == len(vectors)
    for vector, record in zip(vectors, records, strict=True):
        assert len(record.masks) == 4
        most = torch.stack(record.masks).sum(0).max() if normalize_counts else 1.0
        for mask in record.masks:
            square = (vector * mask).square().sum()
            twin = twin + (square.sqrt() if norm == "l2" else square) / most
    torch.testing.assert_close(value, 0.3 * twin)
    grads = torch.autograd.grad(0.6 * twin, weights)
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in grads]))
    union = torch.cat([torch.stack(record.masks).any(0) for record in records])
    assert not found[~union].any()


def frequencies(pool: Any, n: int, draws: int) -> Tensor:
    counts = torch.zeros(n, dtype=torch.float64)
    for _ in range(draws):
        counts[slice(None) if pool.index is None else pool.index] += pool.draw()
    return counts / draws


@pytest.mark.parametrize(
    ("density", "momentum", "moved"),
    [
        (0.01, 1.0, 0.0),
        (0.1, 1.0, 0.0),
        (0.6, 1.0, 0.0),
        (0.02, 0.9, 0.002),
        (0.1, 0.5, 0.05),
        (0.3, 0.0, 0.02),
        (0.02, 0.9, 0.5),
        (0.1, 0.9, 2.0),
        (0.3, 0.5, 1.0),
    ],
)
def test_fast_draws_select_each_weight_as_often_as_plain_ones(density: float, momentum: float, moved: float) -> None:
    (weight,), (shift,) = drawn((20, 1000)), drawn((20, 1000), seed=1, scale=moved)
    before = None if momentum == 1.0 else [(weight + shift).detach()]
    sampling, draws = Sampling(density, momentum), 400
    generator = torch.Generator().manual_seed(5)
    fast = pool_of([weight], before, sampling, generator)
    assert isinstance(fast, Candidates)
    n = weight.numel()
    ours, theirs = (frequencies(pool, n, draws) for pool in (fast, Plain([weight], before, sampling, generator)))
    # Deviations of single weights, and of bins by magnitude, now and before.
    error = ((ours * (1 - ours) + theirs * (1 - theirs)) / draws).sqrt()
    assert float(((ours - theirs).abs() / error.clamp_min(1.5 / draws)).max()) < 6.0
    for size in (flat([weight]).abs(), flat(before or [weight]).abs()):
        for rows in size.argsort().split(500):
            gap = (ours[rows] - theirs[rows]).sum()
            assert abs(gap) <= 4.5 * float(error[rows].square().sum().sqrt()) + 1e-9


def mostly_small(alive: float, scale: float, n: int = 40_000) -> Tensor:
    weight = torch.randn(n // 100, 100, generator=torch.Generator().manual_seed(0)) * scale
    weight.view(-1)[: round(alive * n)] = 0.05 * torch.randn(
        round(alive * n), generator=torch.Generator().manual_seed(1)
    )
    return weight


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(
    ("now", "before"),
    [
        (3.0 * mostly_small(1.0, 1.0), 0.3 * mostly_small(1.0, 1.0)),
        (20.0 * mostly_small(1.0, 1.0), 0.2 * mostly_small(1.0, 1.0)),
        (0.02 * mostly_small(1.0, 1.0), 2.0 * mostly_small(1.0, 1.0)),
        (100.0 * mostly_small(1.0, 1.0), mostly_small(1.0, 1.0)),
        (mostly_small(0.01, 1e-7), mostly_small(0.01, 1e-7)),
        (mostly_small(0.005, 1e-18), 1.001 * mostly_small(0.005, 1e-18)),
        (mostly_small(0.1, 1e-30), 3.0 * mostly_small(0.1, 1e-12)),
        (mostly_small(0.5, 1e-38), mostly_small(0.2, 0.0)),
    ],
    ids=["grown", "far", "shrunk", "overflowing", "small", "tiny", "denormal", "zeros"],
)
def test_draws_end_and_count_however_weights_are_and_moved(
    now: Tensor, before: Tensor, momentum: float, density: float
) -> None:
    sampling = Sampling(density, momentum)
    pool = pool_of([now], None if momentum == 1.0 else [before], sampling, torch.Generator().manual_seed(3))
    some = int((torch.maximum(now, before) if momentum < 1.0 else now).count_nonzero())
    for _ in range(3):
        assert sampling.count(now.numel()) >= int(pool.draw().sum()) >= min(sampling.count(now.numel()), some)


@pytest.mark.parametrize("spread", [0.1, 5.0, 20.0])
@pytest.mark.parametrize("count", [1.5, 30.0, 900.0])
def test_levels_have_as_many_keys_above_them_as_was_asked(spread: float, count: float) -> None:
    size = (spread * torch.randn(1000, generator=torch.Generator().manual_seed(0))).exp()
    level = level_of(size, count)
    assert float((1.0 - level / size.double()).clamp_min(0.0).sum()) == pytest.approx(count, rel=2e-3)
    assert level_of(size, 1000.0) == 0.0


def test_a_band_that_is_never_hit_costs_time_and_no_draw() -> None:
    (weight,) = drawn((300, 200))
    pool = Candidates([weight], None, 1.0, 600, torch.Generator().manual_seed(2))
    often = frequencies(pool, 60_000, 200)
    pool._band = (math.inf, math.inf)
    assert int(pool.draw().sum()) == 600
    rows = flat([weight]).abs().argsort(descending=True)[:200]
    assert abs(float((frequencies(pool, 60_000, 200) - often)[rows].mean())) < 0.02


def test_ties_are_broken_by_chance() -> None:
    for size in (1e-17, 1.0, 1e4):
        often = frequencies(
            Plain(
                [torch.full((50,), size)], [torch.full((50,), size)], Sampling(0.2), torch.Generator().manual_seed(0)
            ),
            50,
            500,
        )
        assert float((often - 0.2).abs().max()) < 0.1


@pytest.mark.parametrize("scale", [1e-25, 1e20])
@pytest.mark.parametrize("norm", ["l2", "l2_squared"])
def test_squares_neither_overflow_nor_vanish(scale: float, norm: Any) -> None:
    small = torch.rand(4, 5) + 0.5
    weight = (scale * small).requires_grad_()
    value = DynamicPrior([weight], 1.0, 1.0, 1, norm=norm)()
    value.backward()
    if norm == "l2":
        torch.testing.assert_close(value, scale * small.norm())
        torch.testing.assert_close(weight.grad, small / small.norm())
    else:
        torch.testing.assert_close(weight.grad, 2.0 * weight.detach())


def test_norms_of_millions_keep_their_digits() -> None:
    weight = torch.full((2000, 2000), 0.1)
    assert float(DynamicPrior([weight], 1.0, 1.0, 1)()) == pytest.approx(200.0, rel=1e-6)


def test_second_derivatives_are_an_error() -> None:
    (w,) = drawn((3, 4))
    penalty = DynamicPrior([w], 1.0, 0.5, 1, norm="l2_squared")
    (first,) = torch.autograd.grad((w**3).sum() + penalty(), w, create_graph=True)
    with pytest.raises(ConfigError, match="second derivatives"):
        torch.autograd.grad(first.sum(), w)


def test_a_state_of_other_weights_is_refused() -> None:
    penalty, other = DynamicPrior(nn.Linear(30, 30), 1.0), DynamicPrior(nn.Linear(7, 9), 1.0)
    penalty()
    with pytest.raises(ConfigError, match="other weights"):
        other.load_state_dict(penalty.state_dict())
    with pytest.raises(ConfigError, match="without before, generator"):
        other.load_state_dict(L1(nn.Linear(2, 2), 1.0).state_dict())


def test_a_state_is_loaded_whole_or_not_at_all() -> None:
    penalty = DynamicPrior(nn.Linear(6, 5), 1.0)
    penalty()
    state = penalty.state_dict()
    for wrong in ({"strength": -1.0}, {"strength": 9.0, "generator": torch.zeros(3, dtype=torch.uint8)}):
        with pytest.raises((ConfigError, RuntimeError)):
            penalty.load_state_dict({**state, **wrong})
        assert penalty.strength == 1.0
        assert torch.equal(penalty.state_dict()["generator"], state["generator"])


def _cut(model: nn.Module) -> nn.Module:
    pared.remove(model, {"0": [1, 3]}, graph=pared.graph(model, torch.randn(2, 6)), living="cut")
    return model


def _frozen(model: nn.Module) -> nn.Module:
    model.get_parameter("2.weight").requires_grad_(False)
    return model


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "surgery": _cut,
    "frozen": _frozen,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "averaged": AveragedModel,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_state_goes_on_bit_equally_when_the_network_has_changed_since_the_last_call(change: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7))
    penalty = DynamicPrior(model, 1.0, 0.2, 2, 0.5)
    penalty()
    nn.init.normal_(model.get_parameter("2.weight"))
    other = change(copy.deepcopy(model))
    change(model)
    resumed = DynamicPrior(other, 1.0, 0.2, 2, 0.5)
    resumed.load_state_dict(penalty.state_dict())
    for _ in range(3):
        assert torch.equal(resumed(), penalty())
    without = DynamicPrior(other, 1.0, 0.2, 2, momentum=1.0)
    without.load_state_dict(penalty.state_dict())
    assert not without.state_dict()["before"]


@pytest.mark.parametrize("shape", [(5, 6), LARGE])
def test_networks_change_type_between_calls(shape: tuple[int, int]) -> None:
    model = nn.Linear(*shape, dtype=torch.float32)
    penalty = DynamicPrior(model, 1.0, 0.1)
    penalty()
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        model.to(dtype)
        assert penalty().isfinite()
        assert penalty.state_dict()["before"]["weight"].dtype == dtype
    other = DynamicPrior(model.double(), 1.0, 0.1)
    other.load_state_dict(penalty.state_dict())
    assert torch.equal(other(), penalty())


def test_a_past_on_another_device_is_forgotten_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pasts: list[Any] = []
    monkeypatch.setattr(
        module, "pool_of", lambda w, before, *rest: (pasts.append(before), pool_of(w, before, *rest))[1]
    )
    penalty = DynamicPrior(nn.Linear(6, 5), 1.0)
    penalty()
    penalty._before["weight"] = torch.empty(5, 6, device="meta")
    penalty()
    penalty()
    assert [past is None for past in pasts] == [True, True, False]


def test_weights_that_were_changed_before_the_gradient_are_an_error() -> None:
    (w,) = drawn((3, 4))
    found = DynamicPrior([w], 1.0)()
    with torch.no_grad():
        w.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward()


@pytest.mark.parametrize("inputs", [2, 3, 7, 11, 13, 55])
def test_shares_do_not_depend_on_where_large_weights_stand(inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    w = 0.05 * torch.randn(LARGE[0] * 2000 // inputs, inputs, generator=generator)
    w[:, 0] = 0.9 * torch.rand(len(w), generator=generator)
    before = w.clone()
    before[:, 0] *= 0.1
    found = Candidates([w], [before], 0.5, 2001, generator)._share
    assert found == pytest.approx(share_of(w.flatten().abs(), before.flatten().abs(), 0.5), rel=0.01)


def test_values_of_sparse_layers_are_weights() -> None:
    model = nn.Sequential(SparseLinear(20, 10, density=0.2), nn.ReLU(), nn.Linear(10, 2))
    penalty = DynamicPrior(model, 1.0, 1.0, 1, norm="l2_squared")
    assert list(penalty.weights()) == ["0.values", "2.weight"]
    values, weight = model.get_parameter("0.values"), model.get_parameter("2.weight")
    torch.testing.assert_close(penalty(), values.square().sum() + weight.square().sum())


@pytest.mark.parametrize(
    "given",
    [torch.zeros(3, 4), torch.zeros(8, 3, 3, 3), nn.Linear(3, 4).named_parameters()],
    ids=["matrix", "kernels", "named"],
)
def test_what_is_no_list_of_weights_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="list of real weights"):
        DynamicPrior(given, 1.0)


def test_a_weight_given_twice_counts_once() -> None:
    (w,) = drawn((3, 4))
    assert list(DynamicPrior([w, w], 1.0).weights()) == ["0"]


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5, 0.99])
def test_fast_draws_are_the_largest_keys(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers u are read back: no weight that is left out can have a larger key than one that is selected."""
    (weight,), (shift,) = drawn((300, 200)), drawn((300, 200), seed=1, scale=0.003)
    before = (weight + shift).detach()
    pool = Candidates([weight], [before], 0.9, Sampling(density).count(60_000), torch.Generator().manual_seed(2))
    now, then = flat([weight]).abs(), before.flatten().abs()
    outside = torch.ones(60_000, dtype=torch.bool)
    outside[pool.index] = False
    share, low = pool._share, pool._band[0]

    def key(u: Tensor, at: Tensor) -> Tensor:
        return ((u * now[at]).exp() * share + (u * then[at]).exp() * (1 - share)).log()

    if outside.any():
        assert float(key(torch.ones(1), outside).max()) <= low
    for _ in range(20):
        hits = pool.draw().clone()
        bits = (pool._words.view(torch.int16)[: len(hits)] + 32768.0) / 65536
        assert int(hits.sum()) == Sampling(density).count(60_000)
        edge = key(bits + 1 / 65536, pool.index)[hits].min()  # at most so much is the least selected key
        assert bool((key(bits, pool.index)[~hits] <= edge).all())
        assert float(edge) >= low


def test_figures_of_the_methods_page() -> None:
    """N = 1e5, sigma = 0.02, s_p = 0.01: the uniform prior keeps to bound 7, the magnitude prior has 1.60."""
    (weight,) = drawn((100, 1000))
    bound = 0.1 * float(torch.linalg.vector_norm(weight.detach()))
    sizes = {
        prior: [float(DynamicPrior([weight], 1.0, 0.01, 1, prior=prior, seed=seed)().detach()) for seed in range(30)]
        for prior in ("uniform", "magnitude")
    }
    assert bound == pytest.approx(0.632, abs=0.005)
    assert sum(sizes["uniform"]) / 30 <= bound * 1.002
    assert sum(sizes["magnitude"]) / 30 == pytest.approx(1.60, abs=0.02)


@given(st.integers(2, 400), st.floats(0.05, 1.0), st.integers(0, 99))
@settings(max_examples=25)
def test_the_uniform_prior_keeps_to_the_bound(n: int, density: float, seed: int) -> None:
    (weight,) = drawn((1, n), seed=seed)
    sampling, generator = Sampling(density, prior="uniform"), torch.Generator().manual_seed(seed)
    pool = pool_of([weight], None, sampling, generator)
    squares = torch.stack([(pool.weight * pool.draw()).square().sum() for _ in range(300)])
    share = sampling.count(n) / n
    error = float(squares.std()) / math.sqrt(300)
    total = float(pool.weight.square().sum())
    assert abs(float(squares.mean()) - share * total) <= 5.0 * error + 1e-12
    assert float(squares.sqrt().mean()) <= math.sqrt(share * total + 5.0 * error) + 1e-12


def test_what_each_prior_prefers() -> None:
    (weight,) = drawn((100, 100))
    generator, chosen = torch.Generator().manual_seed(0), {}
    for prior in PRIORS:
        pool = pool_of([weight], None, Sampling(0.01, prior=prior), generator)
        chosen[prior] = flat([weight])[pool.draw()]
    assert chosen["printed"].max() < 0 < chosen["signed"].min()
    assert chosen["magnitude"].abs().min() > 0.02
    assert chosen["magnitude"].min() < 0 < chosen["magnitude"].max()
    assert chosen["uniform"].abs().min() < 0.005


@given(SHAPES, st.sampled_from(["magnitude", "signed", "printed"]), st.floats(0, 1), st.booleans())
def test_probabilities_add_up_to_one(shapes: list[list[int]], prior: Any, momentum: float, shared: bool) -> None:
    weights, before = drawn(*shapes), [w.detach() for w in drawn(*shapes, seed=1)]
    pool = Plain(weights, before, Sampling(0.1, momentum, prior, shared), torch.Generator().manual_seed(0))
    chances = pool.probabilities()
    assert float(chances.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((chances >= 0).all())


def test_one_u_for_all_weights_makes_all_draws_alike() -> None:
    weights = drawn((30, 30))
    shared, own = (
        Plain(weights, None, Sampling(0.01, shared=s), torch.Generator().manual_seed(0)) for s in (True, False)
    )
    masks = {s: [pool.draw().clone() for _ in range(5)] for s, pool in ((True, shared), (False, own))}
    assert all(torch.equal(mask, masks[True][0]) for mask in masks[True])
    assert flat(weights).abs()[masks[True][0]].min() >= flat(weights).abs()[~masks[True][0]].max()
    assert not all(torch.equal(mask, masks[False][0]) for mask in masks[False])


def test_thresholds_select_what_exceeds_them() -> None:
    weights = drawn((30, 30), scale=1.0)
    scales: dict[Select, float] = {"absolute": 1.0, "relative": 900.0}
    for select, scale in scales.items():
        generator = torch.Generator().manual_seed(0)
        pool = Plain(weights, None, Sampling(select=select, threshold=scale * 0.0015), generator)
        twin = Plain(weights, None, Sampling(), torch.Generator().manual_seed(0))
        assert torch.equal(pool.draw(), twin.probabilities() > 0.0015)
    uniform = Plain(weights, None, Sampling(prior="uniform", select="absolute", threshold=0.9), torch.Generator())
    assert float(uniform.draw().double().mean()) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("shape", [(20, 30), LARGE])
def test_momentum_counts_only_where_weights_moved(shape: tuple[int, int]) -> None:
    def values(momentum: float, moves: bool) -> list[float]:
        (weight,) = drawn(shape)
        penalty, found = DynamicPrior([weight], 1.0, 0.05, 2, momentum), []
        for step in range(3):
            found.append(float(penalty().detach()))
            if moves:
                weight.data = drawn(shape, seed=step + 1)[0].data
        return found

    assert values(1.0, False) == pytest.approx(values(0.5, False), rel=1e-12)
    assert values(1.0, True)[0] == values(0.5, True)[0]
    assert values(1.0, True)[1] != pytest.approx(values(0.5, True)[1], rel=1e-9)


@pytest.mark.parametrize("shape", [(20, 30), LARGE])
def test_without_momentum_the_past_does_not_matter(shape: tuple[int, int]) -> None:
    (weight,) = drawn(shape)
    penalty = DynamicPrior([weight], 1.0, 0.05, 2, 1.0)
    penalty()
    fresh = DynamicPrior([weight], 1.0, 0.05, 2, 1.0)
    fresh.generator.set_state(penalty.generator.get_state())
    weight.data = drawn(shape, seed=4)[0].data
    assert torch.equal(penalty(), fresh())


def test_the_past_is_the_weights_at_the_call_before(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = drawn((4, 5), (3, 2))
    penalty, pasts, seen = DynamicPrior(weights, 1.0), [], []

    def looking(now: list[Tensor], before: list[Tensor] | None, *rest: Any) -> Any:
        pasts.append(before and flat(before).clone())
        return pool_of(now, before, *rest)

    monkeypatch.setattr(module, "pool_of", looking)
    for step in range(4):
        seen.append(flat(weights))
        penalty().backward()
        for w in weights:
            w.data.add_(0.1 * (step + 1))
    assert pasts[0] is None
    assert all(torch.equal(past, now) for past, now in zip(pasts[1:], seen[:-1], strict=True))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, penalty: DynamicPrior, steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(4, 1, 28, 28, generator=generator), torch.arange(4)
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + penalty()).backward()
        optimizer.step()


@pytest.mark.parametrize("prior", ["magnitude", "uniform", "printed"])
def test_runs_go_on_bit_equally_from_a_state_a_copy_and_a_pickle(prior: Any) -> None:
    model = cnn("mnist", generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    penalty = DynamicPrior(model, 1e-3, 0.02, 3, prior=prior, seed=7)
    train(model, optimizer, penalty, 2)
    everything = (model, optimizer, penalty)
    copied, pickled = copy.deepcopy(everything), pickle.loads(pickle.dumps(everything))
    state = copy.deepcopy(penalty.state_dict())
    other = copy.deepcopy(model)
    resumed = DynamicPrior(other, 1.0, 0.02, 3, prior=prior)
    resumed.load_state_dict(state)
    follows = torch.optim.Adam(other.parameters(), lr=1e-3)
    follows.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = torch.random.get_rng_state()
    for run in (everything, copied, pickled, (other, follows, resumed)):
        train(run[0], run[1], run[2], 3)
    assert torch.equal(before, torch.random.get_rng_state())
    for run in (copied[0], pickled[0], other):
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), run.parameters(), strict=True))


def test_without_gradients_nothing_is_remembered() -> None:
    weights = drawn((5, 5))
    penalty = DynamicPrior(weights, 1.0)
    with torch.no_grad():
        assert not penalty().requires_grad
    assert not penalty.state_dict()["before"]
    assert penalty().requires_grad
    assert penalty.state_dict()["before"]


def test_it_follows_surgery() -> None:
    model = cnn("mnist", generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    penalty = DynamicPrior(model, 1e-3, 0.02, 2)
    train(model, optimizer, penalty, 2)
    graph = pared.graph(model, torch.randn(2, 1, 28, 28))
    pared.remove(model, {"0": [1, 3]}, graph=graph, optimizer=optimizer, living="cut")
    old = model.get_parameter("0.weight")
    train(model, optimizer, penalty, 2)
    assert {n: tuple(x.shape) for n, x in penalty.state_dict()["before"].items()} == {
        n: tuple(p.shape) for n, p in model.named_parameters() if p.ndim > 1
    }
    assert model.get_parameter("0.weight") is old
    assert len(old) == 6
    assert old.grad is not None


def test_biases_norms_and_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.Linear(2, 3))
    model[2].requires_grad_(False)
    assert list(DynamicPrior(model, 1.0).weights()) == ["0.weight", "3.weight"]
    assert len(DynamicPrior(model, 1.0, vectors=True).weights()) == 6
    assert list(DynamicPrior(model.parameters(), 1.0).weights()) == ["0", "4", "6"]


def test_weights_that_are_no_numbers_show() -> None:
    for bad in (math.nan, math.inf):
        (weight,) = drawn(LARGE)
        weight.data[0, 0] = bad
        assert not math.isfinite(float(DynamicPrior([weight], 1.0)().detach()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength"),
        ({"strength": math.nan}, "strength"),
        ({"sampling_density": 0.0}, "sampling_density"),
        ({"sampling_density": 1.5}, "sampling_density"),
        ({"draws": 0}, "draws"),
        ({"momentum": 1.1}, "momentum"),
        ({"prior": "flat"}, "prior must be one of magnitude, signed, printed, uniform"),
        ({"norm": "l1"}, "norm"),
        ({"scope": "layer"}, "scope"),
        ({"select": "top"}, "select"),
        ({"threshold": -1.0}, "threshold"),
        ({"shared": True, "prior": "uniform"}, "shared"),
        ({"parameters": []}, "vectors=True"),
        ({"parameters": [torch.ones(3)]}, "vectors=True"),
        ({"parameters": [torch.ones(3, 3).long()]}, "real weights"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DynamicPrior(**{"parameters": drawn((3, 3)), "strength": 1.0} | options)


def test_the_cheap_pools_are_taken() -> None:
    large, small, generator = drawn(LARGE), drawn((4, 4)), torch.Generator()
    assert large[0].numel() > SMALL
    for prior in PRIORS:
        kinds = {"magnitude": Candidates, "uniform": Subset}
        assert type(pool_of(large, None, Sampling(prior=prior), generator)) is kinds.get(prior, Plain)
    assert type(pool_of(small, None, Sampling(), generator)) is Plain


def test_densities_are_the_decimals_that_are_written() -> None:
    assert 0.07 * 100 > 7.0
    assert Sampling(0.07).count(100) == 7
    assert [Sampling(0.01).count(n) for n in (1, 100, 101)] == [1, 1, 2]


def test_defaults_are_those_of_the_paper_where_it_has_any() -> None:
    penalty = DynamicPrior(nn.Linear(9, 9), 1.0)
    assert penalty.sampling == Sampling(density=0.01, momentum=0.9, prior="magnitude", select="count")
    assert (penalty.draws, penalty.norm, penalty.scope) == (10, "l2", "global")


def test_seeds_draw_differently() -> None:
    (w,) = drawn((20, 30))
    values = [DynamicPrior([w], 1.0, seed=seed)().item() for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_a_state_is_not_changed_by_what_comes_after() -> None:
    (w,) = drawn((20, 30))
    penalty, other = DynamicPrior([w], 1.0), DynamicPrior([w], 1.0)
    penalty()
    state = penalty.state_dict()
    kept = copy.deepcopy(state)
    other.load_state_dict(state)
    w.data += 1.0
    for one in (penalty, other):
        one()
    assert torch.equal(state["before"]["0"], kept["before"]["0"])
    assert torch.equal(state["generator"], kept["generator"])
