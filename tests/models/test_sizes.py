"""Networks for images have the sizes that the papers state."""

import pytest
import torch
from torch import nn

from pared.errors import ConfigError
from pared.models import cnn, mlp, wide_resnet

#: Of the seven tables of the L_p sphere's paper: inputs, hidden widths, outputs, and parameters.
TABLES = {
    "Adult": (105, (256, 512, 256, 128), 2, 323_202),
    "Connect-4": (126, (512, 512, 256, 128), 3, 492_291),
    "DNA": (240, (1024, 512, 256, 128), 3, 936_195),
    "Mushroom": (126, (128, 256, 128, 64), 2, 90_562),
    "Letter": (16, (1024, 512, 256, 128, 64), 26, 716_378),
    "Climate": (18, (128, 256, 128, 64), 2, 76_738),
    "Web": (27, (256, 512, 128, 64), 3, 212_867),
}


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "count"), [("mnist", 122_454), ("fashion-mnist", 1_663_290)])
def test_small_convolutional_networks(name: str, count: int) -> None:
    model = cnn(name, generator=torch.Generator().manual_seed(0))
    assert params(model) == count
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ConfigError, match="mnist, fashion-mnist"):
        cnn("cifar")


@pytest.mark.parametrize(
    ("depth", "k", "channels", "outputs", "count"),
    [
        (12, 1, 1, 10, 170_298),
        (18, 1, 1, 10, 267_514),
        (22, 2, 3, 10, 1_154_074),
        (22, 4, 3, 10, 4_595_290),
        (22, 4, 3, 200, 4_644_120),
        (22, 6, 3, 10, 10_324_122),
        (22, 8, 3, 10, 18_340_570),
    ],
)
def test_wide_residual_networks(depth: int, k: int, channels: int, outputs: int, count: int) -> None:
    assert params(wide_resnet(depth, k, outputs, channels=channels)) == count


def test_a_wide_residual_network_runs_and_unknown_depths_are_refused() -> None:
    assert wide_resnet(12, channels=1)(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(ConfigError, match="12, 18, 22"):
        wide_resnet(16)


@pytest.mark.parametrize(("inputs", "hidden", "outputs", "count"), TABLES.values(), ids=TABLES)
def test_networks_for_tables(inputs: int, hidden: tuple[int, ...], outputs: int, count: int) -> None:
    assert params(mlp(inputs, outputs, hidden)) == count
