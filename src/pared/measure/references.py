"""What a person would otherwise use, on the same rows: a linear model and gradient boosting."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pared.measure.latency import latency_us
from pared.process import silent

#: Trees that boosting may grow, and iterations of logistic regression times classes: up to 20 and 50 classes, no bound.
TREES, ITERATIONS = 2_000, 15_000

Judge = Callable[[np.ndarray, np.ndarray, Any, str], float]


def fit_references(
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
    kind: str,
    judge: Judge,
    *,
    better: Callable[[float], float],
    refit: bool,
    seed: int,
    weights: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return one record per reference: name, params, bytes, val_score, test_score, latencies.

    `parts` maps "train", "validation" and "test" to encoded inputs (n, d) and targets; `judge(targets, predictions,
    probabilities, part)` scores, `better` turns a score so that larger is better. The linear model's penalty is chosen
    on validation; with `refit` both are fitted once more on training and validation rows, as the networks are. Both cost as
    much as there are classes: with very many they are stopped early, and `limited` of a record says so.
    """
    records = []
    classes = 1 if kind == "regression" else len(np.unique(parts["train"][1]))
    limits = _limited(classes)
    for name, candidates in _families(kind, seed, classes).items():
        scored = []
        for make in candidates:
            model = _fit(make, *parts["train"], weights)
            scored.append((better(_score(model, kind, judge, parts, "validation")), make, model))
        best, make, model = max(scored, key=lambda item: item[0])
        both_weights = None
        if refit and weights is None:
            both = [np.concatenate([parts["train"][i], parts["validation"][i]]) for i in (0, 1)]
            model = _fit(make, both[0], both[1], both_weights)
        record = _record(name, model, kind, judge, parts, better(best))
        records.append(record | ({"limited": limits[name]} if name in limits else {}))
    return records


def _rounds(classes: int) -> int:
    return max(5, min(100, TREES // max(1, classes)))


def _iterations(classes: int) -> int:
    return max(30, min(300, ITERATIONS // max(1, classes)))


def _limited(classes: int) -> dict[str, str]:
    """Return of each reference that is stopped before its usual end, by name, where."""
    linear, boosting = _iterations(classes), _rounds(classes)
    found = {}
    if linear < 300:
        found["logistic regression"] = f"at most {linear} of 300 iterations, for {classes:,} classes"
    if boosting < 100:
        found["histogram gradient boosting"] = f"{boosting} of 100 rounds, for {classes:,} classes"
    return found


def _families(kind: str, seed: int, classes: int) -> dict[str, list[Callable[[], Any]]]:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multioutput import MultiOutputRegressor

    if kind == "classification":
        linear = [lambda C=C: LogisticRegression(C=C, max_iter=_iterations(classes)) for C in (0.01, 0.1, 1.0)]
        return {
            "logistic regression": linear,
            "histogram gradient boosting": [
                lambda: HistGradientBoostingClassifier(random_state=seed, max_iter=_rounds(classes))
            ],
        }
    ridge = [lambda alpha=alpha: Ridge(alpha=alpha) for alpha in (0.1, 1.0, 10.0, 100.0)]
    boosting = HistGradientBoostingRegressor(random_state=seed)
    return {
        "linear regression": ridge,
        "histogram gradient boosting": [lambda: MultiOutputRegressor(boosting)],
    }


def _fit(make: Callable[[], Any], x: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with silent(ConvergenceWarning):
        return make().fit(x, y, sample_weight=weights)


def _score(model: Any, kind: str, judge: Judge, parts: dict[str, tuple[np.ndarray, np.ndarray]], part: str) -> float:
    x, y = parts[part]
    if not len(y):
        return float("nan")
    if kind == "regression":
        predictions = np.asarray(model.predict(x)).reshape(y.shape)
        return judge(y, predictions, None, part)
    probabilities = np.zeros((len(y), int(max(y.max(), model.classes_.max())) + 1))
    probabilities[:, model.classes_] = model.predict_proba(x)
    return judge(y, probabilities.argmax(1), probabilities, part)


def _record(
    name: str, model: Any, kind: str, judge: Judge, parts: dict[str, tuple[np.ndarray, np.ndarray]], val_score: float
) -> dict[str, Any]:
    x = parts["train"][0]
    answer = model.predict_proba if kind == "classification" else model.predict
    params, size = _size(model)
    return {
        "name": name,
        "params": params,
        "bytes": size,
        "val_score": val_score,
        "test_score": _score(model, kind, judge, parts, "test"),
        "latency_us_1": latency_us(lambda: answer(x[:1])),
        "latency_us_256": latency_us(lambda: answer(x[:256])),
    }


def _size(model: Any) -> tuple[int, int]:
    """Numbers and bytes stored: coefficients, or six numbers a tree node (feature, threshold, value, children, …)."""
    if hasattr(model, "coef_"):
        count = int((model.coef_ != 0).sum()) + int(np.size(model.intercept_))
        return count, 8 * count
    boosters = getattr(model, "estimators_", [model])
    nodes = [tree.nodes for booster in boosters for trees in booster._predictors for tree in trees]
    return 6 * sum(len(n) for n in nodes), sum(n.nbytes for n in nodes)
