from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pared
from pared.errors import RunError
from pared.formats import program
from zoo import random_net


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_network_is_written_for_any_batch_and_left_as_it_was(suffix: str, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).train()
    net[2].eval()
    path = pared.export(net, tmp_path / f"net.{suffix}", torch.randn(1, 3, 6, 6))
    assert path.stat().st_size > 0
    assert net.training
    assert not net[2].training
    assert net[1].training


def test_float64_and_several_arguments(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a + b, a * b

    pared.export(random_net(0), tmp_path / "a.pt2", torch.zeros(2, 3, 6, 6, dtype=torch.float64))
    pared.export(Two(), tmp_path / "b.onnx", (torch.randn(3, 2), torch.randn(3, 2)))


def test_what_differs_or_cannot_be_written_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="neither in .onnx nor in .pt2"):
        pared.export(nn.Linear(2, 2), tmp_path / "a.pt", torch.zeros(1, 2))

    class Peeks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    for suffix in ("pt2", "onnx"):
        with pytest.raises(
            RunError, match=r"does not take the example, here \[\(2, 3\)\] \(RuntimeError: mat1 and mat2"
        ):
            pared.export(nn.Linear(2, 2), tmp_path / f"a.{suffix}", torch.zeros(1, 3))
    with pytest.raises(RunError, match="could not be written"):
        pared.export(Peeks(), tmp_path / "b.pt2", torch.zeros(1, 2))
    whole: Any = program._pt2
    monkeypatch.setattr(program, "_pt2", lambda *given: (b"", lambda args: [t + 1 for t in whole(*given)[1](args)]))
    with pytest.raises(RunError, match="differ for a batch of 1"):
        pared.export(nn.Linear(2, 2), tmp_path / "c.pt2", torch.zeros(1, 2))
    assert not list(tmp_path.iterdir())
