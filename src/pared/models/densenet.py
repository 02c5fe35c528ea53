"""Networks in which every layer reads what all layers before it made, in their form for small images."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import ConfigError, SurgeryError
from pared.models.drawing import conv, linear
from pared.nn import Channels, Switch
from pared.surgery import Gather, Plan, Resize
from pared.surgery.graph import state_of


class DenseLayer(nn.Module):
    """Norm, relu and convolution of the features it reads; with `bottleneck` a 1x1 convolution goes before, likewise.

    Shapes: a sequence of features, each (n, `sizes[i]`, h, w) -> (n, growth, h, w). Bit i of the integer `reads` says
    whether feature i is read. A gate behind `relu1` scales what the layer reads; in front of `norm1` it would change nothing.

    Source: DenseNet (arXiv 1608.06993), section 3, composite function and bottleneck layers.
    """

    def __init__(
        self, sizes: Sequence[int], growth: int, *, bottleneck: bool = True, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        # An integer, as surgery sets and files hold those.
        self.reads = 2 ** len(sizes) - 1
        inputs, inner = sum(sizes), 4 * growth
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        if bottleneck:
            self.conv1 = conv(inputs, inner, 1, bias=False, generator=generator)
            self.norm2, self.relu2 = nn.BatchNorm2d(inner), nn.ReLU()
            self.conv2 = conv(inner, growth, 3, padding=1, bias=False, generator=generator)
        else:
            self.conv1 = conv(inputs, growth, 3, padding=1, bias=False, generator=generator)
            self.norm2, self.relu2, self.conv2 = nn.Identity(), nn.Identity(), nn.Identity()

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the features that are read, in order."""
        return tuple(number for number in range(self.reads.bit_length()) if self.reads >> number & 1)

    @property
    def growth(self) -> int:
        """How many channels the layer makes."""
        return (self.conv1 if isinstance(self.conv2, nn.Identity) else self.conv2).out_channels

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return what the layer makes of the features it reads."""
        y = torch.cat([features[number] for number in self.inputs], 1)
        y = self.conv1(self.relu1(self.norm1(y)))
        return self.conv2(self.relu2(self.norm2(y)))

    def without(self, gone: Sequence[int], sizes: Sequence[int], name: str) -> Plan:
        """Return the plan by which this layer, `name` in its network, no longer reads some of its inputs.

        `gone` numbers them, and `sizes` gives the channels of each, among those that are read now, as components of a gate
        behind `relu1` are numbered; it loses them too. The function stays as it is if their shares are 0.

        Raises:
            SurgeryError: no such input, none would be left, or sizes that are not those of the inputs.
        """
        read, lost = self.inputs, set(gone)
        if len(sizes) != len(read) or sum(sizes) != self.norm1.num_features:
            raise SurgeryError(
                f"layer {name!r} reads {len(read)} features of {self.norm1.num_features} channels; got {sizes}"
            )
        if not lost <= set(range(len(read))) or len(lost) == len(read):
            raise SurgeryError(
                f"layer {name!r} reads {len(read)} features and must keep one; got {sorted(lost)} to remove"
            )
        kept = [place for place in range(len(read)) if place not in lost]
        ends = list(accumulate(sizes, initial=0))
        columns = tuple(channel for place in kept for channel in range(ends[place], ends[place + 1]))
        norm, first = f"{name}.norm1", f"{name}.conv1"
        cuts = [(f"{norm}.{key}", 0) for key in ("weight", "bias", "running_mean", "running_var")]
        gathers = [Gather(tensor, axis, columns) for tensor, axis in (*cuts, (f"{first}.weight", 1))]
        resizes = [
            Resize(name, "reads", sum(1 << read[place] for place in kept)),
            Resize(norm, "num_features", len(columns)),
            Resize(first, "in_channels", len(columns)),
        ]
        for path, switch in self.relu1.named_modules(prefix=f"{name}.relu1"):
            if isinstance(switch, Switch):
                gathers += [Gather(f"{path}.{key}", 0, tuple(kept)) for key in state_of(switch)]
                resizes.append(Resize(path, "channels", len(columns)))
        return Plan(tuple(gathers), (), tuple(resizes))


class DenseBlock(nn.Module):
    """Layers of which each reads the block's input and what the layers before it made; it gives all of that.

    Shapes: (n, inputs, h, w) -> (n, inputs + `count` · growth, h, w).
    """

    def __init__(
        self, inputs: int, count: int, growth: int, *, bottleneck: bool = True, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseLayer((inputs, *[growth] * before), growth, bottleneck=bottleneck, generator=generator)
            for before in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's input and what its layers made, side by side."""
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet(
    layers: Sequence[int] = (16, 16, 16),
    outputs: int = 10,
    *,
    growth: int = 12,
    bottleneck: bool = True,
    compression: float = 0.5,
    channels: int = 3,
    stem: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return a densely connected network; the default is DenseNet-BC, L = 100, k = 12, for 32x32 images.

    Shapes: (n, `channels`, h, w) -> (n, `outputs`). Block k has `layers[k]` layers of `growth` channels each. Between two
    blocks a 1x1 convolution leaves the share `compression` of the channels, and an average pooling halves the image. The
    first convolution has `stem` channels; when None 2 · `growth`, or 16 without `bottleneck`.

    Raises:
        ConfigError: a width or number of layers below 1, or a compression that is not in (0, 1].

    Source: Huang et al. (arXiv 1608.06993), section 3 and table 2: 0.8 million parameters, and with `bottleneck=False,
    compression=1.0, layers=(12, 12, 12)`, L = 40, 1.0 million. DenseNet-121 of table 1 is `densenet((6, 12, 24, 16),
    growth=32)`, here with the stem for small images: 7.0 million.
    """
    before = stem if stem is not None else 2 * growth if bottleneck else 16
    if not layers or min(*layers, outputs, growth, channels, before) < 1:
        raise ConfigError(
            f"layers and widths must be at least 1, got layers={tuple(layers)}, outputs={outputs}, growth={growth}, "
            f"channels={channels}, stem={stem}"
        )
    if not 0.0 < compression <= 1.0:
        raise ConfigError(f"compression must be above 0 and at most 1, got {compression}")
    parts: list[nn.Module] = [conv(channels, before, padding=1, bias=False, generator=generator)]
    for number, count in enumerate(layers):
        if number:
            after = max(1, int(compression * before))
            through = conv(before, after, 1, bias=False, generator=generator)
            parts.append(nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), through, nn.AvgPool2d(2)))
            before = after
        parts.append(DenseBlock(before, count, growth, bottleneck=bottleneck, generator=generator))
        before += count * growth
    last = (nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*parts, *last, linear(before, outputs, generator))


def input_groups(model: nn.Module) -> dict[str, Channels]:
    """Return which inputs of layers of `model` compete, by the name of their layer: one group for each that reads several.

    Each stands behind the module's first relu, and takes the channels of each input.
    """
    found: dict[str, Channels] = {}
    for name, block in model.named_modules():
        layers: list[Any] = list(block.layers) if isinstance(block, DenseBlock) else []
        made = [layer.norm1.num_features for layer in layers[:1]]  # the first reads the block's input, and it alone
        for number, layer in enumerate(layers):
            if len(layer.inputs) > 1:
                title = f"{name}.layers.{number}".lstrip(".")
                found[title] = Channels(f"{title}.relu1", tuple(made[place] for place in layer.inputs))
            made.append(layer.growth)
    return found
