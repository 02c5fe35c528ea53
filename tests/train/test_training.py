import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import task
from pared.errors import ConfigError, RunError
from pared.methods.strengths import Geometric
from pared.storage import write_atomically
from pared.train import learner, shrinking
from pared.train.arrays import Arrays, balanced, criterion, predict
from pared.train.checkpoint import load_state, save_state
from pared.train.context import Context, Observer
from pared.train.folder import RunFolder, read_lines
from pared.train.learner import learn_front
from pared.train.loop import batches
from pared.train.point import Point, candidates, front
from pared.train.settings import Settings
from pared.train.tuning import one_cycle, refit, tune

QUICK = Settings(hidden=(12, 10), epochs=14, batch_size=32, lr=0.02, strength=(1e-3, 0.3), fine_tune=2)


def accuracy(outputs: torch.Tensor, y: torch.Tensor, w: torch.Tensor | None) -> float:
    return float((outputs.argmax(1) == y).float().mean())


def context(folder: Path | None = None, settings: Settings = QUICK, **rest: Any) -> Context:
    x, y = task(rows=400)
    return Context(
        Arrays(x[:300], y[:300]), Arrays(x[300:], y[300:]), 2, settings, accuracy, 0.5, folder=folder, **rest
    )


def weights(result: learner.Front) -> list[Any]:
    return [(p.params, p.inputs.tolist(), p.score, p.model.state_dict()) for p in [result.dense, *result.points]]


def assert_equal(first: learner.Front, second: learner.Front) -> None:
    for (*facts, state), (*others, other) in zip(weights(first), weights(second), strict=True):
        assert facts == others
        assert all(torch.equal(state[key], other[key]) for key in state)


def test_batches_visit_each_row_at_most_once_and_leave_the_global_generator_alone() -> None:
    data = Arrays(torch.arange(50.0)[:, None], torch.arange(50), torch.rand(50))
    before = torch.get_rng_state()
    seen = [int(v) for b in batches(data, 8, torch.Generator().manual_seed(1)) for v in b.y]
    again = [int(v) for b in batches(data, 8, torch.Generator().manual_seed(1)) for v in b.y]
    assert len(seen) == len(set(seen)) == 48
    assert seen == again
    assert seen != sorted(seen)
    assert torch.equal(before, torch.get_rng_state())


def test_predict_in_pieces_equals_predict_at_once_and_keeps_the_mode() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train(), torch.randn(10, 3)
    torch.testing.assert_close(predict(model, x, rows=3), model.eval()(x))
    assert predict(model.train(), x) is not None
    assert model.training


def test_weights_of_one_change_nothing_and_of_zero_silence() -> None:
    outputs, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(criterion(outputs, y, torch.ones(6)), criterion(outputs, y, None))
    targets = torch.randn(6, 3)
    torch.testing.assert_close(criterion(outputs, targets, torch.ones(6)), criterion(outputs, targets, None))
    assert criterion(outputs, y, torch.zeros(6)).item() == 0.0


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.lists(st.floats(-1, 1), max_size=4).map(lambda v: torch.tensor(v, dtype=torch.float64)),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(equal, first, second))
    return type(first) is type(second) and first == second


@given(st.dictionaries(st.text(max_size=5), NESTED, max_size=4))
def test_checkpoints_round_trip(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("state") / "s.safetensors"
    save_state(path, state)
    assert equal(load_state(path), state)


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, {"a": torch.arange(100.0), "b": 3})
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[:-7], b"garbage" * 100, whole[8:]):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"s\.safetensors"):
            load_state(path)
    with pytest.raises(RunError):
        load_state(tmp_path / "absent")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_geometric_path() -> None:
    path = Geometric(1e-4, 1e-2)
    assert [path.at(p) for p in (-1, 0, 0.5, 1, 2)] == pytest.approx([1e-4, 1e-4, 1e-3, 1e-2, 1e-2])


def point(params: int, score: float) -> Point:
    return Point(nn.Sequential(nn.Linear(params - 1, 1)), torch.arange(params - 1), score, 1.0, 0, 0.0)


