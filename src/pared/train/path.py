"""A dial turned along a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometric:
    """A positive scalar that goes from `start` to `stop` by equal factors.

    `at(progress)` takes the fraction of the run done, clamped to [0, 1].
    """

    start: float
    stop: float

    def at(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.start * (self.stop / self.start) ** min(max(progress, 0.0), 1.0)
