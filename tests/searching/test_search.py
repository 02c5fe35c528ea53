"""Searches: what they draw, that they go on, and that several processes share them."""

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pared
from helpers import task
from pared.errors import ConfigError, RunError
from pared.searching import Search
from pared.searching.journal import Journal
from pared.searching.space import Choice, draw
from pared.searching.trial import PATIENCE, train_trial
from pared.train.arrays import Arrays
from pared.train.context import Context, Observer
from pared.train.half import SecondHalf
from pared.train.settings import Settings

OPTIONS: dict[str, Any] = {"epochs": 6, "hidden": (16, 8), "batch_size": 16, "least_width": 2}


def figures(found: Search) -> list[dict[str, Any]]:
    """What two equal searches have in common."""
    keys = ("place", "params", "val_score", "val_loss", "test_score", "hidden", "epoch", "epochs", "drawn", "strength")
    return [{key: record[key] for key in keys} for record in found.trials]


class Recorder:
    """Draws the middle and remembers the ranges."""

    def __init__(self) -> None:
        self.ranges: dict[str, tuple[float, float, bool]] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.ranges[name] = (low, high, log)
        return (low * high) ** 0.5

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.ranges[name] = (low, high, log)
        return low

    def suggest_categorical(self, name: str, choices: Sequence[float]) -> float:
        self.ranges[name] = (min(choices), max(choices), False)
        return choices[0]


def test_ranges_are_the_papers() -> None:
    widths, strength = Recorder(), Recorder()
    assert draw(widths, "widths", (5000, 10), 20).hidden == (20, 10)
    assert widths.ranges == {
        "lr": (1e-4, 1e-2, True),
        "weight_decay": (1e-7, 0.1, True),
        "hidden 1": (20, 5000, True),
        "hidden 2": (10, 10, True),
    }
    choice = draw(strength, "strength", (5000, 10), 20)
    assert choice.hidden == (5000, 10)
    assert choice.strength == pytest.approx(10**-3.5)
    assert strength.ranges["strength"] == (1e-6, 0.1, True)
    assert strength.ranges["gamma"] == (0.0, 0.9, False)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40))
def test_the_best_of_the_second_half(scores: list[int]) -> None:
    kept: SecondHalf[int] = SecondHalf()
    for epoch, score in enumerate(scores):
        kept.add(score, epoch)
    half = len(scores) // 2
    best = max(scores[half:])
    assert kept.best() == half + scores[half:].index(best)


def test_a_plateau_lowers_the_learning_rate_and_ends_the_trial() -> None:
    x, y = task(64)
    settings = Settings(epochs=400, hidden=(4,), batch_size=32)
    context = Context(Arrays(x, y), Arrays(x, y), 2, settings, lambda outputs, y, w: 0.5, 0.5)
    seen: list[int] = []
    choice = Choice((4,), lr=1e-3, weight_decay=0.0)
    point, epochs = train_trial(context, choice, 0, lambda epoch, score: not seen.append(epoch))
    assert epochs == len(seen) == 1 + 4 * (PATIENCE + 1)  # a tenth four times, from 1e-3 to 1e-7
    assert point.epoch == epochs // 2  # the first of equals in the second half


@pytest.mark.parametrize(("sampler", "over"), [("random", "widths"), ("tpe", "strength"), ("hyperband", "widths")])
def test_a_search_finds_networks_that_answer(tmp_path: Path, sampler: Any, over: Any) -> None:
    notes: list[str] = []
    told = Observer(note=notes.append)
    found = pared.search("iris", out=tmp_path, sampler=sampler, over=over, trials=4, observer=told, **OPTIONS)
    assert len(found.trials) + found.summary["dropped"] == 4 == len(notes)
    sizes = [record["params"] for record in found.front]
    assert sizes == sorted(sizes, reverse=True)
    if over == "strength":
        assert all(record["drawn"]["gamma"] in (0.0, 0.9) for record in found.trials)
        assert any(record["params"] < 300 for record in found.trials)
    best = found.best(max_params=max(sizes))
    assert best in found.trials
    with pytest.raises(RunError, match="no trial is within"):
        found.best(max_params=1)
    import pandas as pd

    rows = pd.DataFrame({item.name: [1.0] * 3 for item in found.document(best).encoder.inputs})
    assert len(found.predict(rows, best)) == 3
    assert Search.open(tmp_path).table() == found.table()


