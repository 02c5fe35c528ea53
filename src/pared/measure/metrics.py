"""Metrics by name: what can choose a point, and what is reported beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pared.errors import ConfigError

#: (targets, predictions, probabilities or None, weights or None) -> value. Classification: labels (n,), probabilities
#: (n, classes). Regression: values (n, t) in their own units, no probabilities.
Function = Callable[[np.ndarray, np.ndarray, Any, Any], float]


@dataclass(frozen=True)
class Metric:
    """A named figure; `points` says that differences are told in hundredths (accuracy points, hundredths of R²)."""

    name: str
    label: str
    kind: str
    function: Function
    greater_is_better: bool = True
    points: bool = True

    def format(self, value: float) -> str:
        """Return the value as a person reads it."""
        if value != value:
            return "–"
        if self.points and self.kind == "classification":
            return f"{100 * value:.1f} %"
        return f"{value:.3f}" if self.points else f"{value:.4g}"

    def goodness(self, value: float) -> float:
        """Return the value with the sign that makes larger better."""
        return value if self.greater_is_better else -value


def _accuracy(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    return float(np.average(y == p, weights=w))


def _balanced_accuracy(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    hits = (y == p).astype(float)
    weights = np.ones(len(y)) if w is None else w
    return float(np.mean([np.average(hits[y == c], weights=weights[y == c]) for c in np.unique(y)]))


def _roc_auc(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    """Binary, or the mean over classes of one against the rest; classes absent from `y` are left out."""
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [_area(y == c, probabilities[:, c], w) for c in classes if 0 < (y == c).sum() < len(y)]
    return float(np.mean(areas)) if areas else float("nan")


def _area(positive: np.ndarray, score: np.ndarray, w: Any) -> float:
    weights = np.ones(len(positive)) if w is None else w
    values, inverse = np.unique(score, return_inverse=True)
    up = np.bincount(inverse, weights * positive, len(values))
    down = np.bincount(inverse, weights * ~positive, len(values))
    below = np.concatenate([[0.0], np.cumsum(down)[:-1]])
    return float((up * (below + down / 2)).sum() / (up.sum() * down.sum()))


def _f1(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    """Of class 1 for two classes, else the mean over the classes seen."""
    weights = np.ones(len(y)) if w is None else w
    seen = np.unique(np.concatenate([y, p]))
    classes = [1] if probabilities is not None and probabilities.shape[1] == 2 else seen
    scores = []
    for c in classes:
        hit = weights[(y == c) & (p == c)].sum()
        total = weights[y == c].sum() + weights[p == c].sum()
        scores.append(2 * hit / total if total else 0.0)
    return float(np.mean(scores))


def _log_loss(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    chosen = np.clip(probabilities[np.arange(len(y)), y].astype(np.float64), 1e-15, 1.0)
    return float(np.average(-np.log(chosen), weights=w))


def _brier(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    """Mean squared distance of the probabilities to the truth, over all classes, halved: the usual one for two."""
    truth = np.eye(probabilities.shape[1])[y]
    return float(np.average(((probabilities - truth) ** 2).sum(1) / 2, weights=w))


def _calibration_error(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    """Expected calibration error of the predicted class over 15 equal bins (Naeini et al. 2015)."""
    confidence = probabilities.max(1)
    weights = np.ones(len(y)) if w is None else w
    bins = np.minimum((confidence * 15).astype(int), 14)
    gap = np.bincount(bins, weights * ((y == p) - confidence), 15)
    return float(np.abs(gap).sum() / weights.sum())


def _r2(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    """Mean over targets of the variance explained."""
    residual = np.average((y - p) ** 2, axis=0, weights=w)
    variance = np.average((y - np.average(y, axis=0, weights=w)) ** 2, axis=0, weights=w)
    safe = np.where(variance > 0, variance, 1.0)
    return float(np.mean(np.where(variance > 0, 1 - residual / safe, 0.0)))


def _mae(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    return float(np.mean(np.average(np.abs(y - p), axis=0, weights=w)))


def _rmse(y: np.ndarray, p: np.ndarray, probabilities: Any, w: Any) -> float:
    return float(np.mean(np.sqrt(np.average((y - p) ** 2, axis=0, weights=w))))


_C, _R = "classification", "regression"

#: Every metric by name; the first of each kind is the usual one.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", _C, _accuracy),
        Metric("balanced_accuracy", "balanced accuracy", _C, _balanced_accuracy),
        Metric("roc_auc", "ROC AUC", _C, _roc_auc),
        Metric("f1", "F1", _C, _f1),
        Metric("log_loss", "log-loss", _C, _log_loss, False, False),
        Metric("brier", "Brier score", _C, _brier, False, False),
        Metric("calibration_error", "calibration error", _C, _calibration_error, False),
        Metric("r2", "R²", _R, _r2),
        Metric("mae", "MAE", _R, _mae, False, False),
        Metric("rmse", "RMSE", _R, _rmse, False, False),
    )
}


def resolve_metric(name: str | None, kind: str) -> Metric:
    """Return the metric `name`, or the usual one of the task's kind.

    Raises:
        ConfigError: no such metric for this kind.
    """
    fitting = {key: metric for key, metric in METRICS.items() if metric.kind == kind}
    if name is None:
        return next(iter(fitting.values()))
    if name not in fitting:
        raise ConfigError(f"metric {name!r} does not fit {kind}; choose one of {', '.join(fitting)}")
    return fitting[name]


def score_all(kind: str, y: np.ndarray, predictions: np.ndarray, probabilities: Any, w: Any = None) -> dict[str, float]:
    """Return every metric of the kind, by name."""
    return {name: m.function(y, predictions, probabilities, w) for name, m in METRICS.items() if m.kind == kind}
