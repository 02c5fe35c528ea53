"""From a table to network inputs, learned on training rows and saved as plain JSON."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from pared.errors import DataError

VERSION = 1
#: Standardised numbers are cut off here: far enough out for the heavy tails of money and counts, near enough that one
#: wild value cannot dominate a prediction.
CLIP = 20.0
#: At most so many one-hot inputs a column; rarer levels share one "other" input.
MAX_LEVELS = 256
DATE_PARTS = ("year", "month", "day", "weekday", "hour", "days")
ColumnKind = Literal["number", "category", "boolean", "date"]


@dataclass(frozen=True)
class Column:
    """A source column that the network asks for; `levels` are the texts that have an input of their own."""

    name: str
    kind: ColumnKind
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """One network input: `op` is value, missing, equals, other or date; the rest is what that operation needs."""

    column: str
    op: Literal["value", "missing", "equals", "other", "date"]
    level: str | None = None
    part: str | None = None
    fill: float = 0.0
    mean: float = 0.0
    scale: float = 1.0
    clip: float = CLIP

    @property
    def name(self) -> str:
        """A name a person understands."""
        return {
            "value": self.column,
            "missing": f"{self.column} is missing",
            "equals": f"{self.column} = {self.level}",
            "other": f"{self.column} = (other)",
            "date": f"{self.column}: {self.part}",
        }[self.op]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data, only what the operation needs."""
        data: dict[str, Any] = {"column": self.column, "op": self.op}
        if self.level is not None:
            data["level"] = self.level
        if self.part is not None:
            data["part"] = self.part
        if self.op in ("value", "date"):
            data |= {"fill": self.fill, "mean": self.mean, "scale": self.scale, "clip": self.clip}
        return data


