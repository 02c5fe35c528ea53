"""Every ONNX file that we write is one that other people's tools take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pared
from pared.formats.onnx import export_onnx
from pared.models import mlp
from pared.nn import SparseConv2d, SparseLinear
from quantized import check_onnx


class Last(nn.Module):
    """The last step of a recurrent layer."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.rnn, self.head = kind(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def sparse() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    return nn.Sequential(
        SparseConv2d(3, 4, 3, density=0.5, generator=generator),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(64, 8, density=0.3, generator=generator),
        nn.ReLU(),
        nn.Linear(8, 2),
    )


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2)
    )  # fmt: skip


def block() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(5, 3, (8, 4)), (5,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.Tanh(), nn.Linear(8, 2, bias=False)), (5,)),
    "convolutions": (images, (3, 6, 6)),
    "lstm": (lambda: Last(nn.LSTM), (7, 4)),
    "gru": (lambda: Last(nn.GRU), (7, 4)),
    "transformer": (block, (5, 8)),
    "sparse layers": (sparse, (3, 6, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_checkers_and_quantizers_take_every_export(kind: str, tmp_path: Path) -> None:
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(4, *shape)
    check_onnx(pared.export(net, tmp_path / "net.onnx", x), x.numpy(), folder=tmp_path)


def test_checkers_and_quantizers_take_the_network_of_a_table(tmp_path: Path) -> None:
    model = mlp(5, 3, (8,), generator=torch.Generator().manual_seed(0)).eval()
    export_onnx(model, tmp_path / "model.onnx", list("abcde"))
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    check_onnx(tmp_path / "model.onnx", x, folder=tmp_path)
