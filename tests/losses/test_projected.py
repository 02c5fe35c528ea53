"""Projected cross-entropy: torch's own where all classes are selected, and what it is where they are not."""

import copy
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pared.errors import ConfigError
from pared.losses import ProjectedCrossEntropy

CASES = st.tuples(
    st.integers(2, 12),  # classes
    st.sampled_from([None, (), (2,), (2, 3)]),  # further axes; None has no batch
    st.sampled_from(["mean", "sum", "none"]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.booleans(),  # weights
    st.booleans(),  # probabilities
    st.integers(0, 99),
)


def data(case: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    classes, axes, reduction, smoothing, weighted, probable, seed = case
    generator = torch.Generator().manual_seed(seed)
    shape = (classes,) if axes is None else (5, classes, *axes)
    x = 2.0 * torch.randn(shape, dtype=torch.float64, generator=generator)
    if probable:
        y = torch.rand(shape, dtype=torch.float64, generator=generator)
        y[y < 0.6] = 0.0
    else:
        y = torch.randint(classes, shape[:0] if axes is None else (5, *axes), generator=generator)
    if not probable and axes is not None:
        y[0] = 1
        y[1] = -100
    weight = 0.5 + torch.rand(classes, dtype=torch.float64, generator=generator) if weighted else None
    return x.requires_grad_(), y, {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}


@given(CASES)
def test_with_all_classes_it_is_cross_entropy(case: Any) -> None:
    x, y, options = data(case)
    ours, theirs = ProjectedCrossEntropy(1.0, 3, **options)(x, y), nn.CrossEntropyLoss(**options)(x, y)
    assert torch.equal(ours, theirs)


@given(CASES)
def test_its_own_formula_is_cross_entropy_when_draws_select_all(case: Any) -> None:
    """As above, past the short cut for all classes."""
    x, y, options = data(case)
    loss = ProjectedCrossEntropy(0.1, 3, **options)
    loss._draw = lambda rows, count: torch.ones_like(rows, dtype=torch.bool)
    twin = nn.CrossEntropyLoss(**options)
    torch.testing.assert_close(loss(x, y), twin(x, y))
    ours, theirs = (torch.autograd.grad(f(x, y).sum(), x)[0] for f in (loss, twin))
    torch.testing.assert_close(ours, theirs)
    if not case[5]:
        loss.reading = "counted"
        torch.testing.assert_close(loss(x, y), twin(x, y))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("probable", [False, True])
@pytest.mark.parametrize("prior", ["magnitude", "signed", "printed", "uniform"])
@pytest.mark.parametrize("density", [0.1, 0.3, 0.7])
def test_it_is_cross_entropy_on_the_selected_classes(
    density: float, prior: Any, probable: bool, weighted: bool, smoothing: float
) -> None:
    """Each sample beside torch's loss on its selected logits alone, as a classifier with fewer classes."""
    classes = 11
    x, y, options = data((classes, (2,), "none", smoothing, weighted, probable, 3))
    loss = ProjectedCrossEntropy(density, 1, **options, prior=prior, seed=5)
    keep = copy.deepcopy(loss)._draw(x.movedim(1, -1), loss.sampling.count(classes)).movedim(-1, 1)
    assert bool((keep.sum(1) == math.ceil(density * classes)).all())
    aims = y != 0.0 if probable else F.one_hot(y.where(y >= 0, 0), classes).movedim(-1, 1) != 0
    assert not bool((keep & aims).sum(1).equal(aims.sum(1)))  # targets that are not selected, too
    keep, each, everywhere = keep | aims, loss(x, y), options["weight"]
    for i, j in itertools.product(range(5), range(2)):
        left = keep[i, :, j].nonzero().flatten()
        weight = None if everywhere is None else everywhere[left]
        target = y[i, :, j][left] if probable else (left == y[i, j]).nonzero().flatten().squeeze()
        rest: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing}
        twin = (
            F.cross_entropy(x[i, left, j][None], target[None], **rest, reduction="sum")
            if target.numel()
            else x.sum() * 0
        )
        torch.testing.assert_close(each[i, j], twin)
    (grad,) = torch.autograd.grad(each.sum(), x)
    assert bool(grad.isfinite().all())
    assert not grad[~keep].any()
    for reduction in ("mean", "sum"):
        options["reduction"] = reduction
        whole = ProjectedCrossEntropy(density, 1, **options, prior=prior, seed=5)(x, y)
        share = torch.ones_like(each) if probable else (y >= 0).double()
        share = share if probable or everywhere is None else share * everywhere[y.clamp(min=0)]
        torch.testing.assert_close(whole, each.sum() / (share.sum() if reduction == "mean" else 1.0))


@given(st.integers(2, 30), st.floats(0.01, 1.0), st.integers(1, 4), st.integers(0, 99), st.booleans())
def test_fewer_classes_never_raise_the_loss(
    classes: int, density: float, draws: int, seed: int, weighted: bool
) -> None:
    x, y, options = data((classes, (), "none", 0.0, weighted, False, seed))
    ours = ProjectedCrossEntropy(density, draws, **options, seed=seed)(x, y)
    assert bool((ours <= nn.CrossEntropyLoss(**options)(x, y) + 1e-12).all())
    assert bool((ours >= 0).all())


def test_the_average_over_draws_is_one_of_losses() -> None:
    x, y = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    many, single = ProjectedCrossEntropy(0.3, 5, seed=3), ProjectedCrossEntropy(0.3, 1, seed=3)
    torch.testing.assert_close(many(x, y), torch.stack([single(x, y) for _ in range(5)]).mean())


def test_only_draws_that_select_the_target_count_in_the_other_reading() -> None:
    x, y = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 5
    y[7] = -100
    loss = ProjectedCrossEntropy(0.4, 1, reading="counted", seed=1)
    hit = copy.deepcopy(loss)._draw(x, 2).gather(1, y.clamp(min=0)[:, None])[:, 0] & (y >= 0)
    assert 0 < int(hit.sum()) < 49
    torch.testing.assert_close(copy.deepcopy(loss)(x, y), F.cross_entropy(x[hit], y[hit]))
    each = ProjectedCrossEntropy(0.4, 1, reading="counted", reduction="none", seed=1)(x, y)
    torch.testing.assert_close(each, F.cross_entropy(x, y, reduction="none") * hit)
    none = ProjectedCrossEntropy(0.1, 1, reading="counted", prior="signed")
    assert none(torch.tensor([[0.0, 9.0]] * 3), torch.zeros(3, dtype=torch.long)).item() == 0.0
    with pytest.raises(ConfigError, match="counted"):
        loss(x, x.softmax(1))


def test_strong_answers_are_selected_more_often() -> None:
    x = torch.tensor([[0.1, -4.0, 0.2, 3.0, 0.0]]).expand(4000, 5)
    often = {
        prior: ProjectedCrossEntropy(0.2, prior=prior)._draw(x, 1).float().mean(0)
        for prior in ("magnitude", "signed", "printed", "uniform")
    }
    assert often["magnitude"].argmax() == 1
    assert often["magnitude"][[1, 3]].sum() > 0.9
    assert often["signed"].argmax() == 3
    assert often["signed"][1] == 0.0
    assert often["printed"].argmax() == 1
    assert torch.equal(ProjectedCrossEntropy(0.2)._draw(x, 1).float().mean(0), often["signed"])
    torch.testing.assert_close(often["uniform"], torch.full((5,), 0.2), atol=0.03, rtol=0.0)


def test_draws_are_its_own_and_go_on_from_its_state() -> None:
    x, y = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)), torch.arange(20)
    before, loss = torch.random.get_rng_state(), ProjectedCrossEntropy(0.1, 2, seed=4)
    first = loss(x, y)
    assert torch.equal(first, ProjectedCrossEntropy(0.1, 2, seed=4)(x, y))
    assert not torch.equal(first, ProjectedCrossEntropy(0.1, 2, seed=5)(x, y))
    other = ProjectedCrossEntropy(0.1, 2, seed=0)
    other.load_state_dict(loss.state_dict())
    copies = [other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]
    second = loss(x, y)
    assert not torch.equal(first, second)
    assert all(torch.equal(second, one(x, y)) for one in copies)
    assert torch.equal(before, torch.random.get_rng_state())
    assert "sampling_density=0.1" in repr(loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_density": 0.0}, "sampling_density"),
        ({"draws": 0}, "draws"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"reduction": "median"}, "mean, sum, none"),
        ({"reading": "full"}, "restricted, counted"),
        ({"prior": "flat"}, "prior"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProjectedCrossEntropy(**options)


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_targets_that_do_not_fit_are_refused(density: float) -> None:
    for target in (torch.zeros(4, 5, dtype=torch.long), torch.zeros(3, dtype=torch.long), torch.zeros(4)):
        with pytest.raises(ConfigError, match=r"classes \(4,\) or probabilities"):
            ProjectedCrossEntropy(density)(torch.zeros(4, 5), target)


def test_without_any_target_it_is_what_torch_has() -> None:
    x, y = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.full((3,), -100)
    assert ProjectedCrossEntropy(0.2)(x, y).isnan()
    assert F.cross_entropy(x, y).isnan()
    assert ProjectedCrossEntropy(0.2, reduction="sum")(x, y) == 0.0


@pytest.mark.parametrize("prior", ["magnitude", "signed", "printed"])
def test_classes_that_are_ruled_out_are_not_selected(prior: Any) -> None:
    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    x[:, 5:] = -torch.inf
    keep = ProjectedCrossEntropy(0.3, prior=prior)._draw(x, 3)
    assert not keep[:, 5:].any()
    assert float(ProjectedCrossEntropy(0.3, prior=prior)(x, torch.zeros(200, dtype=torch.long))) > 0.1


def test_logits_of_zero_are_selected_by_chance() -> None:
    often = ProjectedCrossEntropy(0.2)._draw(torch.zeros(4000, 10), 2).float().mean(0)
    torch.testing.assert_close(often, torch.full((10,), 0.2), atol=0.04, rtol=0.0)


@pytest.mark.parametrize("reading", ["restricted", "counted"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_what_is_ignored_has_no_gradient_whatever_it_is(reading: Any, reduction: str) -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    x[1], x[3, 0] = torch.nan, -torch.inf
    x.requires_grad_()
    loss = ProjectedCrossEntropy(0.4, reading=reading, reduction=reduction)
    value = loss(x, torch.tensor([2, -100, 1, -100, 3, 4]))
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[[1, 3]].any()
    x.grad = None
    loss(x, torch.full((6,), -100)).backward()
    assert not torch.as_tensor(x.grad).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_to_the_bound_and_the_type(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (5 * torch.randn(512, 20, generator=generator)).to(dtype), torch.randint(0, 20, (512,), generator=generator)
    ours = ProjectedCrossEntropy(0.3, reduction="none")(x, y)
    assert ours.dtype == dtype
    assert bool((ours <= F.cross_entropy(x.float(), y, reduction="none").to(dtype)).all())
    with torch.autocast("cpu", torch.bfloat16):
        assert ProjectedCrossEntropy(0.3)(x, y).dtype == F.cross_entropy(x, y).dtype == torch.float32

    weight, share = torch.rand(20, generator=generator).to(dtype), torch.rand(512, 20, generator=generator)
    counted = ProjectedCrossEntropy(0.3, weight=weight, reading="counted", reduction="none")(x, y)
    assert counted.dtype == dtype
    assert ProjectedCrossEntropy(0.3)(x, share).dtype == F.cross_entropy(x, share).dtype == torch.float32


@pytest.mark.parametrize("weight", [None, torch.ones(3)])
def test_states_of_cross_entropy_load(weight: Tensor | None) -> None:
    plain = nn.ModuleDict({"net": nn.Linear(2, 3), "loss": nn.CrossEntropyLoss(weight)})
    ours = nn.ModuleDict({"net": nn.Linear(2, 3), "loss": ProjectedCrossEntropy(weight=weight, seed=4)})
    ours.load_state_dict(plain.state_dict())
    assert torch.equal(ours.get_parameter("net.weight"), plain.get_parameter("net.weight"))
    state = plain.state_dict()
    del state["net.weight"]
    with pytest.raises(RuntimeError, match=r"net\.weight"):
        ours.load_state_dict(state)


def test_targets_and_weights_are_checked_as_torch_does() -> None:
    x, y = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    loss = ProjectedCrossEntropy(0.4, 1)
    state = loss.generator.get_state()
    whole = loss(x, y)
    loss.generator.set_state(state)
    assert torch.equal(loss(x, y.to(torch.uint8)), whole)
    for dtype in (torch.int16, torch.int32):
        assert torch.equal(ProjectedCrossEntropy(1.0)(x, y.to(dtype)), F.cross_entropy(x, y))
    with pytest.raises(ConfigError, match=r"torch\.bool"):
        loss(x, y > 1)
    for size in (4, 7):
        with pytest.raises(ConfigError, match="each of 5 classes"):
            ProjectedCrossEntropy(0.4, weight=torch.ones(size))(x, y)
    with pytest.raises(ConfigError, match="ignore_index"):
        ProjectedCrossEntropy(0.4, ignore_index=2)(x, x.softmax(1))
    with pytest.raises(ConfigError, match="integer"):
        ProjectedCrossEntropy(0.4, 2.5)  # pyright: ignore[reportArgumentType]
