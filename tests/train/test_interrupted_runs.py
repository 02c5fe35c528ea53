"""Ctrl-C and SIGTERM: what was kept is told at once, handlers come back, and a second one ends."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pared
from helpers import network, task
from pared import fitting
from pared.interrupts import Terminated, interruptible
from pared.methods import Shrink
from pared.train.context import Observer

X, Y = task(32)
END: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731


def score(model: torch.nn.Module) -> float:
    return float((model(X).argmax(1) == Y).float().mean())


def _shrink(observer: Observer, folder: Path) -> Any:
    method = Shrink(1.0, every=1, lr_scale=50.0)
    return pared.shrink(
        network(), [(X, Y)], score, epochs=4, dense_epochs=1, method=method, folder=folder, observer=observer
    )


def _by_class(observer: Observer, folder: Path) -> Any:
    batches = [(X, Y)] * 4
    options = {"classes": 2, "cutoffs": (0, 1), "epochs": 2, "folder": folder, "observer": observer}
    return pared.train_by_class(network(), batches, score, **options)


def _fit(observer: Observer, folder: Path) -> Any:
    return pared.fit("iris", out=folder, epochs=3, hidden=(4,), observer=observer, fine_tune=1)


@pytest.mark.parametrize("run", [_shrink, _by_class, _fit])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_sigterm_keeps_what_there_is_and_says_so_first(run: Callable[..., Any], at: int, tmp_path: Path) -> None:
    notes: list[str] = []
    epochs: list[int] = []

    def epoch(record: dict[str, Any]) -> None:
        epochs.append(1)
        if len(epochs) == at + 1:
            END()

    before = signal.getsignal(signal.SIGTERM)
    try:
        found = run(Observer(epoch=epoch, note=notes.append), tmp_path / "run")
        assert getattr(found, "interrupted", None) or found.summary["interrupted"]
    except Terminated:
        pass
    told = [line for line in notes if line.startswith("interrupted")]
    assert told
    assert len(epochs) == at + 1
    assert "goes on" in told[-1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_of_the_references_leaves_only_them_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"out": tmp_path, "epochs": 2, "hidden": (4,), "fine_tune": 1}
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_references", stop)
        run = pared.fit("iris", **options)
    assert run.summary["interrupted"]
    assert run.summary["references"] == []
    assert (tmp_path / "report.html").exists()
    assert "dense" in run.table()
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "measure_point", stop)
        notes: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            pared.fit("iris", resume=True, observer=Observer(note=notes.append), **options)
    assert "every finished epoch is kept" in notes[-1]
    assert pared.fit("iris", resume=True, **options).summary["references"]


def test_handlers_of_others_stay_and_threads_have_none() -> None:
    with interruptible() as seen:
        mine = signal.getsignal(signal.SIGTERM)
        with interruptible():
            assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(KeyboardInterrupt):
            END()
    assert seen == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def inside() -> None:
        with interruptible():
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[Any] = []
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
