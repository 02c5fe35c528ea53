"""A table made ready to learn from: task, split, encoding, weights, warnings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pared.data.dialect import Dialect
from pared.data.encode import Encoder
from pared.data.inspect import find_ids, warnings_of
from pared.data.source import Table
from pared.data.split import VALIDATION, split_rows
from pared.data.task import Kind, Task, detect_task, label_text, standardised
from pared.errors import DataError


@dataclass(frozen=True)
class Part:
    """Rows of one role: inputs `x` (n, d) float32, encoded targets `y`, sample weights `w` (n,) or None."""

    x: np.ndarray
    y: np.ndarray
    w: np.ndarray | None

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Problem:
    """`train`, `validation` and `test` rows of a task, the encoder learned on the training rows, and what to beware of."""

    task: Task
    encoder: Encoder
    train: Part
    validation: Part
    test: Part
    columns: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())
    dialect: Dialect | None = None


def prepare(
    table: Table,
    targets: Sequence[str],
    *,
    kind: Kind | None = None,
    test: Table | None = None,
    weights: str | None = None,
    drop: Sequence[str] = (),
    seed: int = 0,
) -> Problem:
    """Return the problem of predicting `targets`; columns in `drop` are ignored, `weights` names a column of row weights.

    With a `test` table all of `table` is split into training and validation rows; else a fifth of the rows is test.

    Raises:
        DataError: anything about the data that a person must mend.
    """
    notes: list[str] = []
    frame = _with_target(table.frame, targets, notes)
    task = detect_task(frame, targets, kind)
    _check_absent([*drop, *([weights] if weights else [])], frame)
    features = frame.drop(columns=[*targets, *drop, *([weights] if weights else [])])
    ids = find_ids(features)
    notes += [f"column {name!r} has a different text in almost every row: taken for an id and left out" for name in ids]
    features = features.drop(columns=ids)
    if not len(features.columns):
        raise DataError("no column is left to learn from; give a table with features beside the target")
    raw = _raw_targets(task, frame)
    split = split_rows(raw, seed=seed, test=0.0 if test is not None else 0.2, validation=VALIDATION)
    task = standardised(task, frame.iloc[split.train])
    encoder = Encoder.fit(features.iloc[split.train])
    row_weights = _weights(frame, weights)

    def part(rows: np.ndarray) -> Part:
        x, y = encoder.transform(features.iloc[rows]), task.encode(frame.iloc[rows])
        return Part(x, y, None if row_weights is None else row_weights[rows])

    train = part(split.train)
    tested = part(split.test) if test is None else _test_part(test, task, encoder, weights, notes)
    notes += warnings_of(features, task, task.encode(frame))
    return Problem(
        task, encoder, train, part(split.validation), tested, tuple(features.columns), tuple(notes), table.dialect
    )


def _with_target(frame: Any, targets: Sequence[str], notes: list[str]) -> pd.DataFrame:
    present = [name for name in targets if name in frame.columns]
    missing = frame[present].isna().any(axis=1)
    if len(present) < len(targets) or missing.all() or not missing.any():
        return frame
    notes.append(f"{int(missing.sum())} rows without a target were left out")
    return frame[~missing].reset_index(drop=True)


def _check_absent(names: Sequence[str], frame: pd.DataFrame) -> None:
    for name in names:
        if name not in frame.columns:
            raise DataError(
                f"there is no column {name!r} to drop or to weight by; choose from "
                f"{', '.join(map(repr, frame.columns[:8]))}"
            )


def _raw_targets(task: Task, frame: pd.DataFrame) -> np.ndarray:
    return task.encode(frame)


def _weights(frame: pd.DataFrame, name: str | None) -> np.ndarray | None:
    """Row weights with mean 1, float32 (n,)."""
    if name is None:
        return None
    values: Any = frame[name]
    numeric = pd.api.types.is_numeric_dtype(values)
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan) if numeric else np.array([np.nan])
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.sum() > 0):
        raise DataError(f"the weights in column {name!r} must be numbers of at least 0 in every row; mend them")
    return (numbers / numbers.mean()).astype(np.float32)


def _test_part(test: Table, task: Task, encoder: Encoder, weights: str | None, notes: list[str]) -> Part:
    lacking = [name for name in task.targets if name not in test.frame.columns]
    if lacking:
        raise DataError(
            f"the test table {test.source} lacks the target column {lacking[0]!r}; add it, or leave --test out"
        )
    frame = _with_target(test.frame, task.targets, notes)
    if task.kind == "classification":
        frame = _same_labels(frame, task, notes)
    return Part(encoder.transform(frame), task.encode(frame), _weights(frame, weights))


def _same_labels(frame: pd.DataFrame, task: Task, notes: list[str]) -> pd.DataFrame:
    """UCI Adult's test labels carry a full stop that its training labels lack; such a difference is no new class."""
    name = task.targets[0]
    values: Any = frame[name]
    texts = [label_text(value) for value in values]
    stripped = [text.removesuffix(".") for text in texts]
    if set(texts) <= set(task.classes) or not set(stripped) <= set(task.classes):
        return frame
    notes.append(f"test labels such as {texts[0]!r} were read as {stripped[0]!r}")
    return frame.assign(**{name: pd.Series(stripped, dtype="object", index=frame.index)})
