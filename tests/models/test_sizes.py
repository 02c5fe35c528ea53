"""Networks for images have the sizes that the papers state."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pared
from pared.errors import ConfigError
from pared.models import SqueezeExcite, cnn, densenet, mlp, resnet, senet, two_layer_cnn, vgg, wide_resnet

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


#: Known sizes for CIFAR-10: ResNet-18 and DenseNet-121 as in K. Liu's collection, whose SENet-18 has other norms (11,260,354).
KNOWN: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "two layers": (lambda **o: two_layer_cnn(channels=3, size=32, **o), 60_362),
    "VGG-11": (lambda **o: vgg(11, **o), 9_231_114),
    "ResNet-18": (resnet, 11_173_962),
    "SENet-18": (senet, 11_263_042),
    "DenseNet-121": (lambda **o: densenet((6, 12, 24, 16), growth=32, **o), 6_956_298),
}


@pytest.mark.parametrize("name", KNOWN)
def test_networks_of_the_dynamic_priors_paper(name: str) -> None:
    make, count = KNOWN[name]
    before = torch.random.get_rng_state()
    model = make(generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert params(model) == count
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_two_layers_for_digits_have_the_stated_size_and_need_an_image() -> None:
    assert params(two_layer_cnn()) == 50_186
    with pytest.raises(ConfigError, match="leave an image"):
        two_layer_cnn(size=3)


def test_squeeze_and_excitation_scales_channels_by_their_means() -> None:
    layer = SqueezeExcite(4, 2, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    ratio = layer(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(x))
    assert bool(((ratio > 0) & (ratio < 1)).all())
    torch.testing.assert_close(layer(x.flip(3)), layer(x).flip(3))
    mean = x.mean((2, 3))
    inner = torch.relu(F.linear(mean, layer.squeeze.weight.flatten(1), layer.squeeze.bias))
    outer = F.linear(inner, layer.expand.weight.flatten(1), layer.expand.bias)
    torch.testing.assert_close(ratio[:, :, 0, 0], torch.sigmoid(outer))


def test_channels_of_squeeze_and_excitation_are_removed_exactly() -> None:
    """Those inside of blocks, and those that are squeezed to."""
    model = senet((1, 1), width=32, generator=torch.Generator().manual_seed(0)).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    graph = pared.graph(model, x)
    with torch.no_grad():
        for layer in (model.get_submodule("3.norm1"), model.get_submodule("3.excite.squeeze")):
            for p in layer.parameters():
                p[:1] = 0.0
    before = model(x)
    pared.remove(model, {"3.conv1": [0], "3.excite.squeeze": [0]}, graph=graph)
    torch.testing.assert_close(model(x), before)
    assert len(model.get_parameter("3.excite.squeeze.weight")) == 1
    assert model.get_parameter("3.conv2.weight").shape[1] == 31
