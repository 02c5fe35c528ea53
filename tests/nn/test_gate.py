"""Gates: shares add up to 1, some are exactly 0, and what is dead has the gradients that the formulas say."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn import Gate
from pared.nn.gate import GUARD, Positive

SIZES = [1, 2, 3, 5, 10, 64]
FORMS: list[dict[str, Any]] = [
    {"null": null, "positive": positive, "dead_grad": dead}
    for null, positive, dead in itertools.product([False, True], ["sigmoid", "exp"], ["none", "elu", "leaky"])
]
FORM = st.sampled_from(FORMS)
ANY = st.floats(-50.0, 50.0)


def gate(alpha: Any, beta: Any, dtype: torch.dtype = torch.float64, **form: Any) -> Gate:
    made = Gate(len(alpha), dtype=dtype, **form)
    with torch.no_grad():
        made.theta.copy_(torch.as_tensor(alpha, dtype=dtype))
        made.beta.copy_(torch.as_tensor(beta, dtype=dtype))
    return made


def partly_dead(seed: int, n: int, dead: int, **form: Any) -> Gate:
    """A gate in float64 whose threshold is right between the `dead` smallest strengths and the others."""
    alpha = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gamma = alpha.exp() if form.get("positive") == "exp" else alpha.sigmoid()
    low, high = [torch.zeros(()).double(), *gamma.sort().values][dead : dead + 2]
    cut = 0.5 * (low + high) / gamma.sum()
    made = gate(alpha, cut.logit(), **form)
    assume(high > 1.01 * low)
    assert int((made.shares() == 0).sum()) == dead
    return made


def by_the_paper(made: Gate) -> Tensor:
    """Equations 2 to 4, or the form with a null component, and the guard, operation by operation."""
    alpha, sigma = made.theta.detach(), made.beta.detach().sigmoid()
    gamma = alpha.exp() if made.positive == "exp" else alpha.sigmoid()
    threshold = sigma * gamma.sum()
    if not made.null:
        threshold = min(threshold, gamma.max() / (1 + GUARD))
    raw = (gamma - threshold).clamp(min=0)
    return raw / (raw.sum() + (gamma.clamp(max=threshold.item()).sum() if made.null else 0))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_all_start_even_and_so_does_no_component(n: int, form: dict[str, Any]) -> None:
    made = Gate(n, dtype=torch.float64, **form)
    even = 1 / (n + 1) if form["null"] else 1 / n
    torch.testing.assert_close(made.shares(), torch.full((n,), even, dtype=torch.float64))
    gamma = made.gamma()
    threshold = made.beta.sigmoid() * gamma.sum()
    torch.testing.assert_close(gamma - threshold, gamma.clamp(max=threshold.item()).sum().expand(n))
    scale = 1 if not form["null"] else n / (n + 1)
    assert made.penalty().item() == pytest.approx(scale * n)


def test_many_components_are_pressed_on_too() -> None:
    assert Gate(20_000).penalty().item() == pytest.approx(20_000, rel=1e-3)


@given(st.lists(ANY, min_size=1, max_size=12), ANY, FORM, st.sampled_from([torch.float32, torch.float64]))
def test_shares_and_gradients_are_numbers_whatever_the_parameters(
    alpha: list[float], beta: float, form: dict[str, Any], dtype: torch.dtype
) -> None:
    made = gate(alpha, beta, dtype, **form)
    a = made.shares()
    assert ((a >= 0) & (a <= 1)).all()
    total = a.sum().item()
    assert total <= 1 + 1e-5 if form["null"] else total == pytest.approx(1, rel=1e-5)
    weight = torch.arange(1.0, len(alpha) + 1, dtype=dtype)
    for grad in torch.autograd.grad((a * weight).sum() + made.penalty(), [made.theta, made.beta]):
        assert grad.isfinite().all()


@given(st.integers(0, 99), st.sampled_from([2, 3, 5, 10]), FORM, st.data())
def test_shares_are_those_of_the_paper_and_exactly_0_below_the_threshold(
    seed: int, n: int, form: dict[str, Any], data: st.DataObject
) -> None:
    made = partly_dead(seed, n, data.draw(st.integers(0, n - 1)), **form)
    torch.testing.assert_close(made.shares(), by_the_paper(made), rtol=1e-10, atol=0)
    gamma = made.gamma()
    assert torch.equal(made.shares() == 0, gamma / gamma.sum() <= made.beta.sigmoid())


@given(st.integers(0, 99), st.integers(2, 8), FORM, st.data())
def test_the_order_of_components_is_no_matter(seed: int, n: int, form: dict[str, Any], data: st.DataObject) -> None:
    made = partly_dead(seed, n, data.draw(st.integers(0, n - 1)), **form)
    order = torch.tensor(data.draw(st.permutations(range(n))))
    twin = gate(made.theta.detach()[order], made.beta.detach(), **form)
    torch.testing.assert_close(twin.shares(), made.shares()[order], rtol=1e-10, atol=0)
    torch.testing.assert_close(twin.penalty(), made.penalty())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dead", range(6))
@pytest.mark.parametrize("form", FORMS)
def test_any_number_may_be_dead(dead: int, form: dict[str, Any], dtype: torch.dtype) -> None:
    alpha = [-20.0] * dead + [0.1 * k for k in range(6 - dead)]
    made = gate(alpha, Gate(6).beta.item(), dtype, **form)
    assert (made.shares() == 0).tolist() == [True] * dead + [False] * (6 - dead)
    loss = (made.shares() * torch.arange(6, dtype=dtype)).sum() + made.penalty()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, [made.theta, made.beta]))


@given(st.integers(0, 99), st.integers(2, 8), st.sampled_from([f for f in FORMS if not f["null"]]), st.data())
def test_gradients_of_living_and_dead_are_those_of_the_formula(
    seed: int, n: int, form: dict[str, Any], data: st.DataObject
) -> None:
    made = partly_dead(seed, n, data.draw(st.integers(1, n - 1)), **form, slope=0.3)
    v = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    got = torch.autograd.grad((made.shares() * v).sum(), [made.theta, made.beta])
    with torch.no_grad():
        gamma, a, sigma = made.gamma(), made.shares(), made.beta.sigmoid()
        x = gamma - sigma * gamma.sum()
        live, scale = a > 0, x.relu().sum()
        below = {"none": 0 * x, "leaky": 0 * x + 0.3, "elu": 0.3 * x.exp()}[form["dead_grad"]]
        passed = torch.where(live, torch.ones_like(x), below) * (v - (a * v).sum()) / scale
        steep = gamma if form["positive"] == "exp" else gamma * (1 - gamma)
        torch.testing.assert_close(got[0], steep * (passed - sigma * passed.sum()))
        torch.testing.assert_close(got[1], -sigma * (1 - sigma) * gamma.sum() * passed.sum())
        if form["dead_grad"] == "none":
            same = (sigma / scale) * steep * ((live.sum() * a - 1) * v)[live].sum()
            torch.testing.assert_close(got[0][~live], same[~live])


@given(ANY, ANY)
def test_one_alone_has_all_and_can_only_give_it_to_none(alpha: float, beta: float) -> None:
    made = gate([alpha], beta)
    assert made.shares().item() == 1
    assert [g.abs().sum() for g in torch.autograd.grad(made.shares().sum(), [made.theta, made.beta])] == [0, 0]
    share = gate([alpha], beta, null=True).shares()
    torch.testing.assert_close(share, torch.tensor([-beta], dtype=torch.float64).sigmoid(), rtol=1e-9, atol=1e-15)
    assert gate([alpha], 40.0, null=True).shares().item() == 0


@pytest.mark.parametrize("n", SIZES[1:])
@pytest.mark.parametrize("dead_grad", ["none", "elu", "leaky"])
def test_with_null_all_can_die(n: int, dead_grad: Any) -> None:
    made = gate([0.3] * n, 5.0, null=True, dead_grad=dead_grad)
    assert torch.equal(made.shares(), torch.zeros(n).double())
    assert made.penalty() == 0
    grads = torch.autograd.grad(made.shares().sum() + made.penalty(), [made.theta, made.beta])
    assert all(grad.isfinite().all() for grad in grads)
    assert bool(grads[0].any()) is (dead_grad != "none")  # the way back
    made.kill(torch.ones(n, dtype=torch.bool))
    grads = torch.autograd.grad(made.shares().sum() + made.penalty(), [made.theta, made.beta])
    assert not any(grad.any() for grad in grads)
    assert not made.shares().any()


@given(st.integers(0, 99), st.integers(2, 8), st.booleans(), st.sampled_from(["sigmoid", "exp"]), st.data())
def test_killing_is_like_freezing(seed: int, n: int, null: bool, positive: Any, data: st.DataObject) -> None:
    dead = data.draw(st.integers(1, n - 1))
    made, twin = (partly_dead(seed, n, dead, null=null, positive=positive) for _ in range(2))
    gone = twin.shares() == 0
    first = gone & (torch.arange(n) % 2 == 0)
    made.kill(first)
    made.kill(gone)  # what is killed twice counts once
    v = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    for _ in range(3):
        torch.testing.assert_close(made.shares(), twin.shares(), rtol=1e-12, atol=0)
        torch.testing.assert_close(made.penalty(), twin.penalty(), rtol=1e-12, atol=0)
        for one in (made, twin):
            grads = torch.autograd.grad((one.shares() * v).sum() + one.penalty(), [one.theta, one.beta])
            with torch.no_grad():
                one.theta.sub_(1e-4 * grads[0].masked_fill(gone, 0.0))
                one.beta.sub_(1e-4 * grads[1])
            if one is made:
                assert not grads[0][gone].any()
    torch.testing.assert_close(made.theta, twin.theta, rtol=1e-12, atol=0)
    torch.testing.assert_close(made.beta, twin.beta, rtol=1e-12, atol=0)
    made.reset_parameters()
    assert made.alive.all()
    assert made.rest == 0
    torch.testing.assert_close(made.shares(), Gate(n, null=null, positive=positive, dtype=torch.float64).shares())


@pytest.mark.parametrize("dead_grad", ["elu", "leaky"])
def test_what_fell_behind_comes_back_by_its_own_use_and_what_was_killed_never(dead_grad: Any) -> None:
    for kill in (False, True):
        made = gate([0.0, 0.0, -3.0], -1.6, dead_grad=dead_grad)
        assert made.shares()[2] == 0
        if kill:
            made.kill(made.shares() == 0)
        for _ in range(200):
            (grad,) = torch.autograd.grad(-made.shares()[2] + 0.0 * made.penalty(), made.theta)
            with torch.no_grad():
                made.theta.sub_(grad)
        assert bool(made.shares()[2] > 0) is not kill


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    alpha = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(dtype)
    made, wide = gate(alpha, Gate(64).beta.item(), dtype, dim=1), gate(alpha.float(), 0.0, torch.float32)
    with torch.no_grad():
        wide.beta.copy_(made.beta)
    assert torch.equal(made.shares(), wide.shares().to(dtype))
    y = made(torch.ones(2, 64, dtype=dtype))
    assert y.dtype is dtype
    grads = torch.autograd.grad(y[:, 0].sum() + made.penalty(), [made.theta, made.beta])
    expected = torch.autograd.grad(2 * wide.shares()[0] + wide.penalty(), [wide.theta, wide.beta])
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad.float(), other, rtol=0.05, atol=0.02)


def test_components_of_several_channels_on_any_axis() -> None:
    made = gate([1.0, -30.0, 0.5], -3.0, sizes=[2, 1, 3], dim=1)
    x = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = made.shares()
    torch.testing.assert_close(made(x), x * a[[0, 0, 1, 2, 2, 2]].view(1, 6, 1))
    assert made.live_channels().tolist() == list(range(6))
    made.kill(a == 0)
    assert made.live_channels().tolist() == [0, 1, 3, 4, 5]
    with pytest.raises(ValueError, match="expected 6 channels on axis 1"):
        made(torch.ones(4, 3, 3))
    before = made.theta.detach().clone()
    made.silence()
    assert torch.equal(made.theta, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "at least one component, got n=0"),
        ({"n": 2, "sizes": [1, 1, 1]}, "a size for each of the 2 components, got 3"),
        ({"n": 2, "sizes": [0, 3]}, "sizes must be positive"),
        ({"n": 2, "positive": "relu"}, "positive must be one of sigmoid, exp"),
        ({"n": 2, "dead_grad": "tanh"}, "dead_grad one of none, elu, leaky"),
        ({"n": 2, "slope": 0.0}, "slope must be above 0 and finite, got 0.0"),
        ({"n": 2, "slope": math.nan}, "slope must be above 0 and finite"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Gate(**options)


def test_killing_needs_a_mask_and_leaves_one() -> None:
    made = Gate(3)
    for bad in (torch.tensor([0, 1, 0]), torch.tensor([True]), torch.tensor(True)):
        with pytest.raises(ValueError, match="expected booleans of shape \\(3,\\)"):
            made.kill(bad)
    with pytest.raises(ValueError, match="use null=True"):
        made.kill(torch.ones(3, dtype=torch.bool))
    assert made.alive.all()
    assert made.rest == 0
    made.alive.fill_(False)  # as a file could
    assert torch.equal(made.shares(), torch.zeros(3))
    grads = torch.autograd.grad(made.shares().sum() + made.penalty(), [made.theta, made.beta])
    assert not any(grad.any() for grad in grads)


def test_what_is_saved_and_said() -> None:
    assert set(Gate(3).state_dict()) == {"theta", "alive", "awake", "beta", "rest"}
    assert set(Gate(2, sizes=[1, 2]).state_dict()) == {"theta", "alive", "awake", "sizes", "beta", "rest"}
    assert Gate(3).extra_repr() == "3"
    assert Gate(2, sizes=[1, 2], dim=1, null=True, dead_grad="elu").extra_repr() == (
        "2, channels=3, dim=1, null=True, dead_grad='elu'"
    )
    meta = Gate(3, sizes=[1, 1, 2], device="meta", dtype=torch.float64)
    assert all(t.is_meta for t in (*meta.parameters(), *meta.buffers()))
    assert isinstance(meta, nn.Module)
    assert meta(torch.ones(2, 4, device="meta", dtype=torch.float64)).dtype is torch.float64


@pytest.mark.parametrize("beta", [-80.0, -89.0, -200.0, 200.0])
def test_gradients_are_finite_at_whatever_threshold(beta: float) -> None:
    gate = Gate(3)
    with torch.no_grad():
        gate.theta.copy_(torch.tensor([0.1, 0.2, 0.3]))
        gate.beta.fill_(beta)
    gate.penalty().backward()
    assert gate.theta.grad is not None
    assert gate.beta.grad is not None
    assert gate.theta.grad.isfinite().all()
    assert gate.beta.grad.isfinite()
    if beta < 0:
        torch.testing.assert_close(gate.shares(), gate.gamma() / gate.gamma().sum())


@pytest.mark.parametrize("positive", ["sigmoid", "exp"])
@pytest.mark.parametrize("theta", [-300.0, -104.0, 89.0, 300.0])
def test_shares_add_up_to_1_at_whatever_strength(theta: float, positive: Positive) -> None:
    gate = Gate(3, positive=positive)
    with torch.no_grad():
        gate.theta.fill_(theta)
    torch.testing.assert_close(gate.shares(), torch.full((3,), 1 / 3))
    gate.penalty().backward()
    assert gate.theta.grad is not None
    assert gate.theta.grad.isfinite().all()


@pytest.mark.parametrize("p", [0.3, 0.6, 0.95])
def test_second_derivatives_are_numbers_where_all_are_dead(p: float) -> None:
    made = gate([-30.0] * 4, 5.0, torch.float32, null=True)
    assert not made.shares().any()
    (first,) = torch.autograd.grad(made.penalty(p), made.theta, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), made.theta)
    assert torch.equal(first, torch.zeros(4))
    assert torch.equal(second, torch.zeros(4))


def test_a_norm_without_room_is_refused_and_what_is_told_to_do_has_room() -> None:
    made = Gate(300)
    with pytest.raises(ConfigError, match=r"p-norm of 300 shares .* got p=0\.05, so give p of at least 0\.077") as told:
        made.penalty(0.05)
    norm = made.penalty(float(str(told.value).rpartition("at least ")[2].split(",")[0]))
    norm.backward()
    assert math.isfinite(norm.item())
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
