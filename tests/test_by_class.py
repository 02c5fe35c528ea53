"""Training by class: candidates are the optimizer's own runs, what diverges begins anew, and nothing is lost on the way."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import pared
from pared.errors import ConfigError, RunError
from pared.models import mlp
from pared.optim import ClassRateSGD
from pared.train.context import Observer


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    """Run once: no kernel of ours is in it."""


K = 3


def data(rows: int = 60) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def network(dropout: float = 0.0) -> nn.Sequential:
    return mlp(5, K, (8, 6), activation=nn.SELU, dropout=dropout, generator=torch.Generator().manual_seed(0))


def batches(size: int = 12) -> list[tuple[Tensor, Tensor]]:
    x, y = data()
    return list(zip(x.split(size), y.split(size), strict=True))


def score(model: nn.Module) -> float:
    x, y = data()
    return float((model(x).argmax(1) == y).float().mean())


def learned(model: nn.Module | None = None, loader: Any = None, **options: Any) -> Any:
    options = {"classes": K, "cutoffs": (0, 2, 3), "epochs": 4, "rate_lr": 1e3, "lr": 0.1} | options
    return pared.train_by_class(model or network(), loader or batches(), options.pop("validate", score), **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_each_candidate_is_the_run_of_an_optimizer_with_its_cutoff(momentum: float) -> None:
    start = network()
    found = learned(start, momentum=momentum)
    assert same(start, network())
    assert [one.cutoff for one in found.candidates] == [0, 2, 3]
    for one in found.candidates:
        model = copy.deepcopy(start)
        optimizer = ClassRateSGD(
            model, 0.1, 1e3, classes=K, reset_every=(2, 3), cutoff=5 * one.cutoff, momentum=momentum
        )
        for x, y in batches() * 4:
            optimizer.zero_grad()
            with optimizer.classes(y):
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert same(one.model, model)
        assert one.score == score(model)
    assert not same(found.candidates[0].model, found.candidates[1].model)
    assert found.score == max(one.score for one in found.candidates)
    assert found.diverged == []
    assert found.rate_lr == 1e3


def test_without_rates_all_candidates_are_plain_and_the_smallest_cutoff_is_chosen() -> None:
    found = learned(rate_lr=0.0, cutoffs=(3, 0, 2))
    assert found.cutoff == 0
    assert same(found.candidates[0].model, found.candidates[2].model)


def test_a_run_that_diverges_begins_anew_with_a_tenth() -> None:
    notes: list[str] = []
    found = learned(rate_lr=1e12, restarts=12, observer=Observer(note=notes.append))
    assert 1e12 > found.rate_lr == pytest.approx(1e12 / 10 ** len(found.diverged))
    assert "not finite" in found.diverged[0]
    assert "anew" in notes[0]
    again = learned(rate_lr=found.rate_lr)
    assert again.diverged == []
    assert all(same(a.model, b.model) for a, b in zip(found.candidates, again.candidates, strict=True))
    with pytest.raises(RunError, match="with every rate"):
        learned(rate_lr=1e30, restarts=1)
    with pytest.raises(RunError, match="behind cutoff 0"):
        learned(lr=1e30, cutoffs=(0,))


def test_a_network_that_learns_nothing_begins_anew_and_is_kept_in_the_end() -> None:
    model = network()
    with torch.no_grad():
        next(iter(model[-1].parameters())).zero_()
    next(iter(model[-1].parameters())).requires_grad_(False)  # what goes in cannot come through
    found = learned(model, restarts=2, epochs=7, cutoffs=(6,), rate_lr=1e2, lr=0.01)
    assert [text.split(":")[0] for text in found.diverged] == ["rate_lr=100", "rate_lr=10"]
    assert "how frequent classes are" in found.diverged[0]
    assert found.rate_lr == pytest.approx(1.0)
    for options in ({"loss": lambda out, y: F.cross_entropy(out, y)}, {"cutoffs": (4,)}):  # too early to tell
        assert learned(model, **{"restarts": 2, "epochs": 7, "cutoffs": (6,)} | options).diverged == []


def loader(seed: int) -> Any:
    return DataLoader(
        TensorDataset(*data()), 12, shuffle=True, generator=torch.Generator().manual_seed(seed) if seed else None
    )


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("stop", [1, 4, 8])
def test_it_goes_on_to_the_bit_where_it_was_interrupted(tmp_path: Path, seed: int, stop: int) -> None:
    whole = learned(network(0.1), loader(seed))
    count: Iterator[int] = iter(range(100))

    def epoch(record: dict[str, Any]) -> None:
        if next(count) == stop:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        learned(network(0.1), loader(seed), folder=tmp_path, observer=Observer(epoch=epoch))
    told: list[Any] = []
    rest = learned(network(0.1), loader(seed), folder=tmp_path, observer=Observer(epoch=told.append))
    assert len(told) == 3 + 4 + 2 + 1 - stop
    assert all(same(a.model, b.model) for a, b in zip(whole.candidates, rest.candidates, strict=True))
    assert [a.loss for a in whole.candidates] == [b.loss for b in rest.candidates]
    with pytest.raises(RunError, match="another epochs"):
        learned(network(0.1), loader(seed), folder=tmp_path, epochs=5)
    with pytest.raises(RunError, match="another cutoffs"):
        learned(network(0.1), loader(seed), folder=tmp_path, cutoffs=(1, 3))
    with pytest.raises(RunError, match="another classes"):
        learned(network(0.1), loader(seed), folder=tmp_path, classes=K + 1)
    with pytest.raises(RunError, match="another start"):
        learned(mlp(5, K, (8, 6), activation=nn.SELU, dropout=0.1), loader(seed), folder=tmp_path)


def with_sampler() -> Any:
    rows = TensorDataset(*data())
    return DataLoader(rows, 12, sampler=RandomSampler(rows, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("make", [lambda: loader(0), lambda: loader(7), with_sampler])
def test_candidates_see_the_same_batches_and_dropout_and_the_global_state_stays(make: Any) -> None:
    before = torch.get_rng_state()
    found = learned(network(0.1), make(), rate_lr=0.0)
    assert same(found.candidates[0].model, found.candidates[2].model)
    assert torch.equal(before, torch.get_rng_state())
    other = learned(network(0.1), make(), rate_lr=0.0, seed=1)
    assert not same(found.model, other.model)


def test_interrupted_it_keeps_what_is_complete() -> None:
    calls: list[int] = []

    def validate(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(model)

    notes: list[str] = []
    found = learned(validate=validate, observer=Observer(note=notes.append))
    assert found.interrupted
    assert (
        notes[-1]
        == "interrupted: keeping the 1 candidates that are complete; with folder=... the same call would go on"
    )
    assert [one.cutoff for one in found.candidates] == [0]
    calls.append(1)
    with pytest.raises(KeyboardInterrupt):
        learned(validate=lambda model: (_ for _ in ()).throw(KeyboardInterrupt))


def test_a_score_that_is_no_number_is_the_worst() -> None:
    scores = iter([math.nan, 0.5, 0.4])
    found = learned(validate=lambda model: next(scores))
    assert (found.cutoff, found.score) == (2, 0.5)


def test_rows_that_the_loss_leaves_out_may_have_a_group() -> None:
    x, y = data()
    y[::5] = -100  # what cross-entropy passes over
    found = learned(
        loader=list(zip(x.split(12), y.split(12), strict=True)),
        groups=lambda x, y: y.clamp(min=0),
        epochs=6,
        cutoffs=(5,),
    )
    assert math.isfinite(found.candidates[0].loss)


def test_groups_take_the_place_of_classes() -> None:
    by_rule = learned(groups=lambda x, y: (x[:, 2] > 0).long())
    assert not same(by_rule.candidates[2].model, learned().candidates[2].model)
    assert same(by_rule.candidates[0].model, learned().candidates[0].model)


@pytest.mark.parametrize("size", [60, 30])
def test_one_or_two_batches_an_epoch_leave_rates_at_1_and_that_is_told(size: int) -> None:
    notes: list[str] = []
    found = learned(loader=batches(size), observer=Observer(note=notes.append))
    for p, q in zip(*(one.model.parameters() for one in found.candidates[::2]), strict=True):
        torch.testing.assert_close(p, q)
    assert "plain SGD" in notes[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cutoffs": ()}, "cutoffs"),
        ({"cutoffs": (5,)}, "0 to epochs=4"),
        ({"epochs": 0, "cutoffs": (0,)}, "epochs"),
        ({"restarts": -1}, "restarts"),
        ({"cutoffs": (2.5,)}, "cutoffs"),
        ({"reset_every": 3}, "reset_every is chosen here"),
        ({"lr": 0.0}, "lr must be"),
        ({"momentum": 2.0}, "momentum"),
    ],
)
def test_mistakes_are_told_before_anything_begins(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        learned(**options)


def test_sessions_open_batches_of_their_optimizer() -> None:
    models = [network(), network()]
    x, y = data()
    for model, through in zip(models, (True, False), strict=True):
        optimizer = ClassRateSGD(model, 0.05, 1e2, classes=K)
        session = pared.Shrink(strength=0.5, every=5).bind(model, optimizer, x[:2])
        for _ in range(8):
            optimizer.zero_grad()
            with session.batch(y) if through else optimizer.classes(y):
                (F.cross_entropy(model(x), y) + session.penalty()).backward()
            session.step()
    assert same(*models)
