"""Intervals and tests: of one network against another, over data sets, and of what neurons respond to.

What is more than a formula is SciPy's, which `pip install 'pared[table]'` brings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import erfc, sqrt
from typing import Any

import numpy as np

from pared.errors import ConfigError


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


def share_interval(share: float, trials: float, *, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share seen in `trials` trials (Clopper and Pearson 1934); it covers at least `level`.

    Of weighted rows, `share` is the weighted one and `trials` their effective number, (Σw)² / Σw², which need not be
    whole (Korn and Graubard 1998).

    Raises:
        ConfigError: a share outside [0, 1], or fewer than no trials.
    """
    if not 0.0 <= share <= 1.0 or not trials >= 0.0:
        raise ConfigError(f"expected a share in [0, 1] of at least 0 trials, got {share} and {trials}")
    from scipy.special import betaincinv

    hits, misses, tail = share * trials, (1.0 - share) * trials, (1.0 - level) / 2.0
    low = float(betaincinv(hits, misses + 1.0, tail)) if hits > 0.0 else 0.0
    high = float(betaincinv(hits + 1.0, misses, 1.0 - tail)) if misses > 0.0 else 1.0
    return low, high


def mcnemar(first_right: np.ndarray, second_right: np.ndarray, *, exact: bool = True) -> float:
    """Return the two-sided p-value that two classifiers err alike on the same samples (McNemar 1947).

    By the binomial distribution of the samples that one of the two has right, or, not `exact`, by the chi-squared one with
    Edwards's correction for continuity (1948), which is for 25 such samples and more.

    Shapes: both booleans (n,), whether an answer was right.

    Raises:
        ConfigError: the shapes differ.
    """
    if first_right.shape != second_right.shape or first_right.ndim != 1:
        raise ConfigError(f"expected hits (n,) on the same samples, got {first_right.shape} and {second_right.shape}")
    first = int((first_right & ~second_right).sum())
    second = int((~first_right & second_right).sum())
    trials = first + second
    if not trials:
        return 1.0
    if not exact:
        statistic = max(0, abs(first - second) - 1) ** 2 / trials
        return erfc(sqrt(statistic / 2))
    return _binomial(min(first, second), trials)


def sign_test(differences: np.ndarray) -> float:
    """Return the exact two-sided p-value that differences are as often above 0 as below it; zeros are left out.

    Shapes: differences (n,), one for each data set.
    """
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    return _binomial(min(above, below), above + below)


def _binomial(fewer: int, trials: int) -> float:
    """The two-sided p-value of one of two equally likely outcomes being there `fewer` times, at most half of all."""
    ways = one = 1
    for k in range(fewer):
        one = one * (trials - k) // (k + 1)
        ways += one
    return min(1.0, 2 * (ways / 2**trials))


def signed_rank_test(differences: np.ndarray) -> float:
    """Return the two-sided p-value that differences lie around 0 (Wilcoxon 1945); zeros are left out.

    Exact where there are at most 50 without ties, as SciPy does it.

    Shapes: differences (n,), one for each data set.
    """
    from scipy.stats import wilcoxon

    kept = differences[differences != 0]
    found: Any = wilcoxon(kept) if len(kept) else None  # SciPy's stubs know it as a tuple of anything
    return 1.0 if found is None else float(found.pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values of several tests, each raised so that below alpha is below alpha for all together (Holm 1979).

    Shapes: (n,) -> (n,), in the same order.
    """
    count, order = len(p_values), np.argsort(p_values, kind="stable")
    raised = np.minimum(1.0, np.maximum.accumulate(p_values[order] * np.arange(count, 0, -1)))
    found = np.empty(count)
    found[order] = raised
    return found


def specialised(activations: np.ndarray, classes: np.ndarray, *, level: float = 1e-7) -> np.ndarray:
    """Return which neurons tell a class from all others: their activations on it are larger or smaller (rank-sum test).

    For each neuron and class the p-value of Wilcoxon's rank-sum test, by its normal approximation with ties accounted for, is
    held against `level`. A neuron that gives NaN tells none. The mean over neurons, and then over classes, is the paper's
    specialisation. A class needs about thirty samples to get below 1e-7 at all.

    Shapes: activations (n, neurons), classes (n,) -> booleans (neurons, classes that there are, in ascending order).

    Raises:
        ConfigError: shapes do not fit.

    Source: per-weight class-based learning rates, section on specialisation (table 3).
    """
    if activations.ndim != 2 or classes.shape != activations.shape[:1]:
        raise ConfigError(
            f"expected activations (n, neurons) and classes (n,), got {activations.shape}, {classes.shape}"
        )
    there = classes[:, None] == np.unique(classes)
    parts = [_told_apart(activations[:, at : at + 256], there) for at in range(0, activations.shape[1], 256)]
    return np.concatenate(parts) < level if parts else np.zeros((0, there.shape[1]), dtype=bool)


def _told_apart(activations: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return the p-values of rank-sum tests of each column (n, m) on each set of rows (n, k) against the others: (m, k)."""
    from scipy.special import erfc

    ranks, ties = _ranked(activations)
    n, own = len(ranks), there.sum(0).astype(np.float64)
    others = n - own
    u = ranks.T @ there - own * (own + 1) / 2
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # of neurons that give one number only, and classes without others
        variance = own * others / 12 * (n + 1 - ties[:, None] / (n * (n - 1)))
        z = (u - own * others / 2) / np.sqrt(variance)
    z[np.isnan(activations).any(0)] = 0.0
    return erfc(np.abs(np.nan_to_num(z, nan=0.0)) / np.sqrt(2))


def _ranked(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks from 1 within each column, those of equal numbers the mean of theirs, and the sum of t³ - t over ties."""
    order = x.argsort(axis=0, kind="stable")
    ordered, place = np.take_along_axis(x, order, 0), np.arange(len(x))[:, None]
    new = np.ones(x.shape, dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = np.maximum.accumulate(np.where(new, place, 0))
    ends = np.concatenate([new[1:], np.ones((1, x.shape[1]), dtype=bool)]) if len(x) else new
    last = np.minimum.accumulate(np.where(ends, place, len(x))[::-1])[::-1]
    ranks = np.empty(x.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, 0)
    return ranks, ((last - first + 1.0) ** 2 - 1).sum(0)


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of methods over data sets, 1 the best; Friedman's p-value that all are alike; Nemenyi's critical difference."""

    mean: tuple[float, ...]
    p_value: float
    critical_difference: float


def ranks(scores: np.ndarray, *, level: float = 0.05) -> Ranks:
    """Compare methods over data sets by their ranks: two differ if their mean ranks do by the critical difference.

    Shapes: scores (data sets, methods), larger is better; ties share a rank.

    Raises:
        ConfigError: there are fewer than 2 data sets or 3 methods (for two there is `signed_rank_test`).

    Source: Demsar (2006), Statistical comparisons of classifiers over multiple data sets, sections 3.2.2 and 3.2.3.
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    if scores.ndim != 2 or scores.shape[0] < 2 or scores.shape[1] < 3:
        raise ConfigError(f"expected scores of at least 2 data sets and 3 methods, (sets, methods); got {scores.shape}")
    sets, methods = scores.shape
    mean = rankdata(-scores, axis=1).mean(0)
    alike = bool((scores == scores[:, :1]).all())
    p_value = 1.0 if alike else float(friedmanchisquare(*scores.T).pvalue)
    wide = float(studentized_range.ppf(1 - level, methods, np.inf)) / sqrt(2)
    return Ranks(tuple(mean.tolist()), p_value, wide * sqrt(methods * (methods + 1) / (6 * sets)))
