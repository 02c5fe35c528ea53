"""How strong the pressure is along a run: fixed, scheduled, or driven to a size."""

import math
from dataclasses import dataclass
from typing import Protocol

from pared.errors import ConfigError


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the fraction done, the fraction one step is; parameters now, at the start, and at the least."""

    done: float
    step: float
    params: int
    start: int
    least: int = 1


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

    Each step multiplies the strength by exp(`gain` · e / `width` · fraction of the run), where e is how far the size is
    behind the line, as a share of the whole way, clamped to ±`width`: integral control. What has died does not come
    back, so a network below the line waits for it.

    Args:
        params: parameters to reach, >= 1; fewer than are left with one unit a layer cannot be, and are not asked for.
        start: the first strength, > 0; a wrong guess costs the time to correct it.
        by: when to be there, in (0, 1]; the rest of the run is spent near that size.
        gain: logarithm of the factor that the strength could move by in a whole run, > 0.
        width: the share of the way that the size may be behind before the strength moves as fast as it can, > 0.

    Source: ours; the paper searches over strengths instead.
    """

    params: int
    start: float = 1e-3
    by: float = 0.9
    gain: float = 12.0
    width: float = 0.2

    def __post_init__(self) -> None:
        if self.params < 1:
            raise ConfigError(f"params must be at least 1, got {self.params}")
        if not 0.0 < self.start < math.inf:
            raise ConfigError(f"start must be above 0 and finite, got {self.start}")
        if not 0.0 < self.by <= 1.0:
            raise ConfigError(f"by must be in (0, 1], got {self.by}")
        for name in ("gain", "width"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0 and finite, got {getattr(self, name)}")

    def planned(self, progress: Progress) -> float:
        """Return the parameters planned for this moment."""
        return progress.start * (self._goal(progress) / progress.start) ** min(1.0, progress.done / self.by)

    def next(self, strength: float, progress: Progress) -> float:
        """Return the strength moved by the error of size."""
        way = math.log(progress.start / self._goal(progress))
        if way <= 0.0:
            return strength
        behind = math.log(progress.params / self.planned(progress)) / way
        return strength * math.exp(self.gain * max(-1.0, min(1.0, behind / self.width)) * progress.step)

    def _goal(self, progress: Progress) -> int:
        return max(self.params, progress.least)
