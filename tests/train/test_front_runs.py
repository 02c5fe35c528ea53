"""Whole runs on a small generated task: what they learn, what stops them, what they go on from."""

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pared.models import mlp
from pared.train import reference, tuning
from pared.train.arrays import Arrays, balanced, criterion, predict
from pared.train.context import Context, Observer
from pared.train.learner import Front, learn_front
from pared.train.loop import mean_loss
from pared.train.point import Point, candidates, front
from pared.train.settings import Settings

QUICK = Settings(hidden=(24, 24), epochs=12, batch_size=32, lr=0.01, strength=(1e-3, 0.5), fine_tune=2)


def twonorm(rows: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Breiman's twonorm: two unit normals in 20 dimensions with means ±2/sqrt(20)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (rows,), generator=generator)
    mean = 2 / math.sqrt(20)
    return torch.randn(rows, 20, generator=generator) + mean * (2 * y - 1)[:, None], y


def accuracy(outputs: Tensor, y: Tensor, w: Tensor | None) -> float:
    right = (outputs.argmax(1) == y).float()
    return float(right.mean() if w is None else (right * w).sum() / w.sum())


def problem(folder: Path | None = None, w: Tensor | None = None, score: Any = accuracy, **options: Any) -> Context:
    x, y = twonorm()
    rows = Arrays(x, y, w)
    train, val = rows.rows(torch.arange(450)), rows.rows(torch.arange(450, 600))
    observer, groups = options.pop("observer", Observer()), options.pop("groups", None)
    settings = dataclasses.replace(QUICK, **options)
    return Context(train, val, 2, settings, score, 0.5, groups=groups, folder=folder, observer=observer)


def facts(result: Front) -> list[Any]:
    points = [result.dense, *result.points]
    return [
        (p.params, p.inputs.tolist(), p.score, p.epoch, {k: v.tolist() for k, v in p.model.state_dict().items()})
        for p in points
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Front:
    return learn_front(problem(tmp_path_factory.mktemp("whole")))


def test_the_front_is_sorted_small_and_good(whole: Front) -> None:
    sizes, ranks = [p.params for p in whole.points], [p.rank for p in whole.points]
    assert sizes == sorted(set(sizes), reverse=True)
    assert ranks == sorted(set(ranks), reverse=True)
    assert sizes[0] <= whole.dense.params
    assert sizes[-1] < whole.dense.params / 4
    assert whole.dense.score > 0.9
    assert max(p.score for p in whole.points) > 0.9
    assert not any(p.model.training for p in whole.points)


def test_a_run_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(whole: Front) -> None:
    state = torch.get_rng_state()
    assert facts(learn_front(problem())) == facts(whole)
    assert torch.equal(state, torch.get_rng_state())
    assert facts(learn_front(problem(seed=1))) != facts(whole)


def count_saves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    names: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Context, "save", lambda self, name, state: names.append(name))
        learn_front(problem(tmp_path / "count"))
    return len(names)


@pytest.mark.parametrize("written", [True, False], ids=["after writing", "before writing"])
def test_killed_at_any_checkpoint_the_run_ends_as_if_nothing_had_happened(
    written: bool, whole: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, save = count_saves(monkeypatch, tmp_path), Context.save
    for at in [1, *random.Random(written).sample(range(2, total), 6), total]:
        folder, count = tmp_path / f"{at}", 0

        def dying(self: Context, name: str, state: Any, at: int = at) -> None:
            nonlocal count
            count += 1
            if written or count < at:
                save(self, name, state)
            if count == at:
                raise MemoryError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(Context, "save", dying)
            with pytest.raises(MemoryError):
                learn_front(problem(folder))
        assert facts(learn_front(problem(folder))) == facts(whole), at


def test_a_lost_snapshot_costs_one_candidate_and_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Context.save

    def dying(self: Context, name: str, state: Any) -> None:
        save(self, name, state)
        if name == "shrink" and state["epoch"] == 8:
            raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Context, "save", dying)
        with pytest.raises(MemoryError):
            learn_front(problem(tmp_path))
    (tmp_path / "snapshots/0002.safetensors").unlink()
    records: list[dict[str, Any]] = []
    learn_front(problem(tmp_path, observer=Observer(epoch=records.append)))
    assert [r["epoch"] for r in records if r["phase"] == "shrink"] == [8, 9, 10, 11]


def interrupt_at(call: int, original: Any) -> Any:
    count = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    return wrapped


def test_an_interrupt_of_the_dense_run_is_passed_on_and_can_be_resumed(
    whole: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(reference, "train_epoch", interrupt_at(3, reference.train_epoch))
        with pytest.raises(KeyboardInterrupt):
            learn_front(problem(tmp_path))
    assert facts(learn_front(problem(tmp_path))) == facts(whole)
    learn_front(problem(tmp_path / "again"))
    first, again = (problem(folder).load("dense") for folder in (tmp_path, tmp_path / "again"))
    assert first is not None
    assert again is not None
    assert first["epoch"] == again["epoch"] > 3
    assert all(torch.equal(first["model"][key], again["model"][key]) for key in first["model"])


@pytest.mark.parametrize("seed", [0, 1])
def test_fine_tuning_takes_the_epoch_of_the_least_validation_loss(seed: int) -> None:
    context = problem(seed=seed, fine_tune=6, lr=3e-4)
    start = Point(
        mlp(20, 2, (4,), generator=torch.Generator().manual_seed(seed)), torch.arange(20), 0.5, math.inf, 0, 0.1
    )
    losses = [
        mean_loss(predict(model, context.val.x), context.val)
        for _, model in tuning._cycle(context, start, context.train, tuning.STREAM)
    ]
    (tuned,) = tuning.tune(context, [start])
    assert tuned.loss == min(losses)
    assert tuned.tuned == losses.index(min(losses)) + 1
    assert start.loss == math.inf
    (kept,) = tuning.tune(context, [dataclasses.replace(start, loss=0.0)])
    assert kept.tuned == 0


@pytest.mark.parametrize("call", [1, 4])
def test_an_interrupt_of_fine_tuning_keeps_the_front_and_can_be_resumed(
    call: int, whole: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "train_epoch", interrupt_at(call, tuning.train_epoch))
        result = learn_front(problem(tmp_path, observer=Observer(note=notes.append)))
    assert result.interrupted
    assert notes[-1].startswith("interrupted")
    sizes = [p.params for p in result.points]
    assert sizes == sorted(set(sizes), reverse=True) != []
    assert facts(learn_front(problem(tmp_path))) == facts(whole)


def test_rows_that_weigh_nothing_teach_nothing_and_scores_see_the_weights() -> None:
    x, y = twonorm()
    seen: list[float] = []

    def score(outputs: Tensor, y: Tensor, w: Tensor | None) -> float:
        assert w is not None
        seen.append(float(w.sum()))
        return accuracy(outputs, y, w)

    result = learn_front(problem(w=(y == 0).float(), score=score, epochs=4, fine_tune=1))
    for point in (result.dense, *result.points):
        assert bool((point.model(x[:, point.inputs]).argmax(1) == 0).all())
    assert set(seen) == {float((y[450:] == 0).sum())}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_balanced_rows_weigh_every_class_alike_and_one_on_average(labels: list[int]) -> None:
    y = torch.tensor(labels)
    rows = balanced(Arrays(torch.zeros(len(y), 1), y), 4)
    assert rows.w is not None
    sums = [float(rows.w[y == label].sum()) for label in set(labels)]
    assert max(sums) == pytest.approx(min(sums), rel=1e-5)
    assert float(rows.w.mean()) == pytest.approx(1.0, rel=1e-5)


@given(st.integers(1, 8), st.integers(1, 3), st.integers(0, 9))
def test_the_weighted_loss_is_the_mean_of_weighted_rows(rows: int, targets: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs, goal = (torch.randn(rows, targets, dtype=torch.float64, generator=generator) for _ in range(2))
    w = torch.rand(rows, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, targets, (rows,), generator=generator)
    square = [float(((outputs[i] - goal[i]) ** 2).mean() * w[i]) for i in range(rows)]
    entropy = [float(-outputs[i].log_softmax(0)[labels[i]] * w[i]) for i in range(rows)]
    assert criterion(outputs, goal, w).item() == pytest.approx(sum(square) / rows)
    assert criterion(outputs, labels, w).item() == pytest.approx(sum(entropy) / rows)


def test_columns_go_whole_and_none_keeps_all() -> None:
    groups = [1, 5, 4, 10]
    blocks = [{0}, set(range(1, 6)), set(range(6, 10)), set(range(10, 20))]
    events: list[dict[str, Any]] = []
    result = learn_front(
        problem(select="columns", groups=groups, observer=Observer(event=events.append), strength=(1e-2, 2.0))
    )
    gone = [set(e["index"]) for e in events if e["layer"] == "inputs"]
    assert gone
    for removed in gone:
        assert removed == set().union(*(block for block in blocks if block <= removed))
    for point in result.points:
        assert all(block <= set(point.inputs.tolist()) or not block & set(point.inputs.tolist()) for block in blocks)
    assert {len(p.inputs) for p in learn_front(problem(select="none")).points} == {20}


def point(params: int, score: float, loss: float = 0.0, epoch: int = 0) -> Point:
    return Point(nn.Sequential(nn.Linear(params - 1, 1)), torch.arange(params - 1), score, loss, epoch, 0.0)


SCORES = st.sampled_from([0.1, 0.5, 0.9, math.nan])
POINTS = st.lists(st.tuples(st.integers(2, 300), SCORES, st.sampled_from([0.0, 1.0])), min_size=1, max_size=15)


@given(POINTS)
def test_candidates_are_the_best_of_each_size_class(rows: list[tuple[int, float, float]]) -> None:
    kept = candidates([point(*row, epoch=i) for i, row in enumerate(rows)])
    classes: dict[int, list[tuple[tuple[float, float], int]]] = {}
    for i, (params, score, loss) in enumerate(rows):
        rank = (-math.inf, -math.inf) if math.isnan(score) else (score, -loss)
        classes.setdefault(math.floor(6 * math.log10(params)), []).append((rank, i))
    assert [p.epoch for p in kept] == [max(classes[size])[1] for size in sorted(classes, reverse=True)]


@given(POINTS)
def test_a_score_that_is_no_number_never_hides_one_that_is(rows: list[tuple[int, float, float]]) -> None:
    real = [row for row in rows if not math.isnan(row[1])]
    kept = [(p.params, p.score, p.loss) for p in front([point(*row) for row in rows]) if not math.isnan(p.score)]
    assert kept == [(p.params, p.score, p.loss) for p in front([point(*row) for row in real])]


@given(st.lists(st.integers(1, 6), max_size=3), st.integers(0, 9))
def test_points_come_back_from_their_state(hidden: list[int], seed: int) -> None:
    model = mlp(4, 2, hidden, generator=torch.Generator().manual_seed(seed))
    first = Point(model, torch.tensor([0, 2, 5, 6]), 0.5, 0.25, 3, 0.1, tuned=2)
    back, x = Point.from_state(first.state()), torch.ones(3, 4)
    assert torch.equal(back.model(x), model(x))
    assert back.hidden == hidden
    assert (back.rank, back.epoch, back.strength, back.tuned, back.params) == (first.rank, 3, 0.1, 2, first.params)
    assert all(p.requires_grad for p in back.model.parameters())
