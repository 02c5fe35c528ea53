"""What a search draws: widths or a strength, and how to train."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

#: What is searched: the widths of networks that keep them, or the strength of shrinking runs from one start.
Over = Literal["widths", "strength"]


class Draws(Protocol):
    """What draws values by name, as a trial of Optuna does."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Draw a number."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Draw a whole number."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[float]) -> float:
        """Draw one of `choices`."""
        ...


@dataclass(frozen=True)
class Choice:
    """One draw: widths to start from, Adam's step size, weight decay; a shrinking run's strength and gamma, or None."""

    hidden: tuple[int, ...]
    lr: float
    weight_decay: float
    strength: float | None = None
    gamma: float = 0.9


def draw(draws: Draws, over: Over, hidden: Sequence[int], least_width: int) -> Choice:
    """Draw a choice; all numbers are log-uniform.

    Step size 1e-4 to 1e-2 and weight decay 1e-7 to 0.1; widths from `least_width` to those of `hidden`, or a strength of
    1e-6 to 0.1 with gamma 0.9 or 0.

    Source: ShrinkNets (arXiv 1806.03723), section 4.1: the ranges for Covertype, whose widths were 20 to 5000.
    """
    lr = draws.suggest_float("lr", 1e-4, 1e-2, log=True)
    decay = draws.suggest_float("weight_decay", 1e-7, 1e-1, log=True)
    if over == "strength":
        strength = draws.suggest_float("strength", 1e-6, 1e-1, log=True)
        return Choice(tuple(hidden), lr, decay, strength, draws.suggest_categorical("gamma", (0.9, 0.0)))
    widths = [
        draws.suggest_int(f"hidden {place}", min(least_width, most), most, log=True)
        for place, most in enumerate(hidden, 1)
    ]
    return Choice(tuple(widths), lr, decay)


def log_size(params: int) -> float:
    """Return the decimal logarithm of a size, which is what searches minimise."""
    return math.log10(max(1, params))
