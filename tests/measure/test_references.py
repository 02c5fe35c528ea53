"""Baselines are bounded where classes are many, and say so."""

from typing import Any

import numpy as np
import pytest

from pared.measure import references
from pared.measure.references import fit_references


def fitted(classes: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    y = np.tile(np.arange(classes), 12)
    x = (rng.normal(size=(len(y), 3)) + y[:, None] % 3).astype(np.float32)

    def score(truth: np.ndarray, predictions: np.ndarray, probabilities: Any, part: str) -> float:
        return float(np.mean(truth == predictions))

    parts: dict[str, tuple[np.ndarray, np.ndarray]] = dict.fromkeys(("train", "validation", "test"), (x, y))
    return fit_references(parts, "classification", score, better=lambda value: value, refit=False, seed=0)


def test_baselines_of_many_classes_stop_early_and_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "TREES", 40)
    monkeypatch.setattr(references, "ITERATIONS", 200)
    linear, boosting = fitted(5)
    assert linear["limited"] == "at most 40 of 300 iterations, for 5 classes"
    assert boosting["limited"] == "8 of 100 rounds, for 5 classes"
    monkeypatch.undo()
    more = fitted(5)
    assert not any("limited" in record for record in more)
    assert boosting["bytes"] < 0.2 * more[1]["bytes"]
