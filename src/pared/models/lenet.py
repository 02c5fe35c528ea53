"""The first convolutional network for digits."""

import torch
from torch import nn

from pared.errors import ConfigError
from pared.models.drawing import conv, linear


def lenet(
    outputs: int = 10, *, channels: int = 1, size: int = 28, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Return LeNet-5 with relu and max-pooling: 6 and 16 channels of 5x5, then 120 and 84 units.

    Shapes: (n, `channels`, `size`, `size`) -> (n, `outputs`); `size` is at least 12. The first convolution pads by 2,
    so that images of 28 pixels pass as the 32 of the paper did.

    Raises:
        ConfigError: images too small.

    Source: LeCun et al. (1998), Gradient-based learning applied to document recognition, with today's activations.
    """
    left = (size // 2 - 4) // 2
    if left < 1:
        raise ConfigError(f"images need at least 12 pixels, got {size}")
    return nn.Sequential(
        *(conv(channels, 6, 5, padding=2, generator=generator), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(6, 16, 5, generator=generator), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(linear(16 * left * left, 120, generator), nn.ReLU(), linear(120, 84, generator), nn.ReLU()),
        linear(84, outputs, generator),
    )
