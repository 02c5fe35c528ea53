import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as oracle
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pared.data.problem import Part
from pared.data.task import Task
from pared.errors import ConfigError
from pared.measure.judge import Judge, choose
from pared.measure.latency import latency_us, model_latency_us, threads
from pared.measure.metrics import METRICS, resolve_metric, score_all
from pared.measure.size import macs, parameters, stored_bytes
from pared.measure.statistics import bootstrap_interval, mcnemar
from pared.train.settings import Settings


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 4), rows=st.integers(30, 80), weighted=st.booleans())
def test_classification_metrics_equal_scikit_learns(seed: int, classes: int, rows: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.integers(0, classes, rows - classes)]
    p = rng.dirichlet(np.ones(classes), rows).round(2) + 0.01
    p /= p.sum(1, keepdims=True)
    w = rng.random(rows) + 0.1 if weighted else None
    got, hard = score_all("classification", y, p.argmax(1), p, w), p.argmax(1)
    average = "binary" if classes == 2 else "macro"
    if classes == 2:
        area = oracle.roc_auc_score(y, p[:, 1], sample_weight=w)
    else:
        area = np.mean([oracle.roc_auc_score(y == c, p[:, c], sample_weight=w) for c in range(classes)])
    assert got["accuracy"] == pytest.approx(oracle.accuracy_score(y, hard, sample_weight=w))
    assert got["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(y, hard, sample_weight=w))
    assert got["f1"] == pytest.approx(oracle.f1_score(y, hard, average=average, sample_weight=w))
    assert got["log_loss"] == pytest.approx(oracle.log_loss(y, p, labels=range(classes), sample_weight=w))
    assert got["roc_auc"] == pytest.approx(area)
    if classes == 2:
        assert got["brier"] == pytest.approx(oracle.brier_score_loss(y, p[:, 1], sample_weight=w))
    assert 0 <= got["calibration_error"] <= 1


@given(seed=st.integers(0, 10**6), targets=st.integers(1, 3))
def test_regression_metrics_equal_scikit_learns(seed: int, targets: int) -> None:
    rng = np.random.default_rng(seed)
    y, p = rng.normal(size=(20, targets)), rng.normal(size=(20, targets))
    got = score_all("regression", y, p, None)
    assert got["r2"] == pytest.approx(oracle.r2_score(y, p))
    assert got["mae"] == pytest.approx(oracle.mean_absolute_error(y, p))
    assert got["rmse"] == pytest.approx(oracle.root_mean_squared_error(y, p))


def test_calibration_error_of_known_cases() -> None:
    y = np.array([1, 0, 1, 0])
    sure = np.array([[0.0, 1.0]] * 4)
    assert METRICS["calibration_error"].function(y, sure.argmax(1), sure, None) == pytest.approx(0.5)
    half = np.array([[0.49999, 0.50001]] * 4)
    assert METRICS["calibration_error"].function(y, half.argmax(1), half, None) == pytest.approx(0.0, abs=1e-4)


def test_metrics_are_chosen_shown_and_refused_by_name() -> None:
    assert resolve_metric(None, "classification").name == "accuracy"
    assert resolve_metric(None, "regression").name == "r2"
    with pytest.raises(ConfigError, match="choose one of r2, mae, rmse"):
        resolve_metric("accuracy", "regression")
    assert METRICS["accuracy"].format(0.9713) == "97.1 %"
    assert METRICS["r2"].format(0.5) == "0.500"
    assert METRICS["rmse"].goodness(2.0) == -2.0
    assert np.isnan(METRICS["roc_auc"].function(np.zeros(3, int), np.zeros(3, int), np.ones((3, 2)) / 2, None))


def test_bootstrap_covers_the_mean_of_normal_rows() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        rows = rng.normal(size=80)
        low, high = bootstrap_interval(lambda i, rows=rows: float(rows[i].mean()), 80, seed=seed, resamples=200)
        covered += low <= 0 <= high
    assert covered >= 51
    assert all(np.isnan(bootstrap_interval(lambda i: float("nan"), 5, seed=0, resamples=3)))


def _interval(metric: str, labels: list[int], right: list[bool], w: list[float] | None = None) -> tuple[float, float]:
    y = np.array(labels)
    outputs = np.where(np.array(right)[:, None], 1.0, -1.0) * np.where(np.arange(2) == y[:, None], 5.0, -5.0)
    part = Part(np.zeros((len(y), 1), np.float32), y, None if w is None else np.array(w, np.float32))
    task = Task("classification", ("y",), ("no", "yes"))
    return Judge(task, METRICS[metric]).interval(outputs.astype(np.float32), part, seed=0)


def test_no_number_of_right_answers_is_certain() -> None:
    labels = [0] * 24 + [1] * 12
    assert _interval("accuracy", labels, [True] * 36) == pytest.approx((0.9026, 1.0), abs=1e-4)  # R: binom.test(36, 36)
    assert _interval("accuracy", labels, [False] * 36) == pytest.approx((0.0, 0.0974), abs=1e-4)
    one_wrong = [True] * 35 + [False]
    assert _interval("accuracy", labels, one_wrong) == pytest.approx((0.8547, 0.9993), abs=1e-4)
    assert _interval("accuracy", labels, one_wrong, [2.0] * 36) == pytest.approx((0.8547, 0.9993), abs=1e-4)
    heavy = _interval("accuracy", labels, [True] * 36, [100.0] * 2 + [1e-3] * 34)  # of two rows, in effect
    assert heavy == pytest.approx((0.1581, 1.0), abs=1e-3)
    for metric in ("balanced_accuracy", "f1", "roc_auc"):
        assert _interval(metric, labels, [True] * 36) == pytest.approx((0.7354, 1.0), abs=1e-4)  # 12 of 12
    low, high = _interval("balanced_accuracy", labels, [True, False] * 18)
    assert 0.3 < low < 0.5 < high < 0.7


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_the_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs).T
    only = int((first & ~second).sum()), int((second & ~first).sum())
    expected = scipy.stats.binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    assert mcnemar(first, second) == pytest.approx(expected)


