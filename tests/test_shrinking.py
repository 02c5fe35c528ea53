"""`pared.shrink`, from the network a person has to the one that fits."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import pared
from helpers import Branched, branched, images
from pared.errors import ConfigError, DataError, RunError, SurgeryError
from pared.methods import Gates, Geometric, GroupLasso, Shrink
from pared.train.batches import recalibrate
from pared.train.context import Observer
from pared.train.shrunk import Shrunk, Smaller, candidates, choose, front

X, _ = images(128)
SIGNS = torch.randint(0, 2, (2, 128), generator=torch.Generator().manual_seed(5)) * 2 - 1
X[:, 0] += 0.3 * SIGNS[0].view(-1, 1, 1)
X[:, 1] += 0.3 * SIGNS[1].view(-1, 1, 1)
Y = (SIGNS[0] == SIGNS[1]).long()  # what no single unit can tell


def loader(seed: int = 0) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(X, Y), 16, shuffle=True, generator=torch.Generator().manual_seed(seed))


def validate(model: nn.Module) -> float:
    assert not model.training
    return float((model(X).argmax(1) == Y).float().mean())


def likelihood(model: nn.Module) -> float:
    return -nn.functional.cross_entropy(model(X), Y).item()


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


OPTIONS: dict[str, Any] = {"optimizer": adam, "epochs": 20, "fine_tune": 1, "smallest": 0.1}


def shrunk(**options: Any) -> Shrunk:
    return pared.shrink(branched(), loader(), validate, **{**OPTIONS, **options})


def point(params: int, score: float, **costs: float) -> Smaller:
    return Smaller(nn.Identity(), params, int(costs.get("macs", params)), costs.get("latency_us", 1.0), score)


def test_the_front_falls_in_size_and_score_and_its_networks_are_plain() -> None:
    model = branched()
    kept = copy.deepcopy(model.state_dict())
    result = pared.shrink(model, loader(), likelihood, dense_epochs=10, **{**OPTIONS, "fine_tune": 20})
    assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())
    assert len(result.front) >= 2
    assert result.events
    assert result.dense.params == sum(p.numel() for p in model.parameters())
    assert result.dense.score > -0.5
    sizes, scores = [p.params for p in result.front], [p.score for p in result.front]
    assert sizes == sorted(sizes, reverse=True)
    assert scores == sorted(scores, reverse=True)
    assert sizes[-1] < 0.5 * result.dense.params
    for smaller in result.front:
        net = smaller.model
        assert isinstance(net, Branched)
        assert not any(type(module).__module__.startswith("pared.nn") for module in net.modules())
        assert smaller.params == sum(p.numel() for p in net.parameters())
        assert smaller.score == likelihood(net)
        assert all(parameter.grad is None for parameter in net.parameters())
        assert smaller.latency_us > 0
    macs = [p.macs for p in result.front]
    assert macs == sorted(macs, reverse=True)
    assert result.model is result.chosen.model
    assert "chosen" in str(result)


def test_a_cap_on_parameters_is_reached_and_kept() -> None:
    result = shrunk(max_params=450, epochs=40)
    assert result.chosen.params <= 450
    assert result.because == "the best on validation with at most 450 parameters"


def test_an_optimizer_whose_rate_starts_at_0_is_served() -> None:
    def warming(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.0)

    with pytest.warns(UserWarning, match="nothing died"):
        shrunk(optimizer=warming, epochs=1, fine_tune=0)


def test_a_size_that_cannot_be_is_refused_before_any_training() -> None:
    with pytest.raises(ConfigError, match="max_params=120 cannot be reached: .* 305 parameters; .* stem, outer, head"):
        shrunk(max_params=120, observer=Observer(epoch=_interrupt))


@pytest.mark.parametrize("killed_after", [-1, 0, 8, 19])
def test_a_run_goes_on_where_it_was_stopped(killed_after: int, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["phase"] == "shrink" and record["epoch"] == killed_after + 1:
            raise Killed
        if record["phase"] == "fine_tune" and killed_after == 19 and record["params"] < 500:
            raise Killed

    whole = shrunk(folder=tmp_path / "whole", dense_epochs=1)
    with pytest.raises(Killed):
        shrunk(folder=tmp_path / "part", dense_epochs=1, observer=Observer(epoch=stop))
    notes: list[str] = []
    resumed = shrunk(folder=tmp_path / "part", dense_epochs=1, observer=Observer(note=notes.append))
    assert killed_after == -1 or notes[0] == f"going on after epoch {min(killed_after + 1, 20)}"
    assert resumed.events == whole.events
    assert [p.params for p in resumed.front] == [p.params for p in whole.front]
    for mine, other in zip(resumed.front, whole.front, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.model.parameters(), other.model.parameters(), strict=True))
    again = shrunk(folder=tmp_path / "part", dense_epochs=1)
    assert [p.score for p in again.front] == [p.score for p in resumed.front]
    with pytest.raises(RunError, match="another epochs"):
        shrunk(folder=tmp_path / "part", dense_epochs=1, epochs=21)
    assert not list(tmp_path.rglob("*.pt"))


def test_it_goes_on_with_the_generator_of_a_sampler_too(tmp_path: Path) -> None:
    def stop(record: dict[str, Any]) -> None:
        if record["epoch"] == 4:
            raise RuntimeError("killed")

    def run(folder: str, observer: Observer | None = None) -> Shrunk:
        data = TensorDataset(X, Y)
        sampler = RandomSampler(data, generator=torch.Generator().manual_seed(3))
        options = {**OPTIONS, "epochs": 6, "folder": tmp_path / folder, "observer": observer}
        return pared.shrink(branched(), DataLoader(data, 16, sampler=sampler), validate, **options)

    whole = run("whole")
    with pytest.raises(RuntimeError, match="killed"):
        run("part", Observer(epoch=stop))
    for mine, other in zip(run("part").front, whole.front, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.model.parameters(), other.model.parameters(), strict=True))


def test_sizes_passed_within_an_epoch_are_kept(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    whole = shrunk(epochs=5, fine_tune=0, folder=tmp_path, observer=Observer(epoch=records.append))
    epochs = [record["params"] for record in records if record["phase"] == "shrink"]
    taken = len(list((tmp_path / "snapshots").iterdir()))
    assert taken > len(epochs)
    again = shrunk(epochs=5, fine_tune=0, folder=tmp_path)
    assert [(p.params, p.score, p.epoch) for p in again.front] == [(p.params, p.score, p.epoch) for p in whole.front]


def test_an_interrupt_keeps_what_there_is() -> None:
    def stop(record: dict[str, Any]) -> None:
        if record["phase"] == "shrink" and record["params"] < 600:
            raise KeyboardInterrupt

    result = shrunk(observer=Observer(epoch=stop))
    assert result.interrupted
    assert result.front
    assert set(result.seconds) == {"dense", "shrink"}
    with pytest.raises(KeyboardInterrupt):
        shrunk(observer=Observer(epoch=_interrupt), dense_epochs=1)


def _interrupt(record: dict[str, Any]) -> None:
    raise KeyboardInterrupt


def test_recalibrated_norms_have_the_statistics_of_the_data() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    recalibrate(net, [(part, None) for part in x.split(16)], batches=4)
    norm = net.get_submodule("0")
    assert isinstance(norm, nn.BatchNorm1d)
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([part.var(0) for part in x.split(16)]).mean(0))
    assert norm.momentum == 0.1


def test_mappings_and_tuples_are_inputs_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = branched()

        def forward(self, image: Tensor, scale: float = 1.0) -> Tensor:
            return self.inner(image * scale)

    for batch in ({"image": X[:16]}, (X[:16], 2.0)):
        named = [(batch, Y[:16])] * 4
        result = pared.shrink(Named(), named, lambda m: validate(m.inner), **OPTIONS)  # pyright: ignore[reportArgumentType]
        assert isinstance(result.model, Named)


def test_what_cannot_be_is_refused_and_says_what_to_do() -> None:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        yield X, Y

    with pytest.raises(ConfigError, match="must know its length"):
        pared.shrink(branched(), endless(), validate)
    with pytest.raises(ConfigError, match="empty"):
        pared.shrink(branched(), [], validate)
    with pytest.raises(DataError, match="pairs"):
        pared.shrink(branched(), [X], validate)
    with pytest.raises(SurgeryError, match="no layer of the network can lose units"):
        pared.shrink(nn.Sequential(nn.Flatten(), nn.Linear(72, 2)), loader(), validate)
    bad = {
        "max_drop": -1.0,
        "max_params": 0,
        "max_macs": math.nan,
        "max_latency": math.inf,
        "epochs": 0,
        "smallest": 1.0,
    }
    bad |= {"fine_tune": -1, "dense_epochs": -1}
    for name, value in bad.items():
        with pytest.raises(ConfigError, match=name):
            shrunk(**{name: value})
    with pytest.raises(ConfigError, match=r"give it in the same units, 0\.01"):
        shrunk(max_drop=1.0)


def test_a_method_of_ones_own_presses() -> None:
    result = shrunk(method=Shrink(Geometric(1e-3, 0.5), every=2, cost="parameters", lr_scale=5.0), epochs=6)
    assert {p.strength <= 0.5 for p in result.front} == {True}
    assert result.events


POINTS = [point(1000, 0.9), point(500, 0.88, latency_us=9.0), point(100, 0.8), point(10, 0.5)]


@pytest.mark.parametrize(
    ("wishes", "params", "because"),
    [
        ({}, 1000, "the smallest with at most 0 below"),
        ({"max_drop": 0.02}, 500, "the smallest with at most 0.02 below"),
        ({"max_drop": 0.02, "max_latency": 2.0}, 1000, "at most 2 µs a row and at most 0.02 below"),
        ({"max_drop": 0.02, "max_params": 100}, 100, "no network has at most 100 parameters and at most 0.02"),
        ({"max_params": 600}, 500, "the best on validation with at most 600 parameters"),
        ({"max_macs": 50}, 10, "the best on validation with at most 50 multiply"),
        ({"max_params": 5}, 10, "no network has at most 5 parameters; this is the smallest there is"),
    ],
)
def test_the_choice_follows_the_wish(wishes: dict[str, float], params: int, because: str) -> None:
    chosen, reason = choose(point(2000, 0.9), POINTS, wishes)
    assert chosen.params == params
    assert because in reason


def test_fronts_and_candidates() -> None:
    worse = point(2000, 0.85)
    assert front([*POINTS, worse, point(100, math.nan)]) == POINTS
    near = [point(100, 0.5), point(110, 0.7), point(10, 0.1)]
    assert [p.score for p in candidates(near, {})] == [0.7, 0.1]
    assert [p.score for p in candidates(near, {"max_params": 105})] == [0.7, 0.5, 0.1]


@pytest.mark.filterwarnings("ignore:the network hardly shrank", "ignore:nothing died")
def test_a_run_too_short_for_its_wish_goes_on_for_a_while() -> None:
    def slow(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=1e-4)

    epochs: list[int] = []
    observer = Observer(epoch=lambda record: epochs.append(record["epoch"]) if record["phase"] == "shrink" else None)
    result = shrunk(max_params=310, epochs=1, optimizer=slow, observer=observer)
    assert len(epochs) == 2
    assert result.because.startswith("no network has at most 310 parameters; this is the smallest there is")
    assert result.chosen.params == min(one.params for one in [result.dense, *result.front])


def test_a_run_too_short_says_so_and_what_would_be_enough() -> None:
    few = [(X[:16], Y[:16])] * 4
    with pytest.warns(
        UserWarning, match=r"nothing died in 4 steps.* from 1 to 0\.\d+.* about \d+ steps \(\d+ epochs\)"
    ) as told:
        result = pared.shrink(branched(), few, validate, epochs=1, fine_tune=0, method=Shrink(0.1, every=1))
    assert [one.filename for one in told] == [__file__]
    assert result.model is result.dense.model
    assert f"Warning: {result.warning}." in str(result)
    with pytest.warns(UserWarning, match="nothing died in 8 steps"):
        pared.shrink(branched(), few, validate, epochs=2, fine_tune=0, method=Gates(1e-2, every=2))
    with pytest.warns(UserWarning, match="nothing died in 4 steps.*; raise epochs"):
        pared.shrink(branched(), few, validate, epochs=1, fine_tune=0, method=GroupLasso(1e-6, every=1))
    with pytest.warns(UserWarning, match="every 100 steps, and the run has 80"):
        Shrink(0.1, every=100).bind(model := branched(), adam(model.parameters()), X[:1], total_steps=80)
