"""One folder, one run: locks that end with their process and say whose they are."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pared
from helpers import network, task
from pared.errors import RunError
from pared.locking import NAME, Lock, held
from pared.methods import Shrink
from pared.searching.journal import Journal

X, Y = task(32)


def test_a_folder_is_one_runs_at_a_time_and_the_holder_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with held(folder):
        with (
            pytest.raises(RunError, match=rf"new is in use by process {os.getpid()} on .* since \d{{4}}-"),
            held(folder),
        ):
            pass
        assert (folder / NAME).exists()
        (folder / "kept").touch()
    assert [item.name for item in folder.iterdir()] == ["kept"]
    with held(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()


def _take_and_vanish(path: Path) -> None:
    assert Lock(path).take()
    os._exit(0)


def test_a_lock_ends_with_its_process_and_not_with_a_child_of_it(tmp_path: Path) -> None:
    killed = multiprocessing.get_context("spawn").Process(target=_take_and_vanish, args=(tmp_path / "lock",))
    killed.start()
    killed.join()
    lock = Lock(tmp_path / "lock")
    assert (tmp_path / "lock").exists()
    assert lock.take()
    if hasattr(os, "fork"):
        code = (
            "import os, sys, time; from pathlib import Path; from pared.locking import Lock\n"
            "lock = Lock(Path(sys.argv[1])); assert lock.take()\n"
            "r, w = os.pipe(); ready, say = os.pipe()\n"
            "if os.fork() == 0: os.write(say, b'x'); os.read(r, 1); os._exit(0)\n"  # lives until its parent says so
            "os.read(ready, 1); lock.close(); assert Lock(Path(sys.argv[1])).take(); os.write(w, b'x')"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "forked")], check=True)
    assert not Lock(tmp_path / "lock").take()
    lock.release()
    assert not (tmp_path / "lock").exists()


def score(model: torch.nn.Module) -> float:
    return float((model(X).argmax(1) == Y).float().mean())


def _shrink(folder: Path) -> Any:
    return pared.shrink(network(), [(X, Y)], score, epochs=1, method=Shrink(1.0, every=1), folder=folder)


def _by_class(folder: Path) -> Any:
    return pared.train_by_class(network(), [(X, Y)] * 4, score, classes=2, cutoffs=(1,), epochs=1, folder=folder)


def _fit(folder: Path) -> Any:
    return pared.fit("iris", out=folder, epochs=1, hidden=(4,), resume=(folder / "config.toml").exists())


@pytest.mark.parametrize("run", [_shrink, _by_class, _fit])
def test_every_run_is_refused_where_another_is_at_work(run: Callable[[Path], Any], tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(RunError, match="is in use by process"):
        run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_trial_lost_under_the_same_process_id_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    killed = multiprocessing.get_context("spawn").Process(target=_take_one, args=(path,))
    killed.start()
    killed.join()
    journal = Journal(path, "random", 0, 6)
    assert journal.elsewhere() == []
    assert journal.take_up() == 1
    assert journal.next(2) is not None
    other = Journal(path, "random", 0, 6)
    assert other.take_up() == 0
    assert f"process {os.getpid()} on" in other.elsewhere()[0]
    journal.close()
    assert other.take_up() == 1


def _take_one(path: Path) -> None:
    assert Journal(path, "random", 0, 6).next(3) is not None
