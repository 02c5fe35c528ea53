"""Tests of hypotheses against statsmodels, SciPy and figures in print."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as oracle
from statsmodels.stats.descriptivestats import sign_test as sign_oracle
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from pared.errors import ConfigError
from pared.measure.statistics import (
    holm,
    mcnemar,
    ranks,
    share_interval,
    sign_test,
    signed_rank_test,
    specialised,
)


def p_value(table: Any, *, exact: bool) -> float:
    found: Any = oracle(table, exact=exact, correction=True)
    return float(found.pvalue)


@given(*(st.integers(0, 60) for _ in range(4)))
def test_mcnemar_is_that_of_statsmodels(both: int, first: int, second: int, none: int) -> None:
    one = np.repeat([True, True, False, False], [both, first, second, none])
    other = np.repeat([True, False, True, False], [both, first, second, none])
    table = [[both, first], [second, none]]
    if first + second:
        assert mcnemar(one, other) == pytest.approx(p_value(table, exact=True))
        if first != second:  # of a statistic of (0 - 1)^2, statsmodels makes 1 / n
            expected = p_value(table, exact=False)
            assert mcnemar(one, other, exact=False) == pytest.approx(expected)
    else:
        assert mcnemar(one, other) == mcnemar(one, other, exact=False) == 1.0
    with pytest.raises(ConfigError, match="same samples"):
        mcnemar(one, np.append(other, True))


@given(st.integers(1, 400), st.floats(0.0, 1.0))
def test_the_interval_of_a_share_is_that_of_statsmodels(trials: int, part: float) -> None:
    hits = round(part * trials)
    expected: Any = proportion_confint(hits, trials, method="beta")
    low, high = share_interval(hits / trials, trials)
    assert (low, high) == pytest.approx(expected, abs=1e-9)
    assert low < high
    assert share_interval(1.0, 0.0) == (0.0, 1.0)  # no trials, nothing known
    with pytest.raises(ConfigError, match="share"):
        share_interval(1.1, 3.0)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda numbers: np.array(numbers, dtype=float)))
def test_sign_tests_are_those_of_statsmodels_and_scipy(differences: np.ndarray) -> None:
    if (differences != 0).any():
        assert sign_test(differences) == pytest.approx(float(sign_oracle(differences)[1]))
        expected: Any = stats.wilcoxon(differences[differences != 0])
        assert signed_rank_test(differences) == pytest.approx(expected.pvalue)
    else:
        assert sign_test(differences) == signed_rank_test(differences) == 1.0


@settings(max_examples=20)  # of the oracle's 50 ms
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(np.array))
def test_holm_is_that_of_statsmodels(p_values: np.ndarray) -> None:
    expected: Any = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(p_values), expected)


def test_neurons_that_tell_a_class_are_found() -> None:
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 3, 600)
    activations = generator.normal(size=(600, 5))
    activations[:, 1] += 2.0 * (classes == 0)  # and so does not tell 1 from 2
    activations[:, 2] = np.where(classes == 2, -np.abs(activations[:, 2]), np.abs(activations[:, 2]))
    activations[:, 3] = 1.0
    found = specialised(activations, classes)
    assert found.shape == (5, 3)
    assert found[1, 0]
    assert found[2, 2]
    assert not found[[0, 3, 4]].any()
    for unit in range(3):
        for number in range(3):
            own, others = activations[classes == number, unit], activations[classes != number, unit]
            assert found[unit, number] == (stats.ranksums(own, others).pvalue < 1e-7)  # nothing is tied
    rows = np.concatenate([np.flatnonzero(classes == 0)[:8], np.flatnonzero(classes == 1)[:8]])
    assert not specialised(activations[rows], classes[rows]).any()  # too few samples to tell, whatever they are
    assert not specialised(activations, np.zeros(600)).any()
    with pytest.raises(ConfigError, match="activations"):
        specialised(activations, classes[:-1])


@given(st.integers(0, 99), st.integers(2, 40), st.integers(1, 4))
def test_neurons_are_told_apart_as_scipy_does_with_ties_too(seed: int, rows: int, values: int) -> None:
    random = np.random.default_rng(seed)
    activations, classes = random.integers(0, values, (rows, 3)).astype(float), random.integers(0, 3, rows)
    for level in (0.01, 0.1, 0.5):
        found = specialised(activations, classes, level=level)
        for column, one in enumerate(np.unique(classes)):
            own, others = activations[classes == one], activations[classes != one]
            if not len(others):
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                tested = stats.mannwhitneyu(own, others, axis=0, use_continuity=False, method="asymptotic")
            p_values = np.nan_to_num(tested.pvalue, nan=1.0)
            clear = np.abs(p_values - level) > 1e-9
            assert ((p_values < level) == found[:, column])[clear].all()


def test_neurons_that_give_no_number_tell_no_class() -> None:
    classes = np.arange(300) // 100
    activations = np.where(classes[:, None] == 0, 1.0, 0.0).repeat(3, 1) + np.arange(300)[:, None] * 1e-6
    activations[:, 1] = np.nan
    activations[200, 2] = np.nan
    assert specialised(activations, classes).any(1).tolist() == [True, False, False]


def test_thousands_of_samples_are_quick() -> None:
    first = np.arange(60_000) % 3 > 0
    start = time.process_time()
    assert mcnemar(first, np.roll(first, 1)) == 1.0
    assert time.process_time() - start < 5


def test_ranks_are_those_of_demsar() -> None:
    # Table 6 of Demsar (2006): AUC of C4.5 with and without tuning, 14 data sets.
    scores = np.array(
        [
            [0.763, 0.768, 0.771, 0.798],
            [0.599, 0.591, 0.590, 0.569],
            [0.954, 0.971, 0.968, 0.967],
            [0.628, 0.661, 0.654, 0.657],
            [0.882, 0.888, 0.886, 0.898],
            [0.936, 0.931, 0.916, 0.931],
            [0.661, 0.668, 0.609, 0.685],
            [0.583, 0.583, 0.563, 0.625],
            [0.775, 0.838, 0.866, 0.875],
            [1.000, 1.000, 1.000, 1.000],
            [0.940, 0.962, 0.965, 0.962],
            [0.619, 0.666, 0.614, 0.669],
            [0.972, 0.981, 0.9751, 0.975],
            [0.957, 0.978, 0.946, 0.970],
        ]
    )
    found = ranks(scores)
    assert found.mean == pytest.approx((3.143, 2.000, 2.893, 1.964), abs=5e-4)
    assert found.critical_difference == pytest.approx(1.25, abs=0.01)
    assert found.p_value == pytest.approx(float(stats.friedmanchisquare(*scores.T).pvalue))
    assert ranks(np.ones((5, 3))).p_value == 1.0
    with pytest.raises(ConfigError, match="3 methods"):
        ranks(scores[:, :2])
