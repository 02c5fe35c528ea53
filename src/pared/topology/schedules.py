"""Numbers that move along a run, from what is done of it."""

import math
from dataclasses import dataclass
from typing import Protocol

from pared.errors import ConfigError


class Schedule(Protocol):
    """A number that depends on what is done of an interval."""

    def at(self, done: float) -> float:
        """Return the number when `done` in [0, 1] of the interval has passed."""
        ...


@dataclass(frozen=True)
class _Between:
    start: float
    stop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be a fraction in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class Constant(_Between):
    """Always `start`."""

    def at(self, done: float) -> float:
        """Return `start`."""
        del done
        return self.start


@dataclass(frozen=True)
class Linear(_Between):
    """From `start` to `stop` along a line."""

    def at(self, done: float) -> float:
        """Return start + done · (stop - start)."""
        return self.start + min(max(done, 0.0), 1.0) * (self.stop - self.start)


@dataclass(frozen=True)
class Cosine(_Between):
    """From `start` to `stop` along half a cosine.

    Source: Evci et al. (2020), Rigging the lottery, section 3; the L_p sphere's paper, equation 4.
    """

    def at(self, done: float) -> float:
        """Return stop + (start - stop) · (1 + cos(π · done)) / 2."""
        return self.stop + (self.start - self.stop) * (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2.0


@dataclass(frozen=True)
class Cubic(_Between):
    """From `start` to `stop`, fast at first.

    Source: Zhu and Gupta (2017), To prune, or not to prune, equation 1.
    """

    def at(self, done: float) -> float:
        """Return stop + (start - stop) · (1 - done)³."""
        return self.stop + (self.start - self.stop) * (1.0 - min(max(done, 0.0), 1.0)) ** 3
