"""What would silently do nothing, or something else than was asked for, says so by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import network, task
from pared.errors import RunError
from pared.estimators import _seed
from pared.methods import SDR, SET, SNFS, GradualMagnitude, LpSS, RigL, Static, WeightMethod
from pared.optim import ClassRateSGD
from pared.topology import Constant
from pared.train.context import Observer


def bound(method: WeightMethod, total_steps: int = 20) -> Any:
    net = network()
    loss = lambda: 0.0  # noqa: E731
    return method.bind(net, torch.optim.SGD(net.parameters(), 0.1), total_steps=total_steps, loss=loss)


def test_a_state_of_other_settings_or_another_length_is_refused() -> None:
    state = bound(RigL(0.9, every=5)).state_dict()
    bound(RigL(0.9, every=5)).load_state_dict(state)
    for method, message in (
        (RigL(0.5, every=5), r"sparsity=0\.9, this one has sparsity=0\.5"),
        (RigL(0.9, every=4), "every=5, this one has every=4"),
        (RigL(0.9, every=5, fraction=Constant(0.2)), "with fraction=Cosine"),
    ):
        with pytest.raises(RunError, match=message):
            bound(method).load_state_dict(state)
    with pytest.raises(RunError, match="a run of 20 steps, this one of 30"):
        bound(RigL(0.9, every=5), 30).load_state_dict(state)
    free = bound(Static(0.9), 20).state_dict()
    bound(Static(0.9), 30).load_state_dict(free)  # which no moment of the run matters to


@pytest.mark.parametrize(
    "method",
    [
        RigL(every=30),
        SET(every=8, begin=0.5, end=0.7),
        SNFS(every=30),
        LpSS(every=30),
        SDR(every=30, tolerance=0.1),
    ],
)
def test_changes_that_never_come_are_warned_of(method: WeightMethod) -> None:
    with pytest.warns(UserWarning, match="connections never change in 20 steps"):
        session = bound(method)
    assert not any(method.due(session, step) for step in range(1, 21))


def test_the_last_cut_needs_no_multiple() -> None:
    for method in (GradualMagnitude(every=30), SDR(every=30), RigL(every=15), RigL(0.0, every=30)):
        bound(method)


def test_a_step_without_classes_says_that_it_is_plain() -> None:
    net, (x, y) = network(), task()
    optimizer = ClassRateSGD(net, classes=3)
    F.cross_entropy(net(x[:8]), y[:8]).backward()
    with pytest.warns(UserWarning, match="with optimizer.classes"):
        optimizer.step()
    optimizer.zero_grad()
    with optimizer.classes(y[:8]):
        F.cross_entropy(net(x[:8]), y[:8]).backward()
    optimizer.step()
    plain = ClassRateSGD(nn.Linear(2, 2), classes=3, layers=0)
    plain.step()


def test_methods_of_an_observer_s_subclass_are_called() -> None:
    class Mine(Observer):
        def __init__(self, **given: Callable[..., None]) -> None:
            super().__init__(**given)
            self.lines: list[str] = []

        def note(self, line: str) -> None:
            self.lines.append(line)

    seen: list[Any] = []
    mine = Mine(epoch=seen.append)
    mine.note("a")
    mine.epoch({"b": 1})
    mine.event({})
    assert (mine.lines, seen) == (["a"], [{"b": 1}])
    assert Observer().note("c") is None


def test_random_states_are_read_as_scikit_learn_does() -> None:
    assert _seed(3) == _seed(np.int64(3)) == 3  # type: ignore[arg-type]
    assert len({_seed(None) for _ in range(4)}) == 4
    assert _seed(np.random.RandomState(1)) == _seed(np.random.RandomState(1)) != _seed(np.random.RandomState(2))
    generator = np.random.default_rng(0)
    assert _seed(generator) != _seed(generator)
