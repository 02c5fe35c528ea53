"""A folder is gone on with by the very run it holds, and by no other."""

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import pared
from helpers import network, task
from pared.errors import RunError
from pared.methods import Shrink
from pared.train.fingerprint import data_print, name_of

X, Y = task(32)


def score(model: nn.Module) -> float:
    return float((model(X).argmax(1) == Y).float().mean())


def loader(x: Tensor = X, y: Tensor = Y, seed: int | None = 0, size: int = 16) -> Any:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(x, y), size, shuffle=True, generator=generator)


def adam(parameters: Any, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr)


def _shrink(folder: Path, model: nn.Module | None = None, batches: Any = None, **options: Any) -> Any:
    options = {"epochs": 2, "method": Shrink(1.0, every=1, lr_scale=50.0), "optimizer": adam, "fine_tune": 0} | options
    return pared.shrink(model or network(), batches or loader(), score, folder=folder, **options)


def _by_class(folder: Path, model: nn.Module | None = None, batches: Any = None, **options: Any) -> Any:
    options = {"classes": 2, "cutoffs": (1,), "epochs": 1} | options
    return pared.train_by_class(model or network(), batches or loader(), score, folder=folder, **options)


FLIPPED = torch.where(torch.arange(32) == 31, 1 - Y, Y)


@pytest.mark.filterwarnings("ignore:nothing died", "ignore:the network hardly shrank")
@pytest.mark.parametrize(
    ("run", "changed", "what"),
    [
        (_shrink, {"model": network(seed=1)}, "start"),
        (_shrink, {"batches": loader(y=FLIPPED)}, "data"),
        (_shrink, {"batches": loader(x=X + 1e-3)}, "data"),
        (_shrink, {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, "loss"),
        (_shrink, {"optimizer": functools.partial(adam, lr=0.02)}, "optimizer"),
        (_by_class, {"batches": loader(y=FLIPPED)}, "data"),
        (_by_class, {"loss": lambda out, y: F.cross_entropy(out, y)}, "loss"),
        (_by_class, {"groups": lambda x, y: 1 - y}, "groups"),
    ],
)
def test_another_run_is_refused(run: Callable[..., Any], changed: dict[str, Any], what: str, tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(RunError, match=f"holds a run with another {what}"):
        run(tmp_path, **changed)
    run(tmp_path)


class Rows(Dataset[Any]):
    """Rows moved about at random, as images are."""

    def __init__(self, draw: Callable[[], float], y: Tensor = Y) -> None:
        self.draw, self.y = draw, y

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return X[place] + self.draw(), self.y[place]


DRAWS = {
    "torch": lambda: float(torch.rand(())),
    "python": random.random,
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002 - what data sets in the wild draw from
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
@pytest.mark.parametrize("seed", [None, 0])
def test_the_same_data_is_known_wherever_its_random_numbers_are(draw: Callable[[], float], seed: int | None) -> None:
    def made(y: Tensor = Y) -> Any:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return DataLoader(Rows(draw, y), 16, shuffle=True, generator=generator)

    batches = made()
    first = data_print(batches)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]  # noqa: NPY002
    for _ in batches:
        draw()
    assert data_print(batches) == first != ""
    assert data_print(made(1 - Y)) != first
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]  # noqa: NPY002
    data_print(batches)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert len(states) == 3


def test_data_that_no_seed_repeats_is_not_compared() -> None:
    own = np.random.default_rng()
    assert data_print(DataLoader(Rows(lambda: float(own.random())), 16)) == ""
    assert data_print(loader(seed=0)) == data_print(loader(seed=3))
    assert data_print([(X, Y)]) != data_print([(X, FLIPPED)])


def test_names_tell_constants() -> None:
    assert name_of(lambda x: x * 0.5) != name_of(lambda x: x * 0.25)
    weights = nn.CrossEntropyLoss(torch.ones(2)), nn.CrossEntropyLoss(torch.zeros(2))
    assert name_of(weights[0]) != name_of(weights[1])
