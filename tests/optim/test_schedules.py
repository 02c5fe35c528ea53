"""Learning rates along straight lines."""

import pytest
import torch
from torch import nn

from pared.errors import ConfigError
from pared.optim import piecewise_linear, triangular


def rates(make: object, steps: int) -> list[list[float]]:
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 2.0}], lr=0.5)
    schedule, found = make(optimizer), []  # type: ignore[operator]
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def test_every_group_follows_the_lines_from_its_own_rate() -> None:
    found = rates(lambda o: piecewise_linear(o, [(0, 0.2), (1, 1.0), (3, 0.0)], steps=2), 8)
    factors = [0.2, 0.6, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert found == [pytest.approx([0.5 * factor, 2.0 * factor]) for factor in factors]


def test_a_triangle() -> None:
    assert [first for first, _ in rates(lambda o: triangular(o, 8), 9)] == pytest.approx(
        [0.0, 0.25, 0.5, *(0.5 * (8 - step) / 6 for step in range(3, 9))]
    )


def test_what_makes_no_line_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    for knots in ([], [(1.0, 1.0), (1.0, 0.5)], [(2.0, 1.0), (1.0, 0.5)], [(0.0, -0.1)]):
        with pytest.raises(ConfigError, match="knots"):
            piecewise_linear(optimizer, knots)
    with pytest.raises(ConfigError, match="peak"):
        triangular(optimizer, 8, peak=1.0)
