"""Hoyer's sparsity, and its expectation: closed form, recursion, table and Monte Carlo agree."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln

from pared.errors import ConfigError
from pared.ops import cross_correlation, expected_hoyer, hoyer

#: E[H] at alpha = 0.8, by d, at the exponents of EXPONENTS.
EXPONENTS = (1.05, 1.07, 1.1, 1.2, 1.3, 1.5, 2, 3, 4, 6)
TABLE = {
    9: (0.9013, 0.8676, 0.8217, 0.6997, 0.6097, 0.4843, 0.3172, 0.1846, 0.1291, 0.0802),
    25: (0.8678, 0.8277, 0.7758, 0.6477, 0.5588, 0.4397, 0.2859, 0.1659, 0.1160, 0.0721),
    144: (0.8130, 0.7695, 0.7161, 0.5914, 0.5080, 0.3982, 0.2581, 0.1497, 0.1047, 0.0650),
    288: (0.7977, 0.7543, 0.7015, 0.5787, 0.4969, 0.3893, 0.2523, 0.1463, 0.1023, 0.0636),
    512: (0.7879, 0.7448, 0.6923, 0.5709, 0.4901, 0.3840, 0.2488, 0.1443, 0.1009, 0.0627),
    3136: (0.7693, 0.7269, 0.6755, 0.5568, 0.4779, 0.3743, 0.2425, 0.1406, 0.0983, 0.0611),
    math.inf: (0.7560, 0.7143, 0.6638, 0.5470, 0.4695, 0.3678, 0.2383, 0.1381, 0.0966, 0.0600),
}


def recursion(d: int, p: float, alpha: float = 0.8) -> float:
    """Equations 36 to 38, normalised so that no factor leaves the range of floats."""
    tau = alpha * (p - 1.0)

    def ratios(k: int) -> tuple[float, float]:
        first = betaln(tau / 2, k * tau / 2)
        second, third = betaln((tau + 1) / 2, k * tau / 2), betaln(tau / 2, (k * tau + 1) / 2)
        return math.exp(second - first), math.exp(third - first)

    eta = sum(ratios(1))
    for k in range(2, d):
        second, third = ratios(k)
        eta = eta * third + second
    return (math.sqrt(d) - eta) / (math.sqrt(d) - 1.0)


@given(st.integers(0, 99), st.integers(2, 40), st.sampled_from([1e-25, 1.0, 1e25]))
def test_it_lies_in_the_unit_interval_and_knows_no_scale_order_or_sign(seed: int, d: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, d, generator=generator)
    value = hoyer(x)
    assert bool(((value >= 0) & (value <= 1)).all())
    flipped = x[:, torch.randperm(d, generator=generator)] * scale
    flipped[:, 0] *= -1
    torch.testing.assert_close(hoyer(flipped), value, rtol=0.0, atol=1e-5)


def test_its_two_ends_and_what_is_agreed_on() -> None:
    one_hot, constant, zero = torch.eye(5)[2], torch.full((5,), -0.3), torch.zeros(5)
    torch.testing.assert_close(hoyer(torch.stack([one_hot, constant, zero])), torch.tensor([1.0, 0.0, 0.0]))
    assert hoyer(torch.ones(3, 1)).tolist() == [0.0, 0.0, 0.0]
    x = torch.randn(4, 2, 3, 3)
    torch.testing.assert_close(hoyer(x, (1, 2, 3)), hoyer(x.flatten(1)))
    plain = (math.sqrt(18) - x.flatten(1).norm(1, 1) / x.flatten(1).norm(dim=1)) / (math.sqrt(18) - 1)
    torch.testing.assert_close(hoyer(x.flatten(1)), plain)


@pytest.mark.parametrize("d", TABLE)
def test_the_expectation_is_that_of_the_table(d: float) -> None:
    assert [expected_hoyer(d, p) for p in EXPONENTS] == pytest.approx(list(TABLE[d]), abs=5.1e-5)


def test_the_expectation_at_points_known_to_more_digits() -> None:
    assert expected_hoyer(25, 1.1) == pytest.approx(0.77579, abs=5e-6)
    assert expected_hoyer(144, 2) == pytest.approx(0.25812, abs=5e-6)
    assert expected_hoyer(64, 6) == pytest.approx(0.0675, abs=5e-5)
    assert expected_hoyer(3136, 1.5) == pytest.approx(0.374313, abs=5e-7)
    assert expected_hoyer(10_000, 2) == pytest.approx(0.240647, abs=5e-7)
    assert expected_hoyer(1, 2) == 0.0


@pytest.mark.parametrize("p", [1.05, 1.1, 1.5, 2.0, 6.0])
@pytest.mark.parametrize("d", [2, 3, 25, 144, 3136, 10_000])
def test_the_closed_form_is_the_papers_recursion(d: int, p: float) -> None:
    assert expected_hoyer(d, p) == pytest.approx(recursion(d, p), abs=1e-9)


@given(st.integers(2, 5000), st.floats(1.05, 6.0), st.floats(0.2, 3.0))
def test_the_expectation_falls_with_p_and_with_d(d: int, p: float, alpha: float) -> None:
    here = expected_hoyer(d, p, alpha)
    assert 0.0 < here < 1.0
    assert expected_hoyer(d, p + 0.1, alpha) < here
    assert expected_hoyer(d + 1, p, alpha) < here
    assert expected_hoyer(math.inf, p, alpha) < here


@pytest.mark.parametrize("d", [2, 9, 144, 512])
@pytest.mark.parametrize("p", [1.1, 1.5, 2.0, 3.0])
def test_the_expectation_is_that_of_drawn_neurons(d: int, p: float) -> None:
    generator = np.random.default_rng(d)
    z = np.sqrt(generator.gamma(0.8 * (p - 1.0) / 2, size=(4000, d)))
    drawn = hoyer(torch.from_numpy(z))
    error = float(drawn.std()) / math.sqrt(len(drawn))
    assert float(drawn.mean()) == pytest.approx(expected_hoyer(d, p), abs=4 * error)


@pytest.mark.parametrize("bad", [(0, 1.5, 0.8), (9, 1.0, 0.8), (9, 1.5, 0.0)])
def test_an_expectation_out_of_range_is_refused(bad: tuple[int, float, float]) -> None:
    with pytest.raises(ConfigError):
        expected_hoyer(*bad)


def test_cross_correlations_are_those_of_numpy_and_zero_for_constant_neurons() -> None:
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(cross_correlation(weight), torch.from_numpy(np.corrcoef(weight.flatten(1).numpy())))
    weight[1] = 0.5
    got = cross_correlation(weight)
    assert got[1].eq(0).all()
    assert got[:, 1].eq(0).all()
    assert got[0, 0].item() == pytest.approx(1.0)
    tiny = cross_correlation(weight.float() * 1e-30)
    torch.testing.assert_close(tiny, got.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("d", [1e9, 1e11, 1e13, 1e17])
def test_expectations_for_huge_neurons_are_near_the_limit(d: float) -> None:
    for p in (1.1, 2.0, 6.0):
        assert expected_hoyer(d, p) == pytest.approx(expected_hoyer(math.inf, p), abs=1e-4)
