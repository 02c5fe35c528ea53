import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pared.methods.rules import SignVariance
from pared.nn import Switch
from pared.ops import update_sign_statistics_
from pared.ops.signs import TINY


def twin(signs: list[float], start: float, gamma: float) -> list[tuple[float, float]]:
    """The update in plain Python, in the order of the authors' code."""
    mean, var, out = start, 0.0, []
    for s in signs:
        delta = s - mean
        var = gamma * var + (1 - gamma) * delta**2
        mean = gamma * mean + (1 - gamma) * s
        out.append((mean, var))
    return out


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60), st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_equals_the_plain_twin(signs: list[float], gamma: float) -> None:
    mean, var = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for s, (m, v) in zip(signs, twin(signs, 1.0, gamma), strict=True):
        update_sign_statistics_(torch.tensor([s * 3.5], dtype=torch.float64), mean, var, gamma)
        assert mean.item() == pytest.approx(m, abs=1e-12)
        assert var.item() == pytest.approx(v, abs=1e-12)


def updates_until_death(gamma: float, cycle: list[float]) -> int:
    switch = Switch(2)
    rule = SignVariance(gamma=gamma)
    rule.attach(switch)
    for step in range(1, 1000):
        now = cycle[step % len(cycle)]
        with torch.no_grad():
            switch.theta.copy_(torch.tensor([now, 1.0]))
        rule.update(switch)
        if not switch.alive[0]:
            return step
    raise AssertionError("never died")


@pytest.mark.parametrize(
    ("gamma", "flip", "alternating"), [(0.9, 2, 3), (0.99, 16, 33), (0.999, 159, 345), (0.0, 1, 1)]
)
def test_kill_times_are_those_of_the_methods_page(gamma: float, flip: int, alternating: int) -> None:
    assert updates_until_death(gamma, [-1.0]) == flip
    assert updates_until_death(gamma, [1.0, -1.0]) == alternating


def test_a_value_that_never_flips_keeps_variance_zero() -> None:
    mean, var = torch.ones(3), torch.zeros(3)
    for _ in range(500):
        update_sign_statistics_(torch.tensor([0.1, 2.0, 1e-20]), mean, var, 0.9)
    assert var.eq(0).all()


def test_statistics_never_go_denormal() -> None:
    mean, var = torch.full((1,), -1.0), torch.zeros(1)
    for _ in range(2_000):
        update_sign_statistics_(torch.ones(1), mean, var, 0.9)
    assert var.item() == 0.0 or var.item() >= TINY


def test_the_mask_is_monotone_and_holds_against_the_optimizer() -> None:
    switch = Switch(3)
    rule = SignVariance(gamma=0.0)
    rule.attach(switch)
    with torch.no_grad():
        switch.theta.copy_(torch.tensor([-1.0, 1.0, 1.0]))
    rule.update(switch)
    for _ in range(5):
        with torch.no_grad():
            switch.theta.add_(0.5)
        rule.update(switch)
        assert switch.alive.tolist() == [False, True, True]
        assert switch.theta[0].item() == 0.0


def test_the_last_unit_of_a_layer_never_dies() -> None:
    switch = Switch(3)
    rule = SignVariance(gamma=0.0)
    rule.attach(switch)
    with torch.no_grad():
        switch.theta.copy_(torch.tensor([-1.0, -3.0, -2.0]))
    rule.update(switch)
    assert switch.alive.tolist() == [False, True, False]
