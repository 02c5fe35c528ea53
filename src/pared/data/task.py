"""What is to be predicted."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from pared.errors import DataError

Kind = Literal["classification", "regression"]

#: Whole numbers with at most this many values are classes.
FEW = 20


@dataclass(frozen=True)
class Task:
    """Classification over `classes` (as text), or regression of `targets` standardised by `mean` and `scale`."""

    kind: Kind
    targets: tuple[str, ...]
    classes: tuple[str, ...] = ()
    class_type: Literal["string", "integer", "float", "boolean"] = "string"
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """Outputs of the network."""
        return len(self.classes) if self.kind == "classification" else len(self.targets)

    def encode(self, frame: pd.DataFrame) -> np.ndarray:
        """Return labels, int64 (n,), or standardised targets, float32 (n, t).

        Raises:
            DataError: a label that was not among the training ones.
        """
        if self.kind == "regression":
            values = frame[list(self.targets)].to_numpy(dtype=np.float64)
            return ((values - self.mean) / self.scale).astype(np.float32)
        numbers = {label: i for i, label in enumerate(self.classes)}
        texts = [label_text(value) for value in frame[self.targets[0]]]
        unknown = next((text for text in texts if text not in numbers), None)
        if unknown is not None:
            raise DataError(
                f"column {self.targets[0]!r}: the label {unknown!r} is not among those learned "
                f"({', '.join(self.classes[:8])}); mend it or drop the rows"
            )
        return np.array([numbers[text] for text in texts], dtype=np.int64)

    def labels(self, indices: np.ndarray) -> list[Any]:
        """Return the class labels, in the type they came in, of class numbers (n,)."""
        convert = {"string": str, "integer": lambda t: int(float(t)), "float": float, "boolean": lambda t: t == "True"}
        classes = [convert[self.class_type](text) for text in self.classes]
        return [classes[i] for i in indices]

    def values(self, outputs: np.ndarray) -> np.ndarray:
        """Return targets in their own units, float64 (n, t), from standardised outputs."""
        return outputs.astype(np.float64) * self.scale + self.mean

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        if self.kind == "classification":
            return {
                "kind": self.kind,
                "targets": list(self.targets),
                "classes": list(self.classes),
                "class_type": self.class_type,
            }
        return {"kind": self.kind, "targets": list(self.targets), "mean": list(self.mean), "scale": list(self.scale)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Task":
        """Rebuild a task from `to_json`'s data."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)


def label_text(value: Any) -> str:
    """Return a class label as text: 3 and 3.0 are both "3"."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def detect_task(frame: pd.DataFrame, targets: Sequence[str], kind: Kind | None = None) -> Task:
    """Return the task of predicting `targets`; `kind` overrides the guess; rows without a target are dropped before.

    Text, booleans and whole numbers with few values are classes; other numbers are regression. `mean` and `scale` of a
    regression are left at 0 and 1: `standardised` fits them on training rows.

    Raises:
        DataError: a target that is absent, constant, missing throughout, infinite or unfit for the kind.
    """
    for name in targets:
        _check_target(frame, name)
    kinds = [kind or _guess(frame[name]) for name in targets]
    if len(targets) > 1 and "classification" in kinds:
        name = targets[kinds.index("classification")]
        raise DataError(
            f"several targets can only be numbers to regress, and {name!r} holds classes; give one --target"
        )
    if kinds[0] == "classification":
        return _classification(frame[targets[0]], targets[0])
    for name in targets:
        _check_numbers(frame[name], name)
    return Task("regression", tuple(targets), mean=(0.0,) * len(targets), scale=(1.0,) * len(targets))


def standardised(task: Task, frame: pd.DataFrame) -> Task:
    """Return a regression task with mean and scale of the training rows `frame`, a classification unchanged."""
    if task.kind == "classification":
        return task
    values = frame[list(task.targets)].to_numpy(dtype=np.float64)
    scale = values.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    return Task("regression", task.targets, mean=tuple(values.mean(0).tolist()), scale=tuple(scale.tolist()))


def _check_target(frame: pd.DataFrame, name: str) -> None:
    if name not in frame.columns:
        close = difflib.get_close_matches(name, list(frame.columns), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(map(repr, frame.columns[:8]))}"
        raise DataError(f"there is no column {name!r} to predict; {hint}")
    column: Any = frame[name]
    if column.isna().all():
        raise DataError(f"the target column {name!r} is missing in every row; choose another --target")
    present = column.dropna()
    if len(present) == 1:
        raise DataError(f"the target column {name!r} is known in one row only; give at least 10 rows")
    if present.nunique() == 1:
        raise DataError(
            f"the target column {name!r} is {label_text(present.iloc[0])!r} in every row, so there is nothing to "
            "learn; choose another --target"
        )
    if pd.api.types.is_numeric_dtype(present) and np.isinf(present.to_numpy(dtype=float)).any():
        row = int(np.flatnonzero(np.isinf(present.to_numpy(dtype=float)))[0]) + 1
        raise DataError(f"the target column {name!r} is infinite in row {row}; mend or drop that row")


def _guess(column: Any) -> Kind:
    present = column.dropna()
    if pd.api.types.is_bool_dtype(present) or not pd.api.types.is_numeric_dtype(present):
        return "classification"
    values = present.to_numpy(dtype=float)
    whole = bool((values % 1 == 0).all())
    few = present.nunique() <= min(FEW, max(2, len(present) // 5))
    return "classification" if whole and few else "regression"


def _check_numbers(column: Any, name: str) -> None:
    if not pd.api.types.is_numeric_dtype(column):
        example = next(value for value in column.dropna())
        raise DataError(
            f"the target column {name!r} holds text such as {str(example)!r}, which cannot be regressed; use --task "
            "classification or mend the column"
        )


def _classification(column: Any, name: str) -> Task:
    present = column.dropna()
    texts = [label_text(value) for value in present]
    counts = pd.Series(texts).value_counts()
    single = [str(label) for label, count in counts.items() if count == 1]
    if len(counts) > max(100, len(texts) // 2):
        raise DataError(
            f"the target column {name!r} has {len(counts)} different values in {len(texts)} rows; classes must "
            "recur, use --task regression if it is a quantity"
        )
    if single:
        raise DataError(
            f"class {single[0]!r} of column {name!r} has one row only; classes need at least two, so merge it into "
            "another or drop that row"
        )
    kind = "boolean" if pd.api.types.is_bool_dtype(present) else "string"
    if kind == "string" and pd.api.types.is_numeric_dtype(present):
        kind = "integer" if all(_whole(text) for text in counts.index) else "float"
    order = sorted(counts.index, key=float) if kind in ("integer", "float") else sorted(map(str, counts.index))
    return Task("classification", (name,), classes=tuple(map(str, order)), class_type=kind)


def _whole(text: object) -> bool:
    return str(text).lstrip("-").isdigit()
