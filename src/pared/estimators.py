"""`ParedClassifier` and `ParedRegressor`: the front in scikit-learn's manner."""

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch.func import functional_call

from pared.data.encode import CLIP
from pared.data.problem import Part
from pared.data.split import split_rows
from pared.data.task import Task
from pared.errors import warn
from pared.measure.judge import Judge, arrays, softmax
from pared.measure.latency import threads
from pared.measure.metrics import resolve_metric
from pared.train.arrays import balanced
from pared.train.context import Context
from pared.train.learner import Front, learn_front
from pared.train.point import Point
from pared.train.settings import Settings


class _Pared(BaseEstimator):
    """What the two have in common: scaling, splitting off validation rows, learning and choosing.

    `front_` holds the points from largest to smallest, `model_` the chosen plain network, `inputs_` the features it
    asks for, `mean_` and `scale_` the standardisation of all features.
    """

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (500, 500),
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float = 2e-3,
        weight_decay: float = 1e-3,
        strength: tuple[float, float] = (1e-3, 3e-1),
        select: str = "features",
        fine_tune: int | None = None,
        max_params: int | None = None,
        max_drop: float | None = None,
        metric: str | None = None,
        class_weights: str | None = None,
        validation: float = 0.15,
        device: str = "cpu",
        random_state: int | np.random.RandomState | np.random.Generator | None = 0,
    ) -> None:
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.strength = strength
        self.select = select
        self.fine_tune = fine_tune
        self.max_params = max_params
        self.max_drop = max_drop
        self.metric = metric
        self.class_weights = class_weights
        self.validation = validation
        self.device = device
        self.random_state = random_state

    def _settings(self) -> Settings:
        names = ("hidden", "epochs", "batch_size", "lr", "weight_decay", "strength", "select", "fine_tune")
        chosen = {
            name: getattr(self, name)
            for name in (*names, "max_params", "max_drop", "metric", "class_weights", "device")
        }
        return Settings(**chosen, seed=_seed(self.random_state))

    def _learn(self, x: np.ndarray, y: np.ndarray, task: Task, sample_weight: Any) -> Self:
        settings = self._settings()
        metric = resolve_metric(settings.metric, task.kind)
        judge = Judge(task, metric)
        self.mean_ = x.mean(0)
        scale = x.std(0)
        self.scale_ = np.where(scale > 1e-12 * np.maximum(1.0, np.abs(x).max(0)), scale, 1.0)
        encoded = self._encode(x)
        weights = _checked_weights(sample_weight, len(x))
        train, val = self._parts(encoded, y, weights, settings.seed)
        rows = arrays(train)
        if settings.class_weights is not None and task.kind == "classification":
            rows = balanced(rows, task.outputs)
        context = Context(rows, arrays(val), task.outputs, settings, judge.score, judge.baseline(train, val))
        with threads(settings.threads):
            front = learn_front(context)
        if front.warning:
            warn(front.warning)
        self.front_ = [
            {"params": p.params, "hidden": p.hidden, "inputs": len(p.inputs), "val_score": p.score}
            for p in front.points
        ]
        self._keep(_choose(front, settings, metric.points), judge, val)
        return self

    def _parts(self, x: np.ndarray, y: np.ndarray, w: np.ndarray | None, seed: int) -> tuple[Part, Part]:
        """Training and validation rows; tables too small to split are judged on the rows they are learned from."""
        part = Part(x, y, w)
        if len(x) < 10 or not 0 < self.validation < 1:
            return part, part
        split = split_rows(y, seed=seed, validation=self.validation, test=0.0)
        pick = [Part(x[rows], y[rows], None if w is None else w[rows]) for rows in (split.train, split.validation)]
        return pick[0], pick[1]

    def _keep(self, point: Point, judge: Judge, val: Part) -> None:
        self.model_, self.inputs_ = point.model, point.inputs.numpy()
        importances = np.zeros(val.x.shape[1])
        rng = np.random.default_rng(0)
        x = val.x[:, self.inputs_]
        y = torch.from_numpy(val.y)

        def score(inputs: np.ndarray) -> float:
            with torch.inference_mode():
                return judge.score(point.model(torch.from_numpy(inputs)), y, None)

        whole = score(x)
        for i, feature in enumerate(self.inputs_):
            shuffled = x.copy()
            shuffled[:, i] = rng.permutation(x[:, i])
            importances[feature] = max(0.0, whole - score(shuffled))
        total = importances.sum()
        self.feature_importances_ = importances / total if total > 0 else importances

    def _encode(self, x: np.ndarray) -> np.ndarray:
        return np.clip((x - self.mean_) / self.scale_, -CLIP, CLIP).astype(np.float32)

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        x: Any = validate_data(self, X, reset=False, dtype=np.float64)
        inputs = torch.from_numpy(self._encode(x)[:, self.inputs_]).double()
        # In float64, so that a row's answer does not depend on the rows beside it beyond the last digits.
        weights = {name: value.double() for name, value in self.model_.state_dict().items()}
        with torch.inference_mode():
            return functional_call(self.model_, weights, (inputs,)).numpy()


