"""The small convolutional networks that the L_p sphere's paper trains on digits and on clothes."""

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
