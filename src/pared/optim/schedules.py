"""Learning rates that move along a run, step by step."""

from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pared.errors import ConfigError


def piecewise_linear(optimizer: Optimizer, knots: Sequence[tuple[float, float]], *, steps: int = 1) -> LambdaLR:
    """Return a scheduler that lets every group's rate run along straight lines; call its `step` once an optimizer step.

    Args:
        optimizer: each group's own rate is what a knot's factor multiplies.
        knots: (time, factor), times rising from 0; before the first and behind the last the factor stays.
        steps: optimizer steps in a unit of time, >= 1: with those of an epoch, times are epochs.

    Raises:
        ConfigError: no knots, times that do not rise, or a factor below 0.

    Source: the L_p sphere's paper (arXiv 2103.16013), whose experiments change the rate so at every iteration.
    """
    times, factors = [time * steps for time, _ in knots], [factor for _, factor in knots]
    if not knots or steps < 1 or times != sorted(set(times)) or min(factors) < 0.0:
        raise ConfigError(
            f"knots must be (time, factor) with rising times and factors of at least 0; got {list(knots)}"
        )

    def factor(step: int) -> float:
        place = bisect_right(times, step)
        if place in (0, len(times)):
            return factors[max(place - 1, 0)]
        share = (step - times[place - 1]) / (times[place] - times[place - 1])
        return factors[place - 1] + share * (factors[place] - factors[place - 1])

    return LambdaLR(optimizer, factor)


def triangular(optimizer: Optimizer, total_steps: int, *, peak: float = 0.25) -> LambdaLR:
    """Return a scheduler that raises every group's rate from 0 to its own, at `peak` of the run, and lets it fall to 0.

    Raises:
        ConfigError: a run without steps, or a peak outside of it.

    Source: the L_p sphere's paper (arXiv 2103.16013), for MNIST.
    """
    if total_steps < 2 or not 0.0 < peak < 1.0:
        raise ConfigError(f"expected total_steps >= 2 and peak in (0, 1), got {total_steps} and {peak}")
    return piecewise_linear(optimizer, [(0.0, 0.0), (peak * total_steps, 1.0), (float(total_steps), 0.0)])
