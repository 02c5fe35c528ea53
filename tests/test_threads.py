import logging
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pared
from helpers import network
from pared import methods
from pared.measure.latency import threads
from pared.measure.size import macs
from pared.methods.method import UnitMethod
from pared.process import silent

X = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Reshaped(nn.Module):
    """A network that is grown to prove its graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv, self.head = nn.Conv2d(2, width, 3), nn.Linear(width * 16, 3)
        nn.init.constant_(self.conv.weight, 0.1)
        nn.init.constant_(self.head.weight, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().reshape(-1, self.width * 16))


def at_once(work: Callable[[int], Any], count: int = 4) -> list[Any]:
    """What `work` gives for 0, 1, … in so many threads that begin together."""
    found: list[Any] = [None] * count
    start = threading.Barrier(count)

    def run(place: int) -> None:
        start.wait()
        try:
            found[place] = work(place)
        except BaseException as error:
            found[place] = error

    every = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for one in every:
        one.start()
    for one in every:
        one.join()
    return found


def settings() -> list[Any]:
    """What belongs to the whole process."""
    disabled = logging.getLogger("torch._subclasses.fake_tensor").disabled
    fast = torch.backends.mha.get_fastpath_enabled()
    return [list(warnings.filters), sys.stdout, disabled, fast, torch.get_num_threads(), torch.get_rng_state().tolist()]


def test_graphs_of_four_threads_are_those_of_one() -> None:
    nets, shared = [Reshaped(4 + place) for place in range(4)], Reshaped(3).train()
    shared.conv.eval()

    def work(place: int) -> list[Any]:
        return [str(pared.graph(nets[place], X)), str(pared.graph(shared, X)), macs(shared, X)]

    before, alone = settings(), [work(place) for place in range(4)]
    assert at_once(work) == alone
    assert settings() == before
    assert (shared.training, shared.conv.training, shared.head.training) == (True, False, True)


@pytest.mark.parametrize(
    "method", [methods.Shrink(), methods.L0(), methods.GroupLasso(), methods.Slimming(200), methods.Prune(200)]
)
def test_methods_bound_in_four_threads_do_as_in_one(method: UnitMethod) -> None:
    def work(place: int) -> list[Any]:
        net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), network(5, (4,), place))
        generator = torch.Generator().manual_seed(place)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.uniform_(-0.5, 0.5, generator=generator)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        session = method.bind(
            net, optimizer, X[:, 0, 0], total_steps=3, steps_per_epoch=3, generator=torch.Generator().manual_seed(place)
        )
        (net(X[:, 0, 0]).square().sum() + session.penalty()).backward()
        session.step()
        return [sorted(session.slots), [p.tolist() for p in session.realize().parameters()]]

    before, alone = settings()[:5], [work(place) for place in range(4)]
    assert at_once(work) == alone
    assert settings()[:5] == before


def test_estimators_fitted_in_four_threads_learn_as_in_one() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)

    def work(place: int) -> list[Any]:
        made = pared.ParedClassifier(hidden=(4,), epochs=2, random_state=place).fit(x, y)
        return made.predict_proba(x).tolist()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone, before = [work(place) for place in range(4)], settings()[1:]  # scikit-learn has filters of its own
        assert at_once(work) == alone
        assert settings()[1:] == before


def test_the_number_of_threads_comes_back_though_blocks_overlap() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        inside, leave = threading.Event(), threading.Event()

        def work() -> None:
            with threads(1):
                inside.set()
                leave.wait()

        other = threading.Thread(target=work)
        with threads(1):
            other.start()
            inside.wait()
            with threads(2):
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        leave.set()
        other.join()
        found: list[int] = []
        fresh = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        assert found == [3]
    finally:
        torch.set_num_threads(before)


def test_filters_of_warnings_come_back_though_blocks_overlap() -> None:
    before, first, second = list(warnings.filters), silent(UserWarning), silent(FutureWarning)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    warnings.warn("still held back", FutureWarning, stacklevel=1)
    second.__exit__(None, None, None)
    assert list(warnings.filters) == before
