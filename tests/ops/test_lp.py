"""Powers, norms and dual maps of L_p against plain float64, at scales where the plain formulas fail."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pared.errors import ConfigError
from pared.ops import dual_direction, dual_exponent, lp_norm, signed_power
from pared.penalties import lp_penalty

P = st.floats(1.05, 6.0)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-12


@given(P)
def test_the_dual_of_the_dual_is_p(p: float) -> None:
    q = dual_exponent(p)
    assert (p - 1.0) * (q - 1.0) == pytest.approx(1.0)
    assert 1.0 / p + 1.0 / q == pytest.approx(1.0)
    assert q / (q - 1.0) == pytest.approx(p)


@pytest.mark.parametrize("p", [1.01, 1.0, 0.5, -2.0, math.inf, math.nan])
def test_exponents_without_a_usable_dual_are_refused(p: float) -> None:
    with pytest.raises(ConfigError, match="p must be"):
        dual_exponent(p)


@given(st.integers(0, 99), st.floats(0.1, 30.0), DTYPES)
def test_signed_powers_are_pow_with_a_sign(seed: int, t: float, dtype: torch.dtype) -> None:
    x = draw(seed, 5, 7, dtype=dtype)
    x[0, 0] = 0.0
    expected = x.sign() * x.abs().pow(t)
    torch.testing.assert_close(signed_power(x, t), expected, rtol=30 * tolerance(dtype), atol=1e-30)
    assert signed_power(x, t)[0, 0].item() == 0.0


@pytest.mark.parametrize("t", [0.2, 1.0, 2.5])
def test_the_gradient_of_a_signed_power_is_right_and_zero_at_zero(t: float) -> None:
    x = draw(1, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: signed_power(z, t), (x,))
    zero = torch.zeros(2, requires_grad=True)
    signed_power(zero, t).sum().backward()
    assert zero.grad is not None
    assert zero.grad.tolist() == [0.0, 0.0]


def test_a_power_that_is_not_above_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="exponent"):
        signed_power(torch.ones(1), 0.0)


@given(st.integers(0, 99), st.floats(1.0, 101.0), st.integers(-30, 30), DTYPES)
def test_the_norm_is_that_of_float64_at_any_scale(seed: int, p: float, scale: int, dtype: torch.dtype) -> None:
    x = draw(seed, 4, 9, dtype=dtype)
    expected = torch.linalg.vector_norm(x.double(), p, dim=1) * 10.0**scale
    got = lp_norm(x * 10.0**scale, p)
    torch.testing.assert_close(got.double(), expected, rtol=10 * tolerance(dtype), atol=0.0)


def test_the_norm_neither_underflows_nor_overflows_and_is_zero_for_zeros() -> None:
    small = torch.tensor([[1e-3, 1e-4], [0.0, 0.0], [1e30, 1e30]])
    q = dual_exponent(1.05)
    assert small[0].pow(q).sum().item() == 0.0  # what the plain formula would take a root of
    norm = lp_norm(small, q)
    assert norm.tolist() == pytest.approx([1e-3, 0.0, 1e30 * 2.0 ** (1.0 / q)], rel=1e-5)
    assert lp_norm(small, math.inf).tolist() == pytest.approx([1e-3, 0.0, 1e30])
    with pytest.raises(ConfigError, match="at least 1"):
        lp_norm(small, 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = (draw(3, 3, 200) * 1e-3).to(dtype)
    for got, expected in (
        (lp_norm(x, 15.0), lp_norm(x.float(), 15.0)),
        (signed_power(x, 0.3), signed_power(x.float(), 0.3)),
        (dual_direction(x, 1.07), dual_direction(x.float(), 1.07)),
    ):
        assert got.dtype == dtype
        assert torch.equal(got, expected.to(dtype))


def test_the_gradient_of_the_norm_is_right_over_several_axes_and_zero_at_zeros() -> None:
    x = draw(4, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: lp_norm(z, 1.7, (1, 2)), (x,))
    assert lp_norm(x, 1.7, (1, 2), keepdim=True).shape == (2, 1, 1)
    zero = torch.zeros(2, 3, requires_grad=True)
    lp_norm(zero, 1.7).sum().backward()
    assert zero.grad is not None
    assert zero.grad.eq(0).all()


@given(st.integers(0, 99), P, st.integers(-20, 20), DTYPES)
def test_the_dual_direction_is_the_best_unit_vector(seed: int, p: float, scale: int, dtype: torch.dtype) -> None:
    g = draw(seed, 3, 8, dtype=dtype) * 10.0**scale
    g[2] = 0.0
    delta = dual_direction(g, p)
    tol = 40 * tolerance(dtype)
    torch.testing.assert_close(lp_norm(delta[:2], p), torch.ones(2, dtype=dtype), rtol=tol, atol=0.0)
    aligned = (g * delta).sum(1)
    torch.testing.assert_close(aligned, lp_norm(g, dual_exponent(p)), rtol=tol, atol=0.0)
    other = draw(seed + 1, 3, 8, dtype=dtype)
    other = other / lp_norm(other, p).unsqueeze(1)
    assert bool(((g * other).sum(1) <= aligned * (1 + tol)).all())
    assert delta[2].eq(0).all()


@given(st.integers(0, 99), P)
def test_the_penalty_is_the_sum_of_powers_over_p_and_its_gradient_the_signed_power(seed: int, p: float) -> None:
    x, y = draw(seed, 3, 4).requires_grad_(), draw(seed + 1, 2)
    with torch.no_grad():
        x[0, 0] = 0.0
    value = lp_penalty([x, y], p)
    assert value.item() == pytest.approx((x.abs().pow(p).sum().item() + y.abs().pow(p).sum().item()) / p)
    value.backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, signed_power(x.detach(), p - 1.0))


def test_a_penalty_with_p_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        lp_penalty([torch.ones(2)], 0.9)
