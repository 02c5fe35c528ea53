"""The scripts of the dynamic regularizer: which runs they ask for, what they prune, what they draw."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import helpers
import pared
from pared.models import mlp, two_layer_cnn


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return helpers.script("dynamic_prior/tables.py")


@pytest.fixture(scope="module")
def used() -> ModuleType:
    return helpers.script("dynamic_prior/used.py")


def options_of(tmp_path: Path, **changed: Any) -> argparse.Namespace:
    usual: dict[str, Any] = {
        "out": tmp_path, "seeds": "0,1,2", "sets": "mnist", "network": "cnn", "penalties": "l1", "strengths": None,
        "density": 0.01, "threads": 1, "budget": 60.0, "rows": None, "epochs": 5, "decay": False,
    }  # fmt: skip
    return argparse.Namespace(**usual | changed)


def played(tables: ModuleType, options: argparse.Namespace, lost: dict[float, list[float]]) -> list[str]:
    """Run with losses of validation accuracy by strength and seed in place of training; return what was run, in order."""

    def run(
        name: str, kind: str, strength: float, seed: int, label: str, options: argparse.Namespace
    ) -> dict[str, Any]:
        told.append(label)
        validation = 90.0 - (0.0 if kind == "none" else lost[strength][seed])
        figures = {"penalty": kind, "strength": strength, "density": options.density, "seed": seed}
        return {"set": f"{name} cnn", **figures, "epochs": [{"validation": validation}]}

    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "run", run)
        found = list(_landed(tables.runs(options), options.out))
    assert found == told
    return [label.removeprefix("mnist-cnn-") for label in told]


def _landed(runs: Any, folder: Path) -> Iterator[str]:
    for label, run in runs:
        if not (folder / f"{label}.json").exists():
            (folder / f"{label}.json").write_text(json.dumps(run()))
            yield label


def test_all_seeds_are_run_with_the_strongest_penalty_that_keeps_accuracy_and_with_the_best(
    tables: ModuleType, tmp_path: Path
) -> None:
    weak, best, strong, hopeless = (0.1, 0.2, 0.3, 0.4)
    lost = {weak: [0.1] * 3, best: [-0.3, 0.0, 0.0], strong: [0.35, 0.2, 0.3], hopeless: [0.5, 0.0, 0.0]}
    told = played(tables, options_of(tmp_path, strengths="0.1,0.2,0.3,0.4"), lost)
    first = [f"l1-{strength:g}-0" for strength in (weak, best, strong, hopeless)]
    rest = [f"l1-{strength:g}-{seed}" for strength in (strong, best) for seed in (1, 2)]  # strong loses 0.3 in the mean
    assert told == ["none-0-0", "none-0-1", "none-0-2", *first, *rest]


def test_what_is_marked_was_run_with_all_seeds(tables: ModuleType) -> None:
    def runs(*validation: float) -> list[dict[str, Any]]:
        return [{"seed": seed, "epochs": [{"validation": value}]} for seed, value in enumerate(validation)]

    plain = {0: 90.0, 1: 91.0}
    group = {0.1: runs(95.0), 0.2: runs(90.5, 91.5), 0.3: runs(90.0, 90.7), 0.4: runs(80.0, 80.0)}
    assert tables.marked(group, plain) == {0.3: ["matched"], 0.2: ["best"]}
    del group[0.4]
    assert tables.marked(group, plain)[0.3] == ["matched, the strongest tried"]
    assert tables.marked({0.1: runs(95.0)}, plain) == {}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_a_pruned_network_computes_what_its_largest_weights_do(used: ModuleType, kind: str, share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    model: nn.Module = two_layer_cnn(size=8, widths=(6, 8), generator=generator)
    x = torch.randn(20, 1, 8, 8, generator=generator)
    if kind == "mlp":
        model, x = mlp(12, 3, (20, 16), generator=generator), torch.randn(20, 12, generator=generator)
    before = {name: p.clone() for name, p in model.named_parameters()}
    small = used.without_weights(model.eval(), x[:1], share)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    weights = [p for p in model.parameters() if p.ndim > 1]
    least = torch.cat([w.abs().flatten() for w in weights]).sort(descending=True).values
    least = least[round(share * len(least)) - 1]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(weight.abs() >= least)
        torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert used.alive(small) <= used.alive(model)
    if share <= 0.1:
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_units_are_removed_by_their_size_and_one_of_each_layer_stays(used: ModuleType) -> None:
    model = mlp(4, 2, (10, 6), generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(torch.arange(1.0, len(layer.weight) + 1)[:, None].expand_as(layer.weight))
    half = used.without_units(model, torch.zeros(1, 4), 0.5)
    first = half.get_parameter("0.weight")[:, 0].tolist()
    assert first == list(range(11 - len(first), 11))
    assert [len(half.get_parameter(f"{i}.weight")) for i in (0, 2)] == [5, 3]
    assert [len(used.without_units(model, torch.zeros(1, 4), 0.01).get_parameter(f"{i}.weight")) for i in (0, 2)] == [
        1,
        1,
    ]


def test_pruning_stops_before_the_first_that_is_not_good(used: ModuleType) -> None:
    model = mlp(12, 3, (20, 16), generator=torch.Generator().manual_seed(1)).eval()
    sizes: list[int] = []

    def good(one: nn.Module) -> bool:
        sizes.append(used.alive(one))
        return len(sizes) != 4

    share, small = used.smallest("weights", model, torch.zeros(1, 12), good)
    assert (len(sizes), share, used.alive(small)) == (4, pytest.approx(2**-0.75), sizes[2])
    assert used.smallest("weights", model, torch.zeros(1, 12), lambda one: False) == (1.0, model)


def test_figures_are_drawn_and_the_bound_holds_for_the_uniform_prior(tmp_path: Path) -> None:
    figures = helpers.script("dynamic_prior/figures.py")
    for share in (0.01, 0.1, 1.0):
        found = figures.penalties_of(figures.sparse_vector(2000, share), 0.01)
        assert found["uniform prior"] <= 1.05 * found["bound"] <= found["L2"] <= found["L1"]
        assert found["uniform prior"] < found["magnitude prior"] <= 1.001 * found["L2"]
    for draw in (figures.figure_1, figures.figure_2):
        name, _, charts = draw(500)
        assert all(one.startswith("<svg") for one in charts), name


def test_movement_is_that_of_the_second_half() -> None:
    projected = helpers.script("dynamic_prior/projected.py")
    story = [{"test": value} for value in (0.0, 50.0, 90.0, 93.0, 89.0, 89.0)]
    assert projected.movement(story) == pytest.approx(((4.0**2 + 0.0) / 2) ** 0.5)


@pytest.fixture
def images(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, ...]:
    """300 images of two kinds for training and 100 for the test, in place of files."""
    generator = torch.Generator().manual_seed(0)
    y, y_test = torch.randint(0, 2, (300,), generator=generator), torch.randint(0, 2, (100,), generator=generator)
    x, x_test = (
        torch.randn(len(kinds), 1, 8, 8, generator=generator) + kinds.view(-1, 1, 1, 1) for kinds in (y, y_test)
    )
    monkeypatch.setattr(tables, "read_images", lambda data, name, rows: (x, y, x_test, y_test))
    return x, y, x_test, y_test


def test_validation_is_what_is_not_trained_on(
    tables: ModuleType, images: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    parts = tables.parts_of(tmp_path, "mnist", None, "cpu")
    assert torch.equal(torch.cat([parts["train"][0], parts["validation"][0]]), images[0])
    assert len(parts["validation"][1]) == 60
    assert torch.equal(parts["test"][0], images[2])


@pytest.mark.parametrize("kind", ["l1", "l2", "hoyer", "proposed", "uniform"])
def test_a_run_is_pressed_and_its_network_is_pruned_on_validation(
    tables: ModuleType, used: ModuleType, images: tuple[torch.Tensor, ...], tmp_path: Path, kind: str
) -> None:
    options = options_of(tmp_path, data=tmp_path, device="cpu", epochs=3)
    one = [tables.run("mnist", k, s, 0, f"mnist-{k}", options) for k, s in (("none", 0.0), (kind, 3.0))]
    plain, pressed = (found["weights"]["0.01"] for found in one)
    which = "density" if kind == "hoyer" else "magnitude"  # Hoyer's square has no scale
    assert plain[which] > 1.02 * pressed[which]
    assert one[0]["set"] == "mnist cnn 3 epochs"
    parts = tables.parts_of(tmp_path, "mnist", None, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(used, "parts_of", lambda *_: parts)
        patch.setattr(used, "network", lambda *_: tables.network("cnn", 1, 8))
        told = used.prune(tmp_path / "mnist-none.safetensors", one[0], "a", options)
        model = tables.network("cnn", 1, 8)
        small = pared.load(model, tmp_path / "a-weights.safetensors")
    for part, known in (("validation", one[0]["epochs"][-1]["validation"] - 0.2), ("test", told["weights"]["test"])):
        share = 100.0 * float((small(parts[part][0]).argmax(1) == parts[part][1]).float().mean())
        assert share >= known - 1e-4 if part == "validation" else share == pytest.approx(known)
    assert told["weights"]["params"] < told["params"]


@pytest.mark.parametrize("decay", [False, True])
def test_rates_are_constant_or_fall_to_nothing(
    tables: ModuleType,
    images: tuple[torch.Tensor, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    decay: bool,
) -> None:
    rates: list[float] = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda o: (rates.append(o.param_groups[0]["lr"]), step(o))[1])
    tables.run("mnist", "none", 0.0, 0, "a", options_of(tmp_path, data=tmp_path, device="cpu", epochs=2, decay=decay))
    assert len(rates) == 2 * (240 // 32)
    assert rates == pytest.approx([1e-3 * (1 - n / len(rates) if decay else 1) for n in range(len(rates))])


def test_names_tell_settings_and_densities_apart(tables: ModuleType, tmp_path: Path) -> None:
    settings = {
        tables.setting("mnist", options_of(tmp_path, **changed))
        for changed in (
            {},
            {"rows": 100},
            {"epochs": 7},
            {"rows": 100, "epochs": 7},
            {"network": "mlp"},
            {"decay": True},
        )
    }
    assert len(settings) == 6
    assert tables.titled({"penalty": "proposed", "density": 0.05}) == "proposed 0.05"
    assert tables.titled({"penalty": "proposed", "density": 0.01}) == "proposed"
    assert tables.titled({"penalty": "l1", "density": 0.05}) == "l1"
    with pytest.raises(SystemExit, match="flat"):
        next(iter(tables.runs(options_of(tmp_path, penalties="flat"))))


def test_losses_are_those_that_are_named() -> None:
    projected = helpers.script("dynamic_prior/projected.py")
    assert type(projected.loss_of("ce", 0)) is nn.CrossEntropyLoss
    found = [projected.loss_of(name, 0) for name in ("0.3", "0.3 magnitude", "0.3 counted")]
    assert [one.sampling.prior for one in found] == ["signed", "magnitude", "signed"]
    assert [one.reading for one in found] == ["restricted", "restricted", "counted"]
    assert all(one.sampling.density == 0.3 for one in found)
    with pytest.raises(SystemExit, match="counter"):
        projected.loss_of("0.3 counter", 0)
