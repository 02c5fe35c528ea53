"""Judge networks on encoded rows: scores, intervals, latency, and which point to choose."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pared.data.problem import Part
from pared.data.task import Task
from pared.measure.latency import model_latency_us
from pared.measure.metrics import Metric, score_all
from pared.measure.size import macs, parameters, stored_bytes
from pared.measure.statistics import bootstrap_interval, share_interval
from pared.train.arrays import Arrays, predict
from pared.train.point import Point
from pared.train.settings import Settings


@dataclass(frozen=True)
class Judge:
    """Scores outputs of a task's networks by `metric`."""

    task: Task
    metric: Metric

    def answers(self, outputs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return targets, predictions and probabilities as metrics take them, from raw outputs and encoded targets."""
        if self.task.kind == "regression":
            return self.task.values(y), self.task.values(outputs), None
        return y, outputs.argmax(1), softmax(outputs)

    def score(self, outputs: Tensor, y: Tensor, w: Tensor | None) -> float:
        """Return the metric with the sign that makes larger better; undefined counts as worst."""
        targets, predictions, probabilities = self.answers(outputs.cpu().numpy(), y.cpu().numpy())
        weights = None if w is None else w.cpu().numpy()
        value = self.metric.goodness(self.metric.function(targets, predictions, probabilities, weights))
        return value if value == value else float("-inf")

    def baseline(self, train: Part, part: Part) -> float:
        """Return the score on `part` of answering the same for every row: the class shares, or the mean."""
        if self.task.kind == "regression":
            constant = np.zeros((1, part.y.shape[1]), dtype=np.float32)
        else:
            shares = np.bincount(train.y, minlength=len(self.task.classes)) + 1e-9
            constant = np.log(shares / shares.sum())[None].astype(np.float32)
        outputs = torch.from_numpy(np.repeat(constant, len(part), axis=0))
        return self.score(outputs, torch.from_numpy(part.y), None)

    def all_scores(self, outputs: np.ndarray, part: Part) -> dict[str, float]:
        """Return every metric of the task on `part`."""
        return score_all(self.task.kind, *self.answers(outputs, part.y), part.w)

    def interval(self, outputs: np.ndarray, part: Part, seed: int, resamples: int = 300) -> tuple[float, float]:
        """Return the 95 % interval of the metric on `part`: exact for accuracy, by bootstrap for other metrics.

        A classification's figure that is the same in every resample, as a perfect one, has the exact interval of such a
        share of the rarest class: resampling rows that are all alike says nothing.
        """
        targets, predictions, probabilities = self.answers(outputs, part.y)
        if self.metric.name == "accuracy" and len(part):
            weights = np.ones(len(part)) if part.w is None else part.w.astype(np.float64)
            share = float(np.average(targets == predictions, weights=weights))
            return share_interval(min(share, 1.0), float(weights.sum() ** 2 / (weights**2).sum()))

        def figure(rows: np.ndarray) -> float:
            chosen = None if probabilities is None else probabilities[rows]
            weights = None if part.w is None else part.w[rows]
            return self.metric.function(targets[rows], predictions[rows], chosen, weights)

        low, high = bootstrap_interval(figure, len(part), seed=seed, resamples=resamples)
        if low == high and self.task.kind == "classification" and self.metric.points:
            rarest = np.unique(targets, return_counts=True)[1].min()
            low, high = share_interval(low, float(rarest))
        return low, high


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Return probabilities, float64 (n, classes), of logits."""
    shifted = np.exp(outputs.astype(np.float64) - outputs.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def arrays(part: Part) -> Arrays:
    """Return a part's rows as tensors."""
    w = None if part.w is None else torch.from_numpy(part.w)
    return Arrays(torch.from_numpy(part.x), torch.from_numpy(part.y), w)


def measure_point(judge: Judge, point: Point, test: Part, *, file: str, seed: int) -> dict[str, Any]:
    """Return the record of a point, as in summary.json: size, scores, test interval, latency."""
    x = torch.from_numpy(test.x).index_select(1, point.inputs)
    outputs = predict(point.model, x).numpy()
    scores = judge.all_scores(outputs, test)
    batch = x[:256] if len(x) >= 256 else x.repeat(-(-256 // len(x)), 1)[:256]
    return {
        "params": parameters(point.model),
        "macs": macs(point.model, x[:1]),
        "bytes": stored_bytes(point.model),
        "inputs": len(point.inputs),
        "hidden": point.hidden,
        "val_score": judge.metric.goodness(point.score),
        "val_loss": point.loss,
        "test_score": scores[judge.metric.name],
        "latency_us_1": model_latency_us(point.model, x[:1]),
        "latency_us_256": model_latency_us(point.model, batch),
        "file": file,
        "epoch": point.epoch,
        "strength": point.strength,
        "test_metrics": scores,
        "test_interval": list(judge.interval(outputs, test, seed)),
    }


def choose(
    judge: Judge, start: dict[str, Any], front: list[dict[str, Any]], settings: Settings, error: float
) -> tuple[int, str]:
    """Return which record of the front to choose, and why, by validation scores only.

    With no wish stated: the smallest point within one standard error (`error`) of the best (Breiman et al. 1984).
    """
    metric = judge.metric
    goodness = [metric.goodness(record["val_score"]) for record in front]
    wishes = [
        ("params", settings.max_params, "parameters"),
        ("latency_us_1", settings.max_latency, "µs a row"),
    ]
    allowed = [i for i in range(len(front)) if all(limit is None or front[i][key] <= limit for key, limit, _ in wishes)]
    stated = [f"at most {limit:g} {unit}" for _, limit, unit in wishes if limit is not None]
    if not allowed:
        return len(front) - 1, f"no point has {' and '.join(stated)}; this is the smallest there is"
    if settings.max_drop is not None:
        unit = settings.max_drop / 100 if metric.points else settings.max_drop
        floor = metric.goodness(start["val_score"]) - unit
        within = [i for i in allowed if goodness[i] >= floor]
        stated.append(
            f"within {settings.max_drop:g} point{'s' * (settings.max_drop != 1)} of the dense reference on validation"
        )
        if within:
            return max(within), f"the smallest point {' and '.join(stated)}"
        best = max(allowed, key=lambda i: (goodness[i], -front[i]["val_loss"]))
        return best, f"no point is {' and '.join(stated)}; this is the best on validation"
    if stated:
        return max(
            allowed, key=lambda i: (goodness[i], -front[i]["val_loss"])
        ), f"the best on validation with {' and '.join(stated)}"
    top = max(goodness)
    chosen = max(i for i in allowed if goodness[i] >= top - error)
    return chosen, f"the smallest point within one standard error ({metric.format(error)}) of the best on validation"
