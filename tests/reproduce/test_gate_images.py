"""The script of gates on images: each network, with each of its rivals, in its smallest form."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import helpers
from pared.models import densenet, resnet, resnext

#: Smaller than the script's own, on images of 8x8: most of the time goes into tracing them.
SMALL: dict[str, Callable[..., nn.Module]] = {
    "resnet": lambda width, generator: resnet((2, 2), width=width, generator=generator),
    "resnext": lambda width, generator: resnext((2, 1), branches=width, width=2, stem=2, generator=generator),
    "densenet": lambda width, generator: densenet((3,), growth=width, bottleneck=False, generator=generator),
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return helpers.script("gates/images.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in the published form of CIFAR-10: 100 images to train on and hold out, 20 for the test."""
    folder, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "cifar10").mkdir()
    for name, rows in (("data_batch_1", 100), ("test_batch", 20)):
        images = noise.integers(0, 256, (rows, 1 + 3072), dtype=np.uint8)
        images[:, 0] %= 10
        images.tofile(folder / "cifar10" / f"{name}.bin")
    return folder


def options_of(net: str, data: Path, out: Path, strengths: str, lassos: str) -> argparse.Namespace:
    out.mkdir(parents=True, exist_ok=True)
    fixed = {"rows": 64, "epochs": 6, "batch": 16, "width": 3, "thin": "3,2", "device": "cpu", "seeds": "0"}
    kinds = "thin,gates,random,softmax,lasso"
    given = {"net": net, "data": data, "out": out, "strengths": strengths, "lassos": lassos, "kinds": kinds}
    return argparse.Namespace(**fixed, **given, latency=False, seconds=0.0)


@pytest.mark.parametrize(("net", "strength", "lasso"), [("resnet", 30, 2), ("resnext", 10, 5), ("densenet", 100, 1)])
def test_every_rival_runs_and_what_is_left_computes_the_same(
    net: str,
    strength: float,
    lasso: float,
    script: ModuleType,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(script.NETS, net, dataclasses.replace(script.NETS[net], make=SMALL[net], side=8))
    options = options_of(net, data, tmp_path / "runs", str(strength), str(lasso))
    found = {}
    for name, run in script.runs(options):
        found[name.split("-")[1]] = found[name] = run()
        (options.out / f"{name}.json").write_text(json.dumps(found[name]))
    counts = {kind: {t: len(kept) for t, kept in found[kind]["kept"].items()} for kind in script.KINDS}
    dense = found[f"{net}-thin-3-0"]
    for kind in ("gates", "lasso"):
        assert sum(counts[kind].values()) < sum(len(kept) for kept in dense["kept"].values())
        assert min(counts[kind].values()) >= 1
        assert found[kind]["macs"] < dense["macs"]
    for kind in ("random", "softmax"):
        assert counts[kind] == counts["gates"]
    for kind in ("gates", "softmax", "lasso"):
        assert found[kind]["difference"] < 1e-5
    options.latency = True
    assert script.time_anew(options)
    told = capsys.readouterr().out
    assert all(f"| {kind} " in told for kind in script.KINDS)
    assert json.loads((options.out / f"{net}-thin-2-0.json").read_text())["timed"] == "in turns"


def test_costs_between_two_runs_are_read_off_the_line(script: ModuleType) -> None:
    at_macs = sys.modules["equal_macs"].at_macs
    points = [{"macs": 100, "test": 10.0}, {"macs": 10_000, "test": 20.0}]
    assert at_macs(points, 1_000, "test") == pytest.approx(15.0)
    assert math.isnan(at_macs(points, 99, "test"))  # no run is as cheap


def test_groups_of_a_lasso_go_to_zero_whole(script: ModuleType) -> None:
    nets = sys.modules["nets"]
    weight = torch.ones(2, 5, 1, 1)
    weight[:, :2] = 0.1
    shrunk = nets._shrunk(weight, 0.2, [2, 3], 1)
    assert not shrunk[:, :2].any()
    assert shrunk[:, 2:].flatten().tolist() == pytest.approx([0.8] * 6)
