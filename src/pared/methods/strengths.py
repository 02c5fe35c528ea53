"""How strong the pressure is along a run: fixed, scheduled, or driven to a size."""

import math
from dataclasses import dataclass
from typing import Protocol

from pared.errors import ConfigError


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the fraction done, the fraction one step is, parameters now and at the start."""

    done: float
    step: float
    params: int
    start: int


class Strength(Protocol):
    """A frozen config that says how strong the pressure is at each step."""

    @property
    def start(self) -> float:
        """The strength of the first step."""
        ...

    def next(self, strength: float, progress: Progress) -> float:
        """Return the strength of the coming step, from that of the last."""
        ...


@dataclass(frozen=True)
class Geometric:
    """A positive scalar that goes from `start` to `stop` by equal factors.

    `at(progress)` takes the fraction of the run done, clamped to [0, 1].
    """

    start: float
    stop: float

    def __post_init__(self) -> None:
        if not (0.0 < self.start < math.inf and 0.0 < self.stop < math.inf):
            raise ConfigError(f"start and stop must be above 0 and finite, got {self.start} and {self.stop}")

    def at(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.start * (self.stop / self.start) ** min(max(progress, 0.0), 1.0)

    def next(self, strength: float, progress: Progress) -> float:
        """Return the value at `progress.done`, whatever the last was."""
        del strength
        return self.at(progress.done)


@dataclass(frozen=True)
class TowardSize:
    """Drive the network to `params` parameters by the fraction `by` of the run, the logarithm of its size in a straight line.

    Each step multiplies the strength by exp(`gain` · log(size / planned size) · fraction of the run), the error clamped
    to ±1: integral control. What has died does not come back, so a network below the line waits for it.

    Args:
        params: parameters to reach, >= 1.
        start: the first strength, > 0; a wrong guess costs the time to correct it.
        by: when to be there, in (0, 1]; the rest of the run is spent near that size.
        gain: how hard errors are answered, > 0.

    Source: ours; the paper searches over strengths instead.
    """

    params: int
    start: float = 1e-3
    by: float = 0.9
    gain: float = 12.0

    def __post_init__(self) -> None:
        if self.params < 1:
            raise ConfigError(f"params must be at least 1, got {self.params}")
        if not 0.0 < self.start < math.inf:
            raise ConfigError(f"start must be above 0 and finite, got {self.start}")
        if not 0.0 < self.by <= 1.0:
            raise ConfigError(f"by must be in (0, 1], got {self.by}")
        if not 0.0 < self.gain < math.inf:
            raise ConfigError(f"gain must be above 0 and finite, got {self.gain}")

    def planned(self, progress: Progress) -> float:
        """Return the parameters planned for this moment."""
        way = min(1.0, progress.done / self.by)
        return progress.start * (self.params / progress.start) ** way

    def next(self, strength: float, progress: Progress) -> float:
        """Return the strength moved by the error of size."""
        error = math.log(progress.params / self.planned(progress))
        return strength * math.exp(self.gain * max(-1.0, min(1.0, error)) * progress.step)
