"""Intervals and tests."""

from collections.abc import Callable
from math import comb

import numpy as np


def bootstrap_interval(
    figure: Callable[[np.ndarray], float], rows: int, *, seed: int, resamples: int = 500, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of `figure(indices)` over `rows` rows (Efron and Tibshirani 1993).

    `figure` takes row numbers drawn with replacement, int64 (rows,).
    """
    rng = np.random.default_rng(seed)
    values = np.array([figure(rng.integers(0, rows, rows)) for _ in range(resamples)])
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """Return the exact two-sided p-value that two classifiers err alike, from boolean (n,) hits (McNemar 1947)."""
    first = int((first_right & ~second_right).sum())
    second = int((~first_right & second_right).sum())
    trials = first + second
    if not trials:
        return 1.0
    tail = sum(comb(trials, k) for k in range(min(first, second) + 1)) / 2**trials
    return min(1.0, 2 * tail)
