"""Warnings a careful person would give before trusting a table."""

from typing import Any

import numpy as np
import pandas as pd

from pared.data.task import Task

#: A single column that predicts this well by itself, while the majority does not, is suspected of leaking the target.
LEAK = 0.995


def find_ids(frame: pd.DataFrame) -> list[str]:
    """Return the text columns whose values are all different, or nearly: names and codes that teach nothing."""
    ids = []
    for name in frame.columns:
        values: Any = frame[name].dropna()
        text = not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values))
        if text and len(values) >= 20 and values.nunique() > 0.9 * len(values) and not _reads_otherwise(values):
            ids.append(str(name))
    return ids


def _reads_otherwise(values: Any) -> bool:
    """Whether the texts are dates, or numbers with a few mistakes, which the encoder will speak of."""
    dates = values.head(20).astype(str).str.match(r"^\d{4}-\d{2}-\d{2}").all()
    numbers: Any = pd.to_numeric(values, errors="coerce")
    return bool(dates) or bool(numbers.notna().mean() > 0.9)


def warnings_of(frame: Any, task: Task, y: np.ndarray) -> list[str]:
    """Return what is suspicious in the feature columns of `frame` for targets `y`, one sentence each."""
    found = [*_numbered(frame), *_leaks(frame, task, y), *_empty(frame), *_twins(frame)]
    if task.kind == "classification":
        shares = np.bincount(y, minlength=len(task.classes)) / len(y)
        if shares.min() < 0.01:
            rare = task.classes[int(shares.argmin())]
            found.append(
                f"class {rare!r} has only {shares.min():.2%} of the rows: look at balanced accuracy, not accuracy alone"
            )
    return found


def _numbered(frame: pd.DataFrame) -> list[str]:
    found = []
    for name in frame.columns:
        values: Any = frame[name]
        if pd.api.types.is_integer_dtype(values) and len(values) >= 20:
            steps = np.diff(values.to_numpy())
            if values.nunique() == len(values) and (steps == 1).all():
                found.append(
                    f"column {name!r} numbers the rows: it looks like an id, which cannot help on new rows; drop it"
                )
    return found


def _empty(frame: pd.DataFrame) -> list[str]:
    shares = frame.isna().mean()
    return [f"column {name!r} is missing in {share:.0%} of the rows" for name, share in shares.items() if share > 0.5]


def _twins(frame: pd.DataFrame) -> list[str]:
    count = int(frame.duplicated().sum())
    if count > 0.05 * len(frame):
        return [
            f"{count} of {len(frame)} rows repeat an earlier row: copies in training and test rows flatter the test "
            "score"
        ]
    return []


def _leaks(frame: pd.DataFrame, task: Task, y: np.ndarray) -> list[str]:
    found = []
    for name in frame.columns:
        values: Any = frame[name]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
            suspicious = _separates(numbers, task, y)
        else:
            suspicious = task.kind == "classification" and _tells(values, y)
        if suspicious:
            found.append(
                f"column {name!r} by itself predicts the target almost perfectly: make sure it is known before the "
                "target is, or drop it"
            )
    return found


def _separates(numbers: np.ndarray, task: Task, y: np.ndarray) -> bool:
    known = ~np.isnan(numbers) & ~np.isinf(numbers)
    if known.sum() < 20 or numbers[known].std() == 0:
        return False
    if task.kind == "regression":
        return any(
            abs(np.corrcoef(numbers[known], column[known])[0, 1]) > 0.9995 for column in y.T if column[known].std() > 0
        )
    # Sorted by the column, a leaked class changes only as often as there are classes.
    ordered = y[known][np.argsort(numbers[known], kind="stable")]
    changes = int((np.diff(ordered) != 0).sum())
    majority = np.bincount(ordered).max() / len(ordered)
    return changes <= len(task.classes) - 1 and majority < 0.9 and known.sum() >= 50


def _tells(values: Any, y: np.ndarray) -> bool:
    texts = values.astype(str)
    if texts.nunique() > len(texts) / 5 or len(texts) < 50:
        return False
    table = pd.crosstab(texts, y)
    right = table.max(axis=1).sum() / len(texts)
    majority = np.bincount(y).max() / len(y)
    return right >= LEAK and majority < 0.9
