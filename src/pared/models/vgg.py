"""VGG in its form for small images."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from pared.errors import ConfigError
from pared.models.drawing import conv, linear

#: Output channels of each convolution; 0 is a max-pooling that halves the image.
VGG: dict[int, tuple[int, ...]] = {
    11: (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    13: (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    16: (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
}


def vgg(
    plan: int | Sequence[int],
    outputs: int = 10,
    *,
    channels: int = 3,
    size: int = 32,
    width: float = 1.0,
    hidden: Sequence[int] = (),
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return VGG: 3x3 convolution, batch norm, relu, …, max-poolings between, and a classifier of linear layers.

    Shapes: (n, `channels`, `size`, `size`) -> (n, `outputs`).

    Args:
        plan: 11, 13 or 16, or the output channels of each convolution with 0 for a max-pooling.
        outputs: classes.
        channels: of the images.
        size: of the images, in pixels; halved, rounded down, by each pooling.
        width: factor on all channels of the plan.
        hidden: widths of the classifier's hidden layers.
        dropout: before each of the classifier's hidden activations, in [0, 1).
        generator: where weights are drawn from.

    Raises:
        ConfigError: an unknown depth, a width below 1, or an image that the poolings leave nothing of.

    Source: Simonyan and Zisserman (arXiv 1409.1556), configurations A, B, D, with batch norm and for 32x32 images as in
    ShrinkNets (arXiv 1806.03723), whose start was `width=2` with `hidden=(5000, 5000)`.
    """
    if isinstance(plan, int):
        if plan not in VGG:
            raise ConfigError(f"a VGG has {', '.join(map(str, VGG))} layers, or give its channels; got {plan}")
        plan = VGG[plan]
    widths = [max(1, round(count * width)) if count else 0 for count in plan]
    left = size // 2 ** widths.count(0)
    if min([channels, outputs, *widths, *hidden]) < 0 or min([channels, outputs, *hidden]) < 1 or not any(widths):
        raise ConfigError(f"every width must be at least 1, got plan={tuple(plan)}, hidden={tuple(hidden)}")
    if left < 1:
        raise ConfigError(f"{widths.count(0)} poolings leave nothing of {size} pixels; use fewer")
    layers: list[nn.Module] = []
    before = channels
    for count in widths:
        if not count:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [conv(before, count, padding=1, generator=generator), nn.BatchNorm2d(count), nn.ReLU()]
        before = count
    layers.append(nn.Flatten())
    for fan_in, fan_out in pairwise([before * left * left, *hidden]):
        layers.append(linear(fan_in, fan_out, generator))
        layers += ([nn.Dropout(dropout)] if dropout else []) + [nn.ReLU()]
    layers.append(linear(hidden[-1] if hidden else before * left * left, outputs, generator))
    return nn.Sequential(*layers)
