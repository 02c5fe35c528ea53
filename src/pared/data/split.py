"""Training, validation and test rows."""

from dataclasses import dataclass

import numpy as np

from pared.errors import DataError

#: Shares of all rows.
VALIDATION, TEST = 0.15, 0.2


@dataclass(frozen=True)
class Split:
    """Row numbers, sorted, disjoint, int64."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(y: np.ndarray, *, seed: int, validation: float = VALIDATION, test: float = TEST) -> Split:
    """Split the rows of targets `y`, (n,) labels or (n, t) values, stratified by class or by quantile.

    `validation` and `test` are shares of all rows in [0, 1). Every class with at least three rows is in all
    three parts; several regression targets are stratified by the first.

    Raises:
        DataError: fewer than 10 rows.
    """
    rows = len(y)
    if rows < 10:
        raise DataError(f"{rows} rows with a target are too few to learn and judge; give at least 10")
    rng = np.random.default_rng(seed)
    strata = y if y.ndim == 1 and y.dtype.kind in "iu" else _quantiles(y)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        held = _counts(len(members), validation, test)
        parts[2].extend(members[: held[1]])
        parts[1].extend(members[held[1] : sum(held)])
        parts[0].extend(members[sum(held) :])
    train, val, tested = (np.sort(np.array(part, dtype=np.int64)) for part in parts)
    return Split(train, val, tested)


def _counts(rows: int, validation: float, test: float) -> tuple[int, int]:
    counts = [round(rows * validation), round(rows * test)]
    if rows >= 3:
        counts = [max(1, count) if share else 0 for count, share in zip(counts, (validation, test), strict=True)]
    while sum(counts) >= rows and any(counts):
        counts[counts.index(max(counts))] -= 1
    return counts[0], counts[1]


def _quantiles(y: np.ndarray) -> np.ndarray:
    values = y if y.ndim == 1 else y[:, 0]
    bins = min(10, max(1, len(values) // 10))
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, values)
