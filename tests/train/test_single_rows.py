"""Batches of one row and loaders of every length, where a network has batch norms."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pared
from pared.errors import ConfigError, DataError
from pared.methods import Shrink
from pared.train.batches import recalibrate
from pared.train.feed import Feed

X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def network(norm: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        middle = [nn.BatchNorm1d(6)] if norm else []
        return nn.Sequential(nn.Linear(4, 6), *middle, nn.ReLU(), nn.Linear(6, 2))


def image_network() -> nn.Module:
    """One row has several values a channel in every norm of it."""
    shaped = nn.Unflatten(1, (1, 2, 2))
    return nn.Sequential(shaped, nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


def score(model: nn.Module) -> float:
    return float((model(X).argmax(1) == Y).float().mean())


def loader(size: int, **options: Any) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(X, Y), size, shuffle=True, generator=torch.Generator().manual_seed(1), **options)


class Unknown:
    """Knows how many batches it has and not how large they are."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X.split(4), Y.split(4), strict=True)


LISTED = list(zip(X.split(4), Y.split(4), strict=True))
PRESS = Shrink(1.0, every=1, lr_scale=50.0)


@pytest.mark.parametrize(
    ("batches", "steps", "says"),
    [
        (loader(4), 2, "1 of 3 batches of train_loader have one row, of which BatchNorm1d '1'"),
        (LISTED, 2, "1 of 3 batches"),
        (LISTED[::-1], 2, "1 of 3 batches"),
        (Unknown(), 3, "a batch of train_loader has one row"),
    ],
    ids=["loader", "list", "first of a list", "unknown"],
)
def test_a_batch_of_one_row_is_left_out_and_that_is_told_once(batches: Any, steps: int, says: str) -> None:
    for run in (_shrunk, _by_class):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run(network(), batches)
        mine = [str(one.message) for one in told if "one row" in str(one.message)]
        assert len(mine) == 1
        assert mine[0].startswith(says)
        assert all(one.filename == __file__ for one in told)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Feed(batches, network()).steps == steps


def _shrunk(model: nn.Module, batches: Any) -> None:
    found = pared.shrink(model, batches, score, epochs=3, fine_tune=1, dense_epochs=1, method=PRESS)
    assert torch.isfinite(found.model(X)).all()


def _by_class(model: nn.Module, batches: Any) -> None:
    pared.train_by_class(model, batches, score, classes=2, cutoffs=(1,), epochs=2)


@pytest.mark.parametrize("model", [network(norm=False), image_network()], ids=["no norm", "several values a channel"])
def test_where_no_norm_needs_two_rows_every_batch_counts(model: nn.Module) -> None:
    feed = Feed(loader(4), model)
    assert feed.steps == len(list(feed)) == 3
    flags = [module.training for module in model.modules()]
    kept = copy.deepcopy(model.state_dict())
    assert Feed(loader(1), model.eval()).steps == 9
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    model.train()
    assert [module.training for module in model.modules()] == flags


def test_a_norm_that_does_not_train_needs_no_two_rows() -> None:
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> "Frozen":
            return super().train(False)

    model = nn.Sequential(nn.Linear(4, 6), Frozen(6).eval(), nn.ReLU(), nn.Linear(6, 2))
    assert Feed(loader(4), model).steps == 3


def test_loaders_that_cannot_serve_are_refused_before_any_training() -> None:
    class Silent(Unknown):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from ()

    for batches in (loader(1), [(X[:1], Y[:1])] * 3):
        with pytest.raises(ConfigError, match="every batch of train_loader has one row, of which BatchNorm1d '1'"):
            Feed(batches, network())
    with pytest.raises(ConfigError, match="batch_size=16 is more than the rows there are"):
        Feed(loader(16, drop_last=True), network())
    with pytest.raises(DataError, match="gave no batch, although its length"):
        Feed(Silent(), network())
    with pytest.raises(DataError, match="gave no batch"):
        recalibrate(network(), Silent())


def test_a_feed_draws_nothing_from_the_loaders_generator() -> None:
    before = torch.get_rng_state()
    batches = loader(4)
    assert batches.generator is not None
    state = batches.generator.get_state()
    with pytest.warns(UserWarning, match="one row"):
        Feed(batches, network())
    assert torch.equal(state, batches.generator.get_state())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:nothing died", "ignore:the network hardly shrank")
@pytest.mark.parametrize("size", [9, 16])
def test_one_batch_an_epoch_is_enough(size: int) -> None:
    _shrunk(network(), loader(size))


@pytest.mark.filterwarnings("ignore:.* steps left .* more than half")
def test_estimators_take_fewer_rows_than_a_batch_and_batches_of_one() -> None:
    for size, rows in ((64, 9), (1, 9), (8, 9)):
        fitted = pared.ParedClassifier(hidden=(4,), epochs=2, batch_size=size, fine_tune=1).fit(X[:rows], Y[:rows])
        assert fitted.predict(X).shape == (9,)