class ParedClassifier(ClassifierMixin, _Pared):
    """A classifier that pares itself down; the chosen point answers, the whole front is in `front_`.

    `X` is (n, features) of finite numbers, `y` (n,) labels. Parameters are those of `Settings`; `validation` is the
    share of rows that chooses. `fit` warns if the run was too short for the network to lose half of its parameters.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from rows `X` and labels `y`; `sample_weight` (n,) is at least 0."""
        checked: Any = validate_data(self, X, y, dtype=np.float64)
        x, y = checked
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        task = Task("classification", ("y",), tuple(map(str, self.classes_)))
        return self._learn(x, labels.astype(np.int64), task, sample_weight)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities, (n, classes)."""
        return softmax(self._outputs(X))

    def predict(self, X: Any) -> np.ndarray:
        """Return labels, (n,)."""
        chosen = self._outputs(X).argmax(1)
        return self.classes_[chosen]


class ParedRegressor(MultiOutputMixin, RegressorMixin, _Pared):
    """A regressor of one or several targets that pares itself down; see `ParedClassifier`."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from rows `X` and targets `y`, (n,) or (n, t)."""
        checked: Any = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        x, y = checked
        self.flat_ = y.ndim == 1
        values = y.reshape(len(y), -1)
        mean, scale = values.mean(0), values.std(0)
        scale = np.where(scale > 0, scale, 1.0)
        names = tuple(f"y{i}" for i in range(values.shape[1]))
        self.task_ = Task("regression", names, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()))
        return self._learn(x, ((values - mean) / scale).astype(np.float32), self.task_, sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """Return targets in their own units, shaped like the `y` of `fit`."""
        outputs = self._outputs(X)
        values = self.task_.values(outputs)
        return values[:, 0] if self.flat_ else values


def _checked_weights(sample_weight: Any, rows: int) -> np.ndarray | None:
    if sample_weight is None:
        return None
    weights = np.broadcast_to(np.asarray(sample_weight, dtype=np.float64), (rows,))
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise ValueError("sample weights must be finite and at least zero, and not all zero")
    return (weights / weights.mean()).astype(np.float32)


def _choose(front: Front, settings: Settings, points: bool) -> Point:
    """The best on validation within `max_params`, or with `max_drop` the smallest within it."""
    allowed = [p for p in front.points if settings.max_params is None or p.params <= settings.max_params]
    if not allowed:
        return front.points[-1]
    best = max(allowed, key=lambda p: p.rank)
    if settings.max_drop is not None:
        floor = front.dense.score - settings.max_drop / (100 if points else 1)
        within = [p for p in allowed if p.score >= floor]
        return min(within, key=lambda p: p.params) if within else best
    return best


def _seed(random_state: int | np.random.RandomState | np.random.Generator | None) -> int:
    """Return the seed of one fit, as scikit-learn means it: None is drawn afresh from numpy's global state."""
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31 - 1))
    return int(random_state)