@given(st.lists(st.tuples(st.integers(2, 40), st.sampled_from([0.1, 0.2, 0.3, 0.4])), min_size=1, max_size=20))
def test_the_front_is_what_no_other_point_beats(pairs: list[tuple[int, float]]) -> None:
    points = [point(*pair) for pair in pairs]
    kept = [(p.params, p.score) for p in front(points)]
    brute = {(n, s) for n, s in pairs if not any((m <= n and t >= s) and (m < n or t > s) for m, t in pairs)}
    assert set(kept) == brute
    assert kept == sorted(kept, reverse=True)
    assert {p.params for p in front(candidates(points))} <= {p.params for p in points}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": ()}, "hidden"), ({"hidden": (0,)}, "hidden"), ({"epochs": 0}, "epochs"), ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"), ({"strength": (1.0, 0.1)}, "strength"), ({"gamma": 1.0}, "gamma"), ({"threshold": 0}, "threshold"),
        ({"select": "rows"}, "select"), ({"switch_init": "zeros"}, "switch_init"), ({"max_drop": -1.0}, "max_drop"),
        ({"max_latency": 0.0}, "max_latency"), ({"batch_size": 0}, "batch_size"), ({"class_weights": "x"}, "class_weights"),
    ],
)  # fmt: skip
def test_settings_name_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**change)


def test_settings_from_files() -> None:
    assert Settings.from_json({"hidden": [3], "epochs": 2}) == Settings(hidden=(3,), epochs=2)
    assert Settings.from_json(Settings().to_json()) == Settings()
    with pytest.raises(ConfigError, match="unknown setting 'epoch'"):
        Settings.from_json({"epoch": 3})
    with pytest.raises(ConfigError, match="wrong type"):
        Settings.from_json({"epochs": "many"})


@given(st.integers(1, 3_000_000))
def test_settings_fit_any_number_of_rows(rows: int) -> None:
    settings = Settings().resolved(rows)
    assert settings.batch_size is not None
    assert 1 <= settings.batch_size <= min(512, rows)
    assert settings.epochs is not None
    assert 15 <= settings.epochs <= 400


def test_a_front_falls_in_size_and_score() -> None:
    records: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    result = learn_front(context(observer=Observer(records.append, events.append)))
    sizes, scores = [p.params for p in result.points], [p.score for p in result.points]
    assert sizes == sorted(set(sizes), reverse=True)
    assert scores == sorted(scores, reverse=True)
    shrink = [r for r in records if r["phase"] == "shrink"]
    assert shrink[0]["params"] > shrink[-1]["params"]
    assert len(events) > 3
    gone = {i for e in events if e["layer"] == "inputs" for i in e["index"]}
    last = shrink[-1]["inputs"]
    assert len(gone) == 12 - last
    for p in result.points:
        x = context().val.x[:, p.inputs]
        assert p.model(x).shape == (100, 2)


