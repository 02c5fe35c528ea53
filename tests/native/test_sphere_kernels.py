"""The compiled step on the L_p sphere against torch's, for every instruction set of this processor."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.native import disabled, library, sphere
from pared.ops import dual_exponent, lp_norm, signed_power
from pared.optim import LpSGD, kernels
from pared.optim.kernels import Rows

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built")

ISAS = range(library().isa + 1 if library() else 0)  # pyright: ignore[reportOptionalMemberAccess]
DTYPES = [torch.float32, torch.float64]


DEFAULTS: dict[str, Any] = {"lr": 0.01, "p": 1.3}


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor, r: float) -> Tensor:
    norm = lp_norm(x, r, keepdim=True)
    return x / norm.masked_fill(norm == 0.0, 1.0)


def held(shape: tuple[int, ...], **options: Any) -> tuple[nn.Parameter, LpSGD]:
    w = nn.Parameter(draw(0, *shape))
    return w, LpSGD([w], **DEFAULTS | options)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1.011, 1.05, 1.07, 1.3, 1.5, 2.0, 3.0, 6.0])
def test_powers_are_right_over_the_whole_range(p: float, dtype: torch.dtype, isa: int) -> None:
    """Rows (1, x, 0, ...) that do not move: the weights' ratio is x^(q - 1), to its rounding and two of the scale."""
    t, tiny = dual_exponent(p) - 1.0, 1e-30 if dtype == torch.float32 else 1e-300
    size = torch.rand(50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.exp(size * max(np.log(tiny) / t, np.log(tiny)) * 0.999).to(dtype)
    x[:1000] = 1.0 - size[:1000].to(dtype) * 1e-4
    v = torch.zeros(len(x), 16, dtype=dtype)
    v[:, 0], v[:, 1] = 1.0, -x
    w = v.clone()
    sphere.step(
        w, torch.zeros_like(v), v, None, None, sphere.Move(0.0, False, 1.0, 0.0, t + 1.0, False, False), isa=isa
    )
    ratio = w[:, 1].numpy().astype(np.longdouble) / w[:, 0].numpy().astype(np.longdouble)
    expected = -(x.numpy().astype(np.longdouble) ** np.longdouble(t))
    assert float(abs(ratio / expected - 1.0).max()) <= (2.0 + 0.6 * t) * torch.finfo(dtype).eps
    assert w[:, 2:].eq(0).all()


@settings(max_examples=250)
@given(
    st.integers(0, 999),
    st.tuples(st.integers(1, 5), st.integers(1, 70)),
    st.floats(1.05, 6.0),
    st.sampled_from([0.0, 1e-4, 0.005, 0.1, 0.4, 0.7, 0.9]),
    st.sampled_from([(0.0, False), (0.9, False), (0.9, True)]),
    st.booleans(),
    st.sampled_from(["momentum", "direct"]),
    st.sampled_from(DTYPES),
    st.sampled_from(ISAS),
    st.sampled_from([-1.0, 1.0]),
)
def test_steps_equal_torchs(
    seed: int,
    shape: tuple[int, int],
    p: float,
    lr: float,
    gamma: tuple[float, bool],
    masked: bool,
    form: str,
    dtype: torch.dtype,
    isa: int,
    sign: float,
) -> None:
    q, (momentum, nesterov) = dual_exponent(p), gamma
    mask = draw(seed + 9, *shape) < 0.7 if masked else None
    start = draw(seed, *shape, dtype=dtype) * (1.0 if mask is None else mask)
    start[0] *= seed % 4 > 0  # a row of zeros, now and then
    weight = unit(start, p)
    dual = unit(signed_power(weight, p - 1.0), q) if form == "momentum" else None
    buffer = torch.zeros_like(weight) if momentum else None
    ours = Rows(weight.clone(), weight, dual, buffer, mask)
    ours = ours.each(torch.clone)
    for number in range(4):
        grad = draw(seed + number, *shape, dtype=dtype) * 10.0 ** (number - 2)
        grad[-1] *= seed % 3 > 0
        twin = ours._replace(grad=grad).each(torch.clone)
        options = (momentum, nesterov, sign, number % 2 == 0, seed % 4 == 0)
        scaled = options[4] or not kernels.stays_long(lr, q)
        ours = ours._replace(grad=grad)
        move = sphere.Move(momentum, nesterov, sign, lr, q, scaled, options[3])
        sphere.step(*ours[:5], move, isa=isa)
        with disabled():
            kernels.advance_lp(twin, options, q, lr)
        eps = torch.finfo(dtype).eps
        if ours.momentum is not None:
            torch.testing.assert_close(ours.momentum, twin.momentum, rtol=4 * eps, atol=4 * eps)
        # What is left where 1 - lr and lr cancel is not precise, and roots of what is nearly 0 are less so.
        loose = eps * (30.0 if lr < 0.4 else 2000.0)
        if ours.dual is not None:
            torch.testing.assert_close(ours.dual, twin.dual, rtol=0, atol=loose)
            torch.testing.assert_close(
                ours.weight.double(), signed_power(ours.dual.double(), q - 1.0), rtol=20 * q * eps, atol=1e-25
            )
        else:
            root = loose ** min(1.0, q - 1.0)
            torch.testing.assert_close(ours.weight, twin.weight, rtol=0, atol=10.0 * root)
        norms = lp_norm(ours.weight, p)
        live = ours.weight.ne(0).any(1)
        torch.testing.assert_close(norms, live.to(dtype), rtol=0, atol=100 * eps)
        assert torch.equal(live, twin.weight.ne(0).any(1))
        if mask is not None:
            for x in (ours.weight, ours.dual, ours.momentum):
                assert x is None or x[~mask].eq(0).all()


@pytest.mark.parametrize("form", ["momentum", "direct"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_gradients_times_a_power_of_two_take_the_same_steps_to_the_bit(nesterov: bool, form: str) -> None:
    made = []
    for factor in (1.0, 2.0**-40, 2.0**30):
        w, optimizer = held((5, 37), nesterov=nesterov, form=form)
        for step in range(5):
            w.grad = draw(step, 5, 37) * factor
            optimizer.step()
        made.append(w.detach())
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_steps_at_the_smallest_p_stay_on_the_sphere(dtype: torch.dtype) -> None:
    w = nn.Parameter(draw(0, 4, 300, dtype=dtype))
    optimizer = LpSGD([w], lr=0.0078, p=1.05)
    grads = draw(1, 50, 4, 300, dtype=dtype) * 1e-4
    grads[:, 0, 40:] = 0.0  # dead inputs
    for step in range(1000):
        w.grad = grads[step % 50]
        optimizer.step()
        if step % 100 == 99:
            torch.testing.assert_close(lp_norm(w.detach(), 1.05), torch.ones(4, dtype=dtype), rtol=0, atol=1e-5)
    v = optimizer.state[w]["v"]
    torch.testing.assert_close(lp_norm(v, 21.0), torch.ones(4, dtype=dtype), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["momentum", "direct"])
def test_results_do_not_depend_on_the_number_of_threads(form: str) -> None:
    before, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            w, optimizer = held((301, 1000), nesterov=True, form=form)
            for step in range(3):
                w.grad = draw(step, 301, 1000)
                optimizer.step()
            made.append((w.detach(), optimizer.state[w]["momentum_buffer"]))
    finally:
        torch.set_num_threads(before)
    for weight, momentum in made[1:]:
        assert torch.equal(weight, made[0][0])
        assert torch.equal(momentum, made[0][1])


@pytest.mark.parametrize("form", ["momentum", "direct"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_hidden_and_stays_in_its_row(bad: float, form: str) -> None:
    w, optimizer = held((3, 40), form=form)
    w.grad = draw(1, 3, 40)
    w.grad[1, 7] = bad
    optimizer.step()
    assert w.detach()[1].isnan().any()
    assert w.detach()[[0, 2]].isfinite().all()


def test_autograd_sees_that_weights_were_changed() -> None:
    w, optimizer = held((3, 4))
    loss = (w * w * w).sum()
    w.grad = draw(1, 3, 4)
    optimizer.step()
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


class Other(Tensor):
    """A subclass, with which anything may be meant."""


CASES: dict[str, Any] = {
    "another type": lambda x: x.half(),
    "another type than the weight": lambda x: x.double(),
    "another shape": lambda x: x[:1],
    "columns first": lambda x: x.t().contiguous().t(),
    "meta": lambda x: x.to("meta"),
    "a lazily negated view": torch._neg_view,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    "a subclass": lambda x: x.as_subclass(Other),
}


@pytest.mark.parametrize("name", CASES)
def test_tensors_that_are_not_the_kernels_are_left_to_torch_and_refused_by_name(name: str) -> None:
    weight, grad = unit(draw(0, 3, 4), 1.5), draw(1, 3, 4)
    move = sphere.Move(0.9, False, 1.0, 0.1, 3.0, False, False)
    assert sphere.serves(weight, grad, None, None, None)
    for place in range(5):
        given_: list[Any] = [weight, grad, weight.clone(), grad.clone(), grad > 0]
        if place == 4 and "type" in name:
            continue
        given_[place] = CASES[name](given_[place].float()) if place != 4 else CASES["columns first"](given_[4])
        assert not sphere.serves(*given_)
        with pytest.raises(ConfigError, match=r"must be"):
            sphere.step(*given_, move=move)
    with disabled():
        assert not sphere.serves(weight, grad, None, None, None)
        with pytest.raises(ConfigError, match="not there"):
            sphere.step(weight, grad, None, None, None, move)


@pytest.mark.parametrize("change", [{"q": 1.0}, {"q": float("inf")}, {"lr": 1.0}, {"lr": float("nan")}])
def test_numbers_out_of_range_are_refused(change: dict[str, float]) -> None:
    move = sphere.Move(0.9, False, 1.0, 0.1, 3.0, False, False)._replace(**change)
    with pytest.raises(ConfigError, match="rate below 1"):
        sphere.step(draw(0, 3, 4), draw(1, 3, 4), draw(2, 3, 4), None, None, move)


@pytest.mark.parametrize("lr", [1.0, 1.5, -0.01])
def test_rates_that_a_schedule_takes_out_of_range_do_what_they_do_in_torch(lr: float) -> None:
    made = []
    for native in (True, False):
        w, optimizer = held((3, 20))
        optimizer.param_groups[0]["lr"] = lr
        w.grad = draw(1, 3, 20)
        with nullcontext() if native else disabled():
            optimizer.step()
        made.append(w.detach())
    torch.testing.assert_close(made[0], made[1])


def test_the_optimizer_uses_the_kernel_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    step = sphere.step
    monkeypatch.setattr(sphere, "step", lambda *a, **k: (used.append(1), step(*a, **k)))

    def uses(weight: Tensor, grad: Tensor, **options: Any) -> bool:
        used.clear()
        w = nn.Parameter(weight)
        optimizer = LpSGD([w], **DEFAULTS | options)
        w.grad = grad
        optimizer.step()
        return bool(used)

    w, g = draw(0, 4, 3, 3, 3), draw(1, 4, 3, 3, 3)
    assert uses(w, g)
    assert uses(w.double(), g.double(), form="direct", momentum=0.0)
    assert uses(draw(0, 300, 64), draw(1, 300, 64))
    assert not uses(draw(0, 300, 1, 3, 3), draw(1, 300, 1, 3, 3))
    assert not uses(w, g, lr=torch.tensor(0.01))
    assert not uses(w.half(), g.half())
    assert not uses(w.to(memory_format=torch.channels_last), g)
    assert not uses(w, g.to(memory_format=torch.channels_last))
    with disabled():
        assert not uses(w, g)