@dataclass(frozen=True)
class Encoder:
    """Turns rows of a table into float32 inputs (n, len(inputs)); the same spec runs in the generated `model.py`."""

    columns: tuple[Column, ...]
    inputs: tuple[Input, ...]

    @classmethod
    def fit(cls, frame: Any, *, max_levels: int = MAX_LEVELS) -> "Encoder":
        """Learn the encoding from training rows: medians, means, scales, levels; constant columns get no input.

        Raises:
            DataError: an infinite number, a numeric column with stray text, or no column that varies.
        """
        columns: list[Column] = []
        inputs: list[Input] = []
        for name in frame.columns:
            column, made = _fit_column(str(name), frame[name], max_levels)
            if made:
                columns.append(column)
                inputs += made
        if not inputs:
            raise DataError(
                "no column varies in the training rows, so there is nothing to learn from; give a table with features"
            )
        return cls(tuple(columns), tuple(inputs))

    def transform(self, frame: Any) -> np.ndarray:
        """Return the inputs of `frame`'s rows, float32 (n, len(inputs)); columns not asked for are ignored.

        Raises:
            DataError: a column is missing, or holds text or infinity where numbers are expected.
        """
        self.check(frame)
        kinds = {column.name: column for column in self.columns}
        cache: dict[str, Any] = {}
        out = np.empty((len(frame), len(self.inputs)), dtype=np.float32)
        for i, item in enumerate(self.inputs):
            if item.column not in cache:
                cache[item.column] = _parse(kinds[item.column], frame[item.column])
            out[:, i] = _compute(item, kinds[item.column], cache[item.column])
        return out

    def check(self, frame: Any) -> None:
        """Raise a DataError naming the columns that `frame` lacks."""
        lacking = [column.name for column in self.columns if column.name not in frame.columns]
        if lacking:
            close = difflib.get_close_matches(lacking[0], [str(name) for name in frame.columns], n=1)
            hint = f"; is {close[0]!r} meant to be {lacking[0]!r}?" if close else "; add them or rename"
            raise DataError(
                f"the table lacks {len(lacking)} of the {len(self.columns)} columns needed: "
                f"{', '.join(map(repr, lacking[:6]))}{hint}"
            )

    def unseen(self, frame: Any) -> dict[str, int]:
        """Return, for each category column with any, how many rows hold a level that no input stands for."""
        shared = {item.column for item in self.inputs if item.op == "other"}
        counts = {}
        for column in self.columns:
            if column.kind in ("category", "boolean") and column.name not in shared:
                texts = _texts(frame[column.name])
                known = set(column.levels)
                counts[column.name] = sum(text is not None and text not in known for text in texts)
        return {name: count for name, count in counts.items() if count}

    def keep(self, indices: Sequence[int]) -> "Encoder":
        """Return the encoder of the inputs `indices` only; columns that no input needs are no longer asked for."""
        inputs = tuple(self.inputs[int(i)] for i in indices)
        needed = {item.column for item in inputs}
        return Encoder(tuple(column for column in self.columns if column.name in needed), inputs)

    def group_sizes(self) -> list[int]:
        """Return how many neighbouring inputs each source column has, in order."""
        return [sum(item.column == column.name for item in self.inputs) for column in self.columns]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        columns = [
            {"name": c.name, "kind": c.kind} | ({"levels": list(c.levels)} if c.kind in ("category", "boolean") else {})
            for c in self.columns
        ]
        return {"version": VERSION, "columns": columns, "inputs": [item.to_json() for item in self.inputs]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Encoder":
        """Rebuild an encoder from `to_json`'s data."""
        columns = tuple(Column(c["name"], c["kind"], tuple(c.get("levels", ()))) for c in data["columns"])
        return cls(columns, tuple(Input(**item) for item in data["inputs"]))


def _fit_column(name: str, values: Any, max_levels: int) -> tuple[Column, list[Input]]:
    present = values.dropna()
    some_missing = [Input(name, "missing")] if 0 < len(present) < len(values) else []
    if present.nunique() < 2 and not (some_missing and len(present)):
        return Column(name, "number"), []
    if pd.api.types.is_bool_dtype(values) or (present.dtype == object and {type(v) for v in present} == {bool}):
        return Column(name, "boolean", ("False", "True")), [Input(name, "equals", level="True"), *some_missing]
    if pd.api.types.is_numeric_dtype(values):
        column = Column(name, "number")
        made = _scaled(Input(name, "value"), _numbers(column, values))
        return column, [*made, *some_missing]
    if pd.api.types.is_datetime64_any_dtype(values) or _dates(present) is not None:
        return _fit_date(name, values, some_missing)
    _refuse_stray_text(name, values)
    return _fit_category(name, values, some_missing, max_levels)


def _scaled(item: Input, numbers: np.ndarray) -> list[Input]:
    """The input with its statistics; none if the numbers do not vary."""
    known = numbers[~np.isnan(numbers)]
    fill = float(np.median(known))
    filled = np.where(np.isnan(numbers), fill, numbers)
    scale = float(filled.std())
    if not scale > 1e-12 * max(1.0, float(np.abs(filled).max())):
        return []
    return [Input(item.column, item.op, part=item.part, fill=fill, mean=float(filled.mean()), scale=scale)]


def _fit_date(name: str, values: Any, some_missing: list[Input]) -> tuple[Column, list[Input]]:
    column = Column(name, "date")
    moments = _parse(column, values)
    made = [scaled for part in DATE_PARTS for scaled in _scaled(Input(name, "date", part=part), _part(moments, part))]
    return column, [*made, *some_missing]


def _fit_category(name: str, values: Any, some_missing: list[Input], max_levels: int) -> tuple[Column, list[Input]]:
    counts = pd.Series([text for text in _texts(values) if text is not None]).value_counts()
    rare = max(2, min(10, len(values) // 1_000))
    frequent = [str(level) for level, count in counts.items() if count >= rare][:max_levels]
    levels = tuple(sorted(frequent if len(counts) > 2 else map(str, counts.index)))
    kind: ColumnKind = "boolean" if len(levels) == len(counts) == 2 else "category"
    shown = levels[1:] if kind == "boolean" else levels
    made = [Input(name, "equals", level=level) for level in shown]
    other = [Input(name, "other")] if 0 < len(levels) < len(counts) else []
    return Column(name, kind, levels), [*made, *other, *some_missing]


def _refuse_stray_text(name: str, values: Any) -> None:
    """A column of numbers with a few texts in it is a mistake in the data, not a category."""
    texts = _texts(values)
    stray = [(row, text) for row, text in enumerate(texts, 1) if text is not None and not _is_number(text)]
    known = sum(text is not None for text in texts)
    if known >= 20 and len(stray) < 0.05 * known:
        row, text = stray[0]
        raise DataError(
            f"column {name!r} holds numbers but {text!r} in row {row} of the training rows ({len(stray)} such); "
            "mend it, or leave it empty if it means missing"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _texts(values: Any) -> list[str | None]:
    from pared.data.task import label_text

    return [None if pd.isna(value) else label_text(value) for value in values]


def _dates(present: Any) -> Any:
    """The column as dates if every text is an ISO date or date and time, else None."""
    texts = present.astype(str)
    if not texts.head(50).str.match(r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?$").all():
        return None
    parsed = pd.to_datetime(texts, errors="coerce", format="ISO8601")
    return None if parsed.isna().any() else parsed


def _numbers(column: Column, values: Any) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(values):
        parsed: Any = pd.to_numeric(values, errors="coerce")
        bad = np.flatnonzero(parsed.isna().to_numpy() & values.notna().to_numpy())
        if len(bad):
            raise DataError(
                f"column {column.name!r} expects numbers, got {str(values.iloc[bad[0]])!r} in row {bad[0] + 1}; "
                "mend it, or leave it empty if it is missing"
            )
        values = parsed
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise DataError(
            f"column {column.name!r} is infinite in row {infinite[0] + 1}; mend it, or leave it empty if it is missing"
        )
    return numbers


def _parse(column: Column, values: Any) -> Any:
    """The raw material of a column's inputs: numbers with NaN, dates with NaT, or texts with None."""
    if column.kind == "number":
        return _numbers(column, values)
    if column.kind == "date":
        parsed = pd.to_datetime(
            values, errors="coerce", format=None if pd.api.types.is_datetime64_any_dtype(values) else "ISO8601"
        )
        bad = np.flatnonzero(parsed.isna().to_numpy() & values.notna().to_numpy())
        if len(bad):
            raise DataError(
                f"column {column.name!r} expects dates such as 2024-12-31, got {str(values.iloc[bad[0]])!r} in row "
                f"{bad[0] + 1}; mend it"
            )
        return parsed.dt.tz_localize(None) if getattr(parsed.dtype, "tz", None) is not None else parsed
    return np.array(_texts(values), dtype=object)


def _part(moments: Any, part: str) -> np.ndarray:
    if part == "days":
        return ((moments - pd.Timestamp(0)) / pd.Timedelta(days=1)).to_numpy(dtype=np.float64)
    return getattr(moments.dt, "day_of_week" if part == "weekday" else part).to_numpy(dtype=np.float64, na_value=np.nan)


def _compute(item: Input, column: Column, raw: Any) -> np.ndarray:
    if item.op in ("value", "date"):
        numbers = raw if item.op == "value" else _part(raw, item.part or "")
        filled = np.where(np.isnan(numbers), item.fill, numbers)
        return np.clip((filled - item.mean) / item.scale, -item.clip, item.clip)
    if item.op == "missing":
        return np.asarray(pd.isna(raw), dtype=np.float64)
    if item.op == "equals":
        return (raw == item.level).astype(np.float64)
    known = set(column.levels)
    return np.array([text is not None and text not in known for text in raw], dtype=np.float64)
