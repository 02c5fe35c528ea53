"""Small convolutional networks for digits, clothes and other small images."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from pared.errors import ConfigError
from pared.models.drawing import conv, linear

#: Channels, kernel, stride and padding of each convolution, whether a pooling follows, and whether norms do.
_CONVOLUTIONS = {
    "mnist": ([(8, 3, 1, 0, False), (12, 3, 1, 0, True), (16, 3, 1, 0, True)], False),
    "fashion-mnist": ([(16, 5, 2, 2, False), (32, 3, 1, 1, True), (64, 3, 1, 1, False)], True),
}
_HIDDEN = {"mnist": (400, 256, 64), "fashion-mnist": (3136, 512, 64)}


def cnn(name: str, *, outputs: int = 10, generator: torch.Generator | None = None) -> nn.Sequential:
    """Return the network for "mnist" (122,454 parameters) or "fashion-mnist" (1,663,290), of three convolutions each.

    Shapes: (n, 1, 28, 28) -> (n, `outputs`). Convolutions before a norm have no bias.

    Raises:
        ConfigError: another name.

    Source: L_p sphere (arXiv 2103.16013), table 2.
    """
    if name not in _CONVOLUTIONS:
        raise ConfigError(f"name must be one of {', '.join(_CONVOLUTIONS)}; got {name!r}")
    convolutions, normed = _CONVOLUTIONS[name]
    layers: list[nn.Module] = []
    before = 1
    for channels, kernel, stride, padding, pooled in convolutions:
        options = {"stride": stride, "padding": padding, "bias": not normed}
        layers += [conv(before, channels, kernel, generator=generator, **options)]
        layers += [nn.BatchNorm2d(channels)] if normed else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)] if pooled else [nn.ReLU()]
        before = channels
    flat, *hidden = _HIDDEN[name]
    layers.append(nn.Flatten())
    for inputs, units in zip([flat, *hidden], hidden, strict=False):
        layers += [linear(inputs, units, generator), nn.ReLU()]
    return nn.Sequential(*layers, linear(hidden[-1], outputs, generator))


def two_layer_cnn(
    outputs: int = 10,
    *,
    channels: int = 1,
    size: int = 28,
    widths: Sequence[int] = (32, 64),
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return two 3x3 convolutions, each with relu and max-pooling, and a linear layer: 50,186 parameters for digits.

    Shapes: (n, `channels`, `size`, `size`) -> (n, `outputs`); as many convolutions as there are `widths`.

    Raises:
        ConfigError: a width below 1, or an image that the poolings leave nothing of.

    Source: the "2 layered CNN" of the dynamic regularizer (arXiv 1910.14241), section 2.5.1, which says no more of it than
    that it has two hidden layers; widths are ours.
    """
    left = size // 2 ** len(widths)
    if min([outputs, channels, left, *widths]) < 1:
        raise ConfigError(f"widths must be at least 1 and leave an image, got {tuple(widths)} for {size} pixels")
    layers: list[nn.Module] = []
    for before, after in pairwise([channels, *widths]):
        layers += [conv(before, after, padding=1, generator=generator), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), linear(widths[-1] * left * left, outputs, generator))
