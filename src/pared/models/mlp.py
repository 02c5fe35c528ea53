"""The multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from pared.errors import ConfigError
from pared.models.drawing import linear


def mlp(
    inputs: int,
    outputs: int,
    hidden: Sequence[int] = (500, 500),
    *,
    activation: type[nn.Module] = nn.ReLU,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return Linear, activation, Linear, … for `hidden` widths, with no activation at the end.

    Shapes: (n, `inputs`) -> (n, `outputs`). Weights and biases are uniform on ±1/sqrt(fan in), torch's own default,
    drawn from `generator` so that the global random state is left alone.

    Raises:
        ConfigError: a width below 1.
    """
    widths = [inputs, *hidden, outputs]
    if min(widths) < 1:
        raise ConfigError(
            f"every width must be at least 1, got inputs={inputs}, hidden={tuple(hidden)}, outputs={outputs}"
        )
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [linear(fan_in, fan_out, generator), activation()]
    return nn.Sequential(*layers[:-1])
