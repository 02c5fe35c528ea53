"""Residual networks in their form for small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.models.drawing import conv, linear


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norms beside a shortcut: relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))).

    Shapes: (n, inputs, h, w) -> (n, outputs, h / stride, w / stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, stride=stride, padding=1, bias=False, generator=generator)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, padding=1, bias=False, generator=generator)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            through = conv(inputs, outputs, 1, stride=stride, bias=False, generator=generator)
            self.shortcut = nn.Sequential(through, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result."""
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(self.shortcut(x) + y)


class SqueezeExcite(nn.Module):
    """Scale each channel by what all channels' means say: x · sigmoid(expand(relu(squeeze(mean of x)))).

    Shapes: (n, channels, h, w) -> the same. Between the two 1x1 convolutions are channels / `reduction`.

    Source: Hu et al. (arXiv 1709.01507), section 3.
    """

    def __init__(self, channels: int, reduction: int = 16, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.squeeze = conv(channels, inner, 1, generator=generator)
        self.expand = conv(inner, channels, 1, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled channels."""
        return x * torch.sigmoid(self.expand(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class SqueezeBlock(BasicBlock):
    """A basic block whose branch goes through `SqueezeExcite` before the sum.

    Shapes: (n, inputs, h, w) -> (n, outputs, h / stride, w / stride).

    Source: Hu et al. (arXiv 1709.01507), figure 3.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, generator: torch.Generator | None = None) -> None:
        super().__init__(inputs, outputs, stride, generator=generator)
        self.excite = SqueezeExcite(outputs, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result."""
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(self.shortcut(x) + self.excite(y))


def resnet(
    blocks: Sequence[int] = (2, 2, 2, 2),
    outputs: int = 10,
    *,
    channels: int = 3,
    width: int = 64,
    stem: int | None = None,
    block: type[BasicBlock] = BasicBlock,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return a residual network of basic blocks, or others like them; the default is ResNet-18 for 32x32 images.

    Shapes: (n, `channels`, h, w) -> (n, `outputs`). Stage k has `blocks[k]` blocks of `width` · 2^k channels, each stage
    but the first halving the image; the first convolution has `stem` channels, `width` when None.

    Raises:
        ConfigError: a width or number of blocks below 1.

    Source: He et al. (arXiv 1512.03385), the 3x3 stem without pooling of their section 4.2 on CIFAR-10.
    """
    before = width if stem is None else stem
    if not blocks or min(*blocks, outputs, channels, width, before) < 1:
        raise ConfigError(f"blocks and widths must be at least 1, got blocks={tuple(blocks)}, width={width}")
    first = conv(channels, before, padding=1, bias=False, generator=generator)
    layers: list[nn.Module] = [first, nn.BatchNorm2d(before), nn.ReLU()]
    for stage, count in enumerate(blocks):
        after = width * 2**stage
        for number in range(count):
            stride = 2 if stage and not number else 1
            layers.append(block(before, after, stride, generator=generator))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(before, outputs, generator))


def senet(
    blocks: Sequence[int] = (2, 2, 2, 2),
    outputs: int = 10,
    *,
    channels: int = 3,
    width: int = 64,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return a squeeze-and-excitation network; the default is SENet-18 for 32x32 images, `resnet` with `SqueezeBlock`.

    Shapes: (n, `channels`, h, w) -> (n, `outputs`).

    Raises:
        ConfigError: a width or number of blocks below 1.

    Source: Hu et al. (arXiv 1709.01507), on the residual network of He et al. (arXiv 1512.03385), section 4.2.
    """
    return resnet(blocks, outputs, channels=channels, width=width, block=SqueezeBlock, generator=generator)


def depth_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return which modules of `model` compete for the depth of a stage, by title: the last norm of each of its blocks.

    A stage is the basic blocks in a row that give as many channels; a first block, whose shortcut is a convolution,
    competes too, but cannot leave: only its branch can.
    """
    stages: dict[int, list[str]] = {}
    for name, block in model.named_modules():
        if isinstance(block, BasicBlock):
            stages.setdefault(block.norm2.num_features, []).append(f"{name}.norm2")
    return {f"stage {number}": tuple(names) for number, names in enumerate(stages.values())}


#: Blocks of each stage by the depth of the network.
_WIDE = {12: (1, 2, 2), 18: (2, 3, 3), 22: (3, 4, 3)}


def wide_resnet(
    depth: int, k: int = 1, outputs: int = 10, *, channels: int = 3, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Return a WRN-`depth`-`k`: a stem of 16 channels, and three stages of 16k, 32k and 64k.

    Shapes: (n, `channels`, h, w) -> (n, `outputs`).

    Raises:
        ConfigError: a depth other than 12, 18 and 22.

    Source: L_p sphere (arXiv 2103.16013), section "Network architecture": blocks with the activation behind the sum,
    other than in Zagoruyko and Komodakis (arXiv 1605.07146).
    """
    if depth not in _WIDE:
        raise ConfigError(f"depth must be one of {', '.join(map(str, _WIDE))}; got {depth}")
    return resnet(_WIDE[depth], outputs, channels=channels, width=16 * k, stem=16, generator=generator)
