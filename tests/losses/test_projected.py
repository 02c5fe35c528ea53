"""Projected cross-entropy: torch's own where all classes are selected, and what it is where they are not."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
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


@settings(max_examples=60)
@given(CASES, st.floats(0.05, 0.95), st.sampled_from(["magnitude", "signed", "printed", "uniform"]))
def test_it_is_cross_entropy_on_the_selected_classes(case: Any, density: float, prior: Any) -> None:
    x, y, options = data(case)
    if case[1] is None:
        return
    loss = ProjectedCrossEntropy(density, 1, **options, prior=prior, seed=case[-1])
    keep = copy.deepcopy(loss)._draw(x.movedim(1, -1), loss.sampling.count(case[0])).movedim(-1, 1)
    assert bool((keep.sum(1) == max(1, -(-density * case[0] // 1))).all())
    keep = keep | (y != 0.0) if case[5] else keep.scatter(1, y.where(y >= 0, 0).unsqueeze(1), value=True)
    value = loss(x, y)
    if options["label_smoothing"] == 0.0:
        twin = nn.CrossEntropyLoss(**options)(x.masked_fill(~keep, -1e9), y)
        torch.testing.assert_close(value, twin)
        free = {"weight": options["weight"], "reduction": "none"}
        each = ProjectedCrossEntropy(density, 3, **free)(x, y)
        assert bool((each <= nn.CrossEntropyLoss(**free)(x, y) + 1e-12).all())
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert bool(grad.isfinite().all())
    assert not grad[~keep].any()


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