def test_trials_can_be_added_and_shared(tmp_path: Path) -> None:
    whole = pared.search("iris", out=tmp_path / "whole", trials=5, **OPTIONS)
    pared.search("iris", out=tmp_path / "parts", trials=2, **OPTIONS)
    parts = pared.search("iris", out=tmp_path / "parts", trials=5, jobs=2, **OPTIONS)
    assert figures(parts) == figures(whole)
    again = pared.search("iris", out=tmp_path / "parts", trials=3, **OPTIONS)
    assert len(again.trials) == 5


def _take_one_and_vanish(path: Path) -> None:
    trial = Journal(path, "random", 0, 6).next(3)
    assert trial is not None


def test_a_trial_that_was_cut_off_is_done_anew_in_its_place(tmp_path: Path) -> None:
    whole = pared.search("iris", out=tmp_path / "whole", trials=3, **OPTIONS)
    cut = tmp_path / "cut"

    def stop(line: str) -> None:
        if line.startswith("trial"):
            raise KeyboardInterrupt

    part = pared.search("iris", out=cut, trials=3, observer=Observer(note=stop), **OPTIONS)
    assert part.summary["interrupted"]
    assert len(part.trials) == 1
    killed = multiprocessing.get_context("spawn").Process(target=_take_one_and_vanish, args=(cut / "journal.jsonl",))
    killed.start()
    killed.join()
    assert killed.exitcode == 0
    notes: list[str] = []
    found = pared.search("iris", out=cut, trials=3, observer=Observer(note=notes.append), **OPTIONS)
    assert "1 trial cut off" in notes[0]
    assert figures(found) == figures(whole)


def _ask_and_vanish(path: Path) -> None:
    journal = Journal(path, "random", 0, 6)
    with journal.lock:
        journal.study.enqueue_trial({}, user_attrs={"place": 0})
        journal.study.ask()
        os._exit(0)  # as kill -9 would, the lock held


def test_locks_end_with_their_process_and_no_place_is_lost(tmp_path: Path) -> None:
    killed = multiprocessing.get_context("spawn").Process(target=_ask_and_vanish, args=(tmp_path / "j.jsonl",))
    killed.start()
    killed.join()
    journal = Journal(tmp_path / "j.jsonl", "random", 0, 6)
    assert journal.take_up() == 1
    running = [journal.next(2) for _ in range(2)]
    assert [trial and trial.user_attrs["place"] for trial in running] == [0, 1]
    assert journal.next(2) is None
    assert running[1] is not None
    journal.study.enqueue_trial({}, user_attrs={"place": 1})  # put back, then killed before it was told to have failed
    journal.put_back(running[1])
    assert len(journal._in("WAITING")) == 1


def test_an_interrupt_puts_the_trial_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pared.search("iris", out=tmp_path / "whole", trials=2, **OPTIONS)
    from pared import searching

    def stop(*_: object) -> None:
        raise KeyboardInterrupt  # in the middle of the first trial

    with monkeypatch.context() as patch:
        patch.setattr(searching, "train_trial", stop)
        with pytest.raises(KeyboardInterrupt):
            pared.search("iris", out=tmp_path / "cut", trials=2, **OPTIONS)
    assert figures(pared.search("iris", out=tmp_path / "cut", trials=2, **OPTIONS)) == figures(whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "grid"}, "sampler must be one of random, tpe, hyperband"),
        ({"over": "depth"}, "over must be one of widths, strength"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"lr": 0.1}, "lr is drawn by a search"),
        ({"max_params": 10}, "max_params is an option of pared.fit"),
        ({"epoch": 3}, "unknown setting 'epoch'"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pared.search("iris", out=tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    pared.search("iris", out=tmp_path, trials=1, **OPTIONS)
    with pytest.raises(RunError, match="started with sampler = 'random', now it is 'tpe'"):
        pared.search("iris", out=tmp_path, sampler="tpe", trials=1, **OPTIONS)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        Search.open(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        Search.open(tmp_path / "nothing")