def test_sizes_and_latency() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    assert (parameters(model), macs(model, torch.ones(1, 5)), stored_bytes(model)) == (34, 28, 136)
    before = torch.get_num_threads()
    assert model_latency_us(model, torch.zeros(3, 5)) > 0
    with pytest.raises(KeyError), threads(1):
        raise KeyError
    assert torch.get_num_threads() == before
    assert latency_us(lambda: None, seconds=1e-4) > 0


class _Judge:
    metric = METRICS["accuracy"]


START = {"params": 1000, "val_score": 0.95}
FRONT = [
    {"params": params, "val_score": score, "val_loss": loss, "latency_us_1": latency}
    for params, score, loss, latency in ((500, 0.95, 0.1, 40.0), (100, 0.945, 0.2, 20.0), (20, 0.90, 0.3, 10.0))
]


@pytest.mark.parametrize(
    ("wish", "index", "because"),
    [
        ({}, 1, "smallest point within one standard error"),
        ({"max_params": 150}, 1, "at most 150 parameters"),
        ({"max_params": 5}, 2, "no point has at most 5"),
        ({"max_drop": 6.0}, 2, "smallest point within 6 points"),
        ({"max_drop": 0.0}, 0, "within 0 points"),
        ({"max_drop": 0.1, "max_params": 150}, 1, "no point is at most 150 parameters and within 0.1"),
        ({"max_latency": 25.0}, 1, "at most 25 µs a row"),
    ],
)
def test_the_point_is_chosen_as_wished(wish: dict, index: int, because: str) -> None:
    chosen, why = choose(_Judge(), START, FRONT, Settings(**wish), 0.01)  # pyright: ignore[reportArgumentType]
    assert chosen == index
    assert because in why
