"""The multilayer perceptron, rectangular or conic."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from pared.errors import ConfigError
from pared.models.drawing import linear, normal_

INITS = ("uniform", "normal")


def mlp(
    inputs: int,
    outputs: int,
    hidden: Sequence[int] = (500, 500),
    *,
    activation: type[nn.Module] = nn.ReLU,
    dropout: float = 0.0,
    init: Literal["uniform", "normal"] = "uniform",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Return Linear, activation, Linear, … for `hidden` widths, with no activation at the end.

    Shapes: (n, `inputs`) -> (n, `outputs`). Weights are drawn from `generator`, so that the global random state is left
    alone: by `init` "uniform" those and the biases lie on ±1/sqrt(fan in), torch's own default, by "normal" weights have
    variance 1/fan in, with `nn.ReLU` 2/fan in, and biases are 0. A `dropout` above 0 stands behind every activation; with
    `nn.SELU` it is alpha dropout, which keeps mean 0 and variance 1.

    Raises:
        ConfigError: a width below 1, a dropout outside [0, 1), an unknown `init`.

    Source: "normal" and alpha dropout are of self-normalising networks (Klambauer et al. 2017).
    """
    widths = [inputs, *hidden, outputs]
    if min(widths) < 1:
        raise ConfigError(
            f"every width must be at least 1, got inputs={inputs}, hidden={tuple(hidden)}, outputs={outputs}"
        )
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout is the share that is dropped, at least 0 and below 1, got {dropout}")
    if init not in INITS:
        raise ConfigError(f"init must be one of {', '.join(map(repr, INITS))}, got {init!r}")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layer = linear(fan_in, fan_out, generator)
        layers += [layer if init == "uniform" else normal_(layer, 2.0 if activation is nn.ReLU else 1.0, generator)]
        layers += [activation(), *_dropout(activation, dropout)]
    return nn.Sequential(*layers[: -2 if dropout else -1])


def _dropout(activation: type[nn.Module], share: float) -> list[nn.Module]:
    kind = nn.AlphaDropout if activation is nn.SELU else nn.Dropout
    return [kind(share)] if share else []


def conic(start: int, layers: int, outputs: int, *, last: bool = False) -> tuple[int, ...]:
    """Return widths of hidden layers that go from `start` towards `outputs` by one factor, none below 1.

    The output layer is the next of the row: width i is start·(outputs/start)^(i/layers). With `last` the topmost hidden
    layer has `outputs` already, which is the other way to read the papers: the exponent is i/(layers - 1).

    Raises:
        ConfigError: a number below 1.

    Source: the papers of self-normalising networks and of per-weight class-based learning rates say "geometric" only.
    """
    if min(start, layers, outputs) < 1:
        raise ConfigError(f"every number must be at least 1, got start={start}, layers={layers}, outputs={outputs}")
    steps = max(1, layers - 1) if last else layers
    return tuple(max(1, round(start * (outputs / start) ** (i / steps))) for i in range(layers))
