"""What `pared.shrink` returns: networks on the way down, the front of them, and the one that was asked for."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pared.errors import ConfigError
from pared.methods import Event

#: Size classes per factor of ten, of which one network each is fine-tuned.
PER_DECADE = 6
#: What may be capped: the wish, what it limits, and in what.
CAPS = {
    "max_params": ("params", "parameters"),
    "max_macs": ("macs", "multiply-accumulates a row"),
    "max_latency": ("latency_us", "µs a row"),
}


@dataclass(eq=False)
class Smaller:
    """A network on the way down: what it costs, for one row, and its validation score, larger being better.

    `epoch` is when it was taken from the shrinking run, `strength` the pressure then.
    """

    model: nn.Module
    params: int
    macs: int
    latency_us: float
    score: float
    epoch: int = -1
    strength: float = 0.0

    @property
    def rank(self) -> float:
        """The score, a score that is no number being the worst."""
        return -math.inf if math.isnan(self.score) else self.score


@dataclass(eq=False)
class Shrunk:
    """What came out of `pared.shrink`.

    `model` is the plain network that was chosen, `because` says why; `front` has one of every size that no smaller one
    equals, largest first; `dense` is the reference. `events` says what died when; `warning` is why nothing smaller came
    out, where that is so.
    """

    chosen: Smaller
    because: str
    front: list[Smaller]
    dense: Smaller
    events: list[Event]
    seconds: dict[str, float]
    interrupted: bool = False
    warning: str = ""

    @property
    def model(self) -> nn.Module:
        """The chosen network."""
        return self.chosen.model

    def __str__(self) -> str:
        lines = [f"{'':<7}{'params':>14}{'smaller':>9}{'MACs':>16}{'1 row':>12}{'validation':>12}"]
        for point in (self.dense, *(point for point in self.front if point is not self.dense)):
            name = "dense" if point is self.dense else "chosen" if point is self.chosen else ""
            smaller = f"{self.dense.params / point.params:.1f}x"
            lines.append(
                f"{name:<7}{point.params:>14,}{smaller:>9}{point.macs:>16,}{point.latency_us:>9.0f} µs{point.score:>12.6g}"
            )
        taken = ", ".join(f"{phase} {value:.1f}" for phase, value in self.seconds.items())
        told = [f"Warning: {self.warning}."] if self.warning else []
        return "\n".join([*lines, "", *told, f"Chosen: {self.because}.", f"Seconds: {taken}."])


def fits(point: Smaller, wishes: Mapping[str, float]) -> bool:
    """Whether a point costs no more than `wishes` allow."""
    return all(getattr(point, key) <= wishes.get(name, math.inf) for name, (key, _) in CAPS.items())


def candidates(points: Sequence[Smaller], wishes: Mapping[str, float]) -> list[Smaller]:
    """Return the best-scored of each size class, largest first; those that fit the wishes are classes of their own."""
    best: dict[tuple[int, bool], Smaller] = {}
    for point in points:
        size = math.floor(math.log10(max(1, point.params)) * PER_DECADE), not fits(point, wishes)
        if size not in best or point.rank >= best[size].rank:
            best[size] = point
    return sorted(best.values(), key=lambda point: -point.params)


def front(points: Iterable[Smaller]) -> list[Smaller]:
    """Return the points that no smaller point equals in score, largest first."""
    kept: list[Smaller] = []
    for point in sorted(points, key=lambda p: (p.params, -p.rank)):
        if not kept or point.rank > kept[-1].rank:
            kept.append(point)
    return kept[::-1]


def choose(dense: Smaller, points: Sequence[Smaller], wishes: Mapping[str, float]) -> tuple[Smaller, str]:
    """Return which point to take, and why; `points` are largest first and `wishes` name limits.

    With no wish: the smallest that scores no less than the dense reference.
    """
    stated = [f"at most {wishes[name]:g} {unit}" for name, (_, unit) in CAPS.items() if name in wishes]
    allowed = [point for point in points if fits(point, wishes)]
    if not allowed:
        return points[
            -1
        ], f"no network has {' and '.join(stated)}; this is the smallest there is (more epochs press longer)"
    if stated and "max_drop" not in wishes:
        return max(allowed, key=lambda p: p.rank), f"the best on validation with {' and '.join(stated)}"
    drop = wishes.get("max_drop", 0.0)
    stated.append(f"at most {drop:g} below the dense reference on validation")
    within = [point for point in allowed if point.rank >= dense.rank - drop]
    if within:
        return min(within, key=lambda p: p.params), f"the smallest with {' and '.join(stated)}"
    return max(allowed, key=lambda p: p.rank), f"no network has {' and '.join(stated)}; this is the best on validation"


def check_drop(wishes: Mapping[str, float], dense: Smaller) -> None:
    """A drop of one point means nothing to a score that is a fraction."""
    drop = wishes.get("max_drop")
    if drop is not None and 0.0 <= dense.score <= 1.0 and drop >= max(dense.score, 0.5):
        raise ConfigError(
            f"validate returned {dense.score:.4g}, so max_drop={drop:g} would allow anything; give it in the same units, "
            f"{drop / 100:g} for {drop:g} hundredths, say"
        )
