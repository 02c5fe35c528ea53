"""Residual networks whose blocks have many branches, in their form for small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.models.drawing import conv, linear
from pared.nn import Channels


class BranchedBlock(nn.Module):
    """Branches of three convolutions beside a shortcut, all branches of a kind in one convolution, the 3x3 one in groups.

    Shapes: (n, inputs, h, w) -> (n, outputs, h / stride, w / stride). Channels of branch i of `branches`, `width` each,
    are neighbours behind `relu1` and `relu2`; a factor behind `relu2` scales what the branch adds to the block.

    Source: ResNeXt (arXiv 1611.05431), figure 3 (c), which equals the sum over branches of its figure 3 (a).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        branches: int,
        width: int,
        stride: int = 1,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        inner = branches * width
        options = {"bias": False, "generator": generator}
        self.conv1 = conv(inputs, inner, 1, **options)
        self.norm1, self.relu1 = nn.BatchNorm2d(inner), nn.ReLU()
        self.conv2 = conv(inner, inner, 3, stride=stride, padding=1, groups=branches, **options)
        self.norm2, self.relu2 = nn.BatchNorm2d(inner), nn.ReLU()
        self.conv3 = conv(inner, outputs, 1, **options)
        self.norm3, self.relu3 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride=stride, **options), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result."""
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.relu2(self.norm2(self.conv2(y)))
        return self.relu3(self.shortcut(x) + self.norm3(self.conv3(y)))


def resnext(
    blocks: Sequence[int] = (3, 3, 3),
    outputs: int = 10,
    *,
    branches: int = 8,
    width: int = 4,
    channels: int = 3,
    stem: int = 64,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return a residual network of branched blocks; `width=64` is ResNeXt-29, 8x64d, for 32x32 images.

    Shapes: (n, `channels`, h, w) -> (n, `outputs`). Stage k has `blocks[k]` blocks, each of `branches` branches of
    `width` · 2^k channels inside and 4 · `stem` · 2^k channels between blocks, each stage but the first halving the
    image; the first convolution has `stem` channels.

    Raises:
        ConfigError: a width or number of blocks or branches below 1.

    Source: Xie et al. (arXiv 1611.05431), section 5.3 and its table 7: 34.4 million parameters for 8x64d.
    """
    if not blocks or min(*blocks, outputs, branches, width, channels, stem) < 1:
        raise ConfigError(
            f"blocks, branches and widths must be at least 1, got blocks={tuple(blocks)}, outputs={outputs}, "
            f"branches={branches}, width={width}, channels={channels}, stem={stem}"
        )
    first = conv(channels, stem, padding=1, bias=False, generator=generator)
    layers: list[nn.Module] = [first, nn.BatchNorm2d(stem), nn.ReLU()]
    before = stem
    for stage, count in enumerate(blocks):
        after = 4 * stem * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(BranchedBlock(before, after, branches, width * 2**stage, stride, generator=generator))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(before, outputs, generator))


def branch_groups(model: nn.Module) -> dict[str, Channels]:
    """Return which channels of `model` are branches that compete, by the name of their block: one group for each.

    Each stands behind the block's second relu, and takes the channels of each branch.
    """
    return {
        name: Channels(f"{name}.relu2", (block.conv2.out_channels // block.conv2.groups,) * block.conv2.groups)
        for name, block in model.named_modules()
        if isinstance(block, BranchedBlock)
    }
