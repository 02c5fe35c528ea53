"""Cutting at 0 with a way back, and the norm that likes few shares."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pared.errors import ConfigError
from pared.ops.competition import p_norm, thresholded

N = st.sampled_from([1, 2, 3, 5, 10, 64, 20_000])
P = st.floats(0.3, 0.9)


def shares(seed: int, n: int, zeros: int = 0) -> Tensor:
    a = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    a[:zeros] = 0.0
    return a / a.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("slope", "smooth"), [(0.0, False), (0.1, False), (0.3, True)])
def test_the_value_is_relu_and_the_derivative_what_was_asked_for(
    slope: float, smooth: bool, dtype: torch.dtype
) -> None:
    x = torch.linspace(-3, 3, 13, dtype=dtype, requires_grad=True)
    y = thresholded(x, slope, smooth=smooth)
    assert torch.equal(y, x.relu())
    (grad,) = torch.autograd.grad(y.sum(), x)
    below = slope * (x.detach().exp() if smooth else torch.ones_like(grad))
    torch.testing.assert_close(grad, torch.where(x > 0, torch.ones_like(grad), below))


@given(N, P)
def test_the_norm_is_1_for_one_share_and_largest_for_even_ones(n: int, p: float) -> None:
    even = torch.full((n,), 1.0 / n, dtype=torch.float64)
    one = (
        torch.eye(n, dtype=torch.float64)[0]
        if n < 100
        else torch.zeros(n, dtype=torch.float64).index_fill_(0, torch.tensor(3), 1.0)
    )
    assert p_norm(one, p, linear_below=1e-3 / n).item() == pytest.approx(1.0, rel=1e-12)
    assert p_norm(even, p, linear_below=1e-3 / n).item() == pytest.approx(n ** (1 / p - 1), rel=1e-9)
    if p == 0.5:
        assert p_norm(even, linear_below=1e-3 / n).item() == pytest.approx(n)


@given(st.integers(0, 99), st.integers(2, 12), P)
def test_the_norm_is_that_of_the_definition_and_between_its_ends(seed: int, n: int, p: float) -> None:
    a = shares(seed, n, zeros=seed % n)
    value = p_norm(a, p)
    torch.testing.assert_close(value, a.pow(p).sum().pow(1 / p), rtol=1e-12, atol=0)
    assert 1 - 1e-12 <= value <= n ** (1 / p - 1) + 1e-9
    torch.testing.assert_close(p_norm(a.flip(0), p), value)


@given(st.integers(0, 99), P)
def test_axes_and_the_gradient_where_no_share_is_tiny(seed: int, p: float) -> None:
    a = torch.stack([shares(seed + k, 5) for k in range(3)]).requires_grad_()
    torch.testing.assert_close(p_norm(a, p, dim=1), torch.stack([p_norm(row, p) for row in a]))
    torch.testing.assert_close(p_norm(a.t(), p, dim=0), p_norm(a, p))
    assert torch.autograd.gradcheck(lambda z: p_norm(z, p), (a,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("zeros", [0, 1, 7, 8])
def test_zeros_and_tiny_shares_have_finite_gradients(zeros: int, dtype: torch.dtype) -> None:
    a = torch.cat([torch.zeros(zeros), torch.tensor([1e-30, 1e-6, 1e-3])[: 8 - zeros], torch.ones(max(5 - zeros, 0))])
    a = a.to(dtype).requires_grad_()
    value = p_norm(a)
    assert value.dtype is dtype
    (grad,) = torch.autograd.grad(value, a)
    assert grad.isfinite().all()
    if zeros == 8:
        assert value == 0
        assert torch.equal(grad, torch.zeros_like(grad))


def test_it_goes_on_without_a_jump_where_powers_become_linear() -> None:
    below, above = (torch.zeros(4, dtype=torch.float64) for _ in range(2))
    below[0], above[0] = (1e-4 * scale for scale in (1 - 1e-9, 1 + 1e-9))
    assert below[0] < above[0]
    assert p_norm(above).item() == pytest.approx(p_norm(below).item(), rel=1e-7)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_other_exponents_are_refused(p: float) -> None:
    with pytest.raises(ConfigError, match="p must be above 0 and below 1"):
        p_norm(torch.ones(3), p)
