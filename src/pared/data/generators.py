"""Breiman's artificial problems, whose best possible accuracy is known; classes are equally likely.

Sources: twonorm and ringnorm of Breiman (1996), *Bias, variance, and arcing classifiers*, report 460, Berkeley; waveform and
LED of Breiman, Friedman, Olshen and Stone (1984), *Classification and Regression Trees*, pages 49 and 43.
"""

import math

import torch
from torch import Tensor

from pared.errors import ConfigError

#: Which of seven lights each digit has: top, upper left, upper right, middle, lower left, lower right, bottom.
LIGHTS = ("1110111", "0010010", "1011101", "1011011", "0111010", "1101011", "1101111", "1010010", "1111111", "1111011")
#: Where the three waves of waveform have their crest, counted from 0, and which two of them each class mixes.
CRESTS = (10, 14, 6)
MIXED = ((0, 1), (0, 2), (1, 2))


def twonorm(rows: int, generator: torch.Generator, *, dimensions: int = 20) -> tuple[Tensor, Tensor]:
    """Return rows of two unit normals with means (a, …, a), class 0, and (-a, …, -a), where a = 2/sqrt(dimensions).

    The best accuracy is 97.72 % in any number of dimensions.

    Shapes: x float32 (rows, dimensions), y int64 (rows,).

    Raises:
        ConfigError: a number below 1.
    """
    _check(rows, dimensions)
    y = torch.randint(2, (rows,), generator=generator)
    return _normal(rows, dimensions, generator) + (1 - 2 * y)[:, None] * (2.0 / math.sqrt(dimensions)), y


def ringnorm(
    rows: int, generator: torch.Generator, *, dimensions: int = 20, distance: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Return rows of a normal with covariance 4 I around 0, class 0, and of a unit normal around (a, …, a).

    Here a = `distance`/sqrt(dimensions). Copies of the definition differ: with 2 the best accuracy is 98.7 %, as Breiman says,
    and the published files of 7400 rows have that mean; R's mlbench has 1, for 98.5 %.

    Shapes: x float32 (rows, dimensions), y int64 (rows,).

    Raises:
        ConfigError: a number below 1.
    """
    _check(rows, dimensions)
    y = torch.randint(2, (rows,), generator=generator)
    a = distance / math.sqrt(dimensions)
    return _normal(rows, dimensions, generator) * (2 - y)[:, None] + y[:, None] * a, y


def waveform(rows: int, generator: torch.Generator, *, noise: bool = False) -> tuple[Tensor, Tensor]:
    """Return rows of random mixtures of two out of three triangular waves, with unit normal noise on each of 21 inputs.

    `noise` appends 19 inputs that are nothing else. The best accuracy is some 86 %. Classes are in the book's order, which the
    UCI files have reversed.

    Shapes: x float32 (rows, 21 or 40), y int64 (rows,), of three classes.

    Raises:
        ConfigError: no rows.
    """
    _check(rows)
    waves = (6 - (torch.arange(21) - torch.tensor(CRESTS)[:, None]).abs()).clamp(min=0).float()
    y = torch.randint(3, (rows,), generator=generator)
    share = torch.rand(rows, 1, generator=generator)
    first, second = waves[torch.tensor(MIXED)[y]].unbind(1)
    x = _normal(rows, 40 if noise else 21, generator)
    x[:, :21] += share * first + (1 - share) * second
    return x, y


def led(rows: int, generator: torch.Generator, *, flip: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return rows of the seven lights of a digit, 0 or 1, each wrong with probability `flip`.

    With a tenth wrong, the best accuracy is 74 %.

    Shapes: x float32 (rows, 7), y int64 (rows,), the digit.

    Raises:
        ConfigError: no rows, `flip` outside [0, 1].
    """
    _check(rows)
    if not 0.0 <= flip <= 1.0:
        raise ConfigError(f"flip is a probability, 0 to 1, got {flip}")
    y = torch.randint(10, (rows,), generator=generator)
    lit = torch.tensor([[light == "1" for light in digit] for digit in LIGHTS])
    return (lit[y] ^ (torch.rand(rows, 7, generator=generator) < flip)).float(), y


def _normal(rows: int, inputs: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, inputs, generator=generator)


def _check(rows: int, dimensions: int = 1) -> None:
    if rows < 1 or dimensions < 1:
        raise ConfigError(f"expected at least 1 row and 1 dimension, got rows={rows}, dimensions={dimensions}")
