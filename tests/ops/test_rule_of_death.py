"""The whole rule, statistics, death and the spared one, against a twin in plain Python."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pared.methods.rules import SignVariance
from pared.nn import Switch
from pared.ops import update_sign_statistics_


class Twin:
    """Lists of floats, one loop, the order of the methods page."""

    def __init__(self, theta: list[float], gamma: float) -> None:
        self.gamma, self.alive = gamma, [True] * len(theta)
        self.mean, self.var = [sign(t) for t in theta], [0.0] * len(theta)

    def update(self, theta: list[float]) -> list[float]:
        before = list(self.alive)
        for i, t in enumerate(theta):
            delta = sign(t) - self.mean[i]
            self.var[i] = self.gamma * self.var[i] + (1 - self.gamma) * delta**2
            self.mean[i] = self.gamma * self.mean[i] + (1 - self.gamma) * sign(t)
            self.alive[i] = self.alive[i] and self.var[i] <= 0.5
        if not any(self.alive):
            spared = max((i for i in range(len(theta)) if before[i]), key=lambda i: abs(theta[i]))
            self.alive[spared] = True
        return [t if a else 0.0 for t, a in zip(theta, self.alive, strict=True)]


def sign(value: float) -> float:
    return math.copysign(1.0, value) if value else 0.0


VALUES = st.sampled_from([-2.0, -1.5, -0.5, 0.0, 0.25, 1.0, 3.0])


@given(st.data(), st.integers(1, 4), st.sampled_from([0.0, 0.25, 0.8, 0.9, 0.99]))
def test_the_rule_equals_its_plain_twin(data: st.DataObject, n: int, gamma: float) -> None:
    steps = data.draw(st.lists(st.lists(VALUES, min_size=n, max_size=n, unique_by=abs), min_size=1, max_size=25))
    switch = Switch(n, dtype=torch.float64)
    rule, twin, alive = SignVariance(gamma), Twin([1.0] * n, gamma), torch.ones(n, dtype=torch.bool)
    rule.attach(switch)
    for theta in steps:
        with torch.no_grad():
            switch.theta.copy_(torch.tensor(theta))
        rule.update(switch)
        assert switch.theta.tolist() == twin.update(theta)
        assert switch.alive.tolist() == twin.alive
        assert not bool((switch.alive & ~alive).any())
        assert bool(switch.alive.any())
        alive = switch.alive.clone()


def test_with_gamma_zero_the_first_flip_has_variance_four_and_zero_is_no_sign() -> None:
    mean, var = torch.ones(2), torch.zeros(2)
    update_sign_statistics_(torch.tensor([-0.1, 0.0]), mean, var, 0.0)
    assert var.tolist() == [4.0, 1.0]
    assert mean.tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 0.99])
def test_dead_stays_at_zero_although_adam_moves_it(gamma: float) -> None:
    switch = Switch(3)
    rule, optimizer = SignVariance(gamma), torch.optim.Adam(switch.parameters(), lr=0.1)
    rule.attach(switch)
    pull, moved = torch.tensor([1.0, -1.0, -1.0]), False
    for _ in range(120):
        optimizer.zero_grad()
        (switch.theta * pull).sum().backward()
        optimizer.step()
        moved |= bool(~switch.alive[0] & (switch.theta[0] != 0))
        rule.update(switch)
        assert bool(switch.alive[0]) or switch.theta[0].item() == 0.0
    assert switch.alive.tolist() == [False, True, True]
    assert moved


def test_the_variance_is_never_denormal_on_its_way_down() -> None:
    mean, var = torch.ones(1), torch.full((1,), 0.4)
    seen = []
    for _ in range(1_500):
        update_sign_statistics_(torch.ones(1), mean, var, 0.9)
        seen.append(var.item())
    assert 0.0 < seen[100] < 1e-4
    assert all(value == 0.0 or value >= torch.finfo(torch.float32).tiny for value in seen)
    assert seen[-1] == 0.0