@pytest.mark.parametrize(("phase", "call"), [("train_dense", 5), ("shrink", 9), ("tune", 2), ("refit", 1)])
def test_a_killed_run_resumes_bit_equally(
    phase: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after some checkpoint of each phase; the resumed run ends as if nothing had happened."""
    whole = learn_front(context(tmp_path / "whole"))
    prefix = {"train_dense": "dense", "shrink": "shrink", "tune": "tuned", "refit": "refit"}[phase]
    killed, count = context(tmp_path / "killed"), 0
    save = Context.save

    def dying(self: Context, name: str, state: Any) -> None:
        nonlocal count
        count += name.startswith(prefix)
        save(self, name, state)
        if count == call:
            raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Context, "save", dying)
        with pytest.raises(MemoryError):
            learn_front(killed)
    assert_equal(learn_front(context(tmp_path / "killed")), whole)
    assert_equal(learn_front(context(tmp_path / "whole")), whole)


def test_an_interrupt_keeps_the_front_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = shrinking._epoch, 0

    def interrupted(*arguments: Any) -> Point:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(shrinking, "_epoch", interrupted)
    result = learn_front(context())
    assert result.interrupted
    assert result.points
    monkeypatch.setattr(shrinking, "_epoch", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        learn_front(context())


def test_whole_columns_die_together() -> None:
    groups = [3, 2, 4, 3]
    result = learn_front(context(settings=dataclasses.replace(QUICK, select="columns"), groups=groups))
    starts = torch.tensor([0, 3, 5, 9]).tolist()
    blocks = [set(range(s, s + g)) for s, g in zip(starts, groups, strict=True)]
    for p in result.points:
        kept = set(p.inputs.tolist())
        assert all(block <= kept or not block & kept for block in blocks)
    assert any(len(p.inputs) < 12 for p in result.points)
    result = learn_front(context(settings=dataclasses.replace(QUICK, select="none", refit=False)))
    assert all(len(p.inputs) == 12 for p in result.points)


def test_the_last_fit_keeps_weights_and_balances_the_validation_rows_too() -> None:
    settings = dataclasses.replace(QUICK, class_weights="balanced")
    c = context(settings=settings)
    c.train = balanced(Arrays(c.train.x, c.train.y), 2)
    rows = learner._both(c)
    assert c.train.w is not None
    assert rows.w is not None
    for label in (0, 1):
        torch.testing.assert_close(
            rows.w[300:][c.val.y == label], c.train.w[c.train.y == label][:1].expand(int((c.val.y == label).sum()))
        )
    assert learner._both(context()).w is None


def test_two_targets_are_regressed() -> None:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x[:, 0] + x[:, 1], x[:, 2]], 1)

    def r2(outputs: torch.Tensor, y: torch.Tensor, w: Any) -> float:
        return 1 - float((outputs - y).square().mean() / y.var(0).mean())

    settings = dataclasses.replace(QUICK, epochs=60, strength=(1e-4, 0.1))
    result = learn_front(Context(Arrays(x[:200], y[:200]), Arrays(x[200:], y[200:]), 2, settings, r2, 0.0))
    best = max(result.points, key=lambda p: p.score)
    assert best.score > 0.9
    assert min(len(p.inputs) for p in result.points) <= 4


def test_run_folders_are_claimed_once(tmp_path: Path) -> None:
    config = {"command": "x", "data": {"sha256": "a", "none": None}, "settings": {"lr": 0.1, "hidden": [1, 2]}}
    folder = RunFolder.claim(tmp_path / "run", config, resume=False)
    with pytest.raises(RunError, match="not empty"):
        RunFolder.claim(tmp_path / "run", config, resume=False)
    RunFolder.claim(tmp_path / "run", config, resume=True)
    with pytest.raises(RunError, match="was started with lr"):
        RunFolder.claim(tmp_path / "run", {**config, "settings": {"lr": 0.2, "hidden": [1, 2]}}, resume=True)
    with pytest.raises(RunError, match="no run to resume"):
        RunFolder.claim(tmp_path / "other", config, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.claim(tmp_path / "file", config, resume=False)
    for epoch in range(4):
        folder.append("metrics.jsonl", {"phase": "shrink", "epoch": epoch})
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"phase": "shr')
    assert len(read_lines(tmp_path / "run/metrics.jsonl")) == 4
    folder.truncate({"shrink": 2})
    assert [r["epoch"] for r in read_lines(tmp_path / "run/metrics.jsonl")] == [0, 1]
    (tmp_path / "run/metrics.jsonl").write_text('{"bad\n{"a": 1}\n')
    with pytest.raises(RunError, match="line 1 is damaged"):
        read_lines(tmp_path / "run/metrics.jsonl")


@given(st.integers(1, 400))
@example(9)  # of which the rise of a tenth has no length
def test_the_last_fits_rate_rises_to_its_peak_and_falls_to_nothing(steps: int) -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3, fused=False)
    schedule, rates = one_cycle(optimizer, 2.0, steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(0.0 < rate <= 2.0 for rate in rates)
    assert max(rates) > 1.0
    assert optimizer.param_groups[0]["lr"] < 1e-3
    top = rates.index(max(rates))
    assert top <= max(1, 0.1 * steps)
    assert rates[top:] == sorted(rates[top:], reverse=True)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(20, 260), epochs=st.integers(1, 20))
@example(rows=120, epochs=5)
@example(rows=240, epochs=5)
@example(rows=70, epochs=15)
def test_every_number_of_rows_and_epochs_ends_in_points(rows: int, epochs: int) -> None:
    """The last fits alone, on training rows and on these and the validation rows: shrinking would only cost time."""
    x, y = task(rows=rows)
    held = rows - rows // 5
    few = Settings(hidden=(2,), epochs=epochs)
    one = Context(Arrays(x[:held], y[:held]), Arrays(x[held:], y[held:]), 2, few, accuracy, 0.5)
    start = Point(nn.Sequential(nn.Linear(x.shape[1], 2)), torch.arange(x.shape[1]), 0.0, 9.9, 0, 0.0)
    points = list(tune(one, [start]))
    assert len(list(refit(one, points, [start], Arrays(x, y)))) == 1
