"""Layers whose weights are drawn from a generator, the global random state left alone."""

import math
from typing import Any, TypeVar

import torch
from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def linear(inputs: int, outputs: int, generator: torch.Generator | None = None) -> nn.Linear:
    """Return a linear layer with weights and biases uniform on ±1/sqrt(fan in), torch's own default."""
    return _drawn(nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu"), inputs, generator)


def conv(
    inputs: int, outputs: int, kernel: int = 3, *, generator: torch.Generator | None = None, **options: Any
) -> nn.Conv2d:
    """Return a convolution with weights and biases uniform on ±1/sqrt(fan in), torch's own default."""
    layer = nn.Conv2d(inputs, outputs, kernel, device="meta", **options).to_empty(device="cpu")
    return _drawn(layer, layer.weight[0].numel(), generator)


def normal_(layer: nn.Linear, gain: float, generator: torch.Generator | None = None) -> nn.Linear:
    """Draw the weights anew, normal with mean 0 and variance `gain`/fan in, set the biases to 0, and return the layer."""
    nn.init.normal_(layer.weight, 0.0, math.sqrt(gain / layer.in_features), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def kaiming_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw every weight of two or more axes anew, uniform on ±sqrt(6/fan in), and return the model.

    Source: the experiments of ShrinkNets (arXiv 1806.03723) start so; their biases keep torch's default.
    """
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            bound = math.sqrt(6.0 / parameter[0].numel())
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return model


def _drawn(layer: Layer, fan_in: int, generator: torch.Generator | None) -> Layer:
    bound = 1.0 / math.sqrt(fan_in)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer
