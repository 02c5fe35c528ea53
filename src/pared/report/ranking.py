"""The diagram of mean ranks and the critical difference between them."""

import math
from collections.abc import Sequence
from html import escape

from pared.errors import ConfigError
from pared.measure.statistics import Ranks
from pared.report.charts import WIDTH, Axis, number, svg

#: Room for names beside the axis, its height, and steps between bars and between names.
SIDE, AXIS, BAR, NAME = 236, 58, 9, 22
#: A longer name is cut; the description has all of it.
LETTERS = 24


def critical_difference(names: Sequence[str], ranks: Ranks, *, title: str = "Mean ranks of methods") -> str:
    """Return one SVG: methods on an axis by their mean rank, the best on the left, bars joining those that do not differ.

    Two differ if their mean ranks do by at least the critical difference; a bar is drawn over each largest group in which no
    two do. Like a `chart`, it takes its style from the page, or from `standalone`.

    Raises:
        ConfigError: there are fewer than 2 methods, not as many names as ranks, or ranks that are no numbers.

    Source: Demsar (2006), Statistical comparisons of classifiers over multiple data sets, figure 1.
    """
    count = len(names)
    if count < 2 or count != len(ranks.mean):
        raise ConfigError(f"expected a name for each of at least 2 methods, got {count} for {len(ranks.mean)} ranks")
    if not all(map(math.isfinite, (*ranks.mean, ranks.critical_difference))):
        raise ConfigError(f"expected finite ranks and critical difference, got {ranks}")
    order = sorted(range(count), key=lambda i: ranks.mean[i])
    sorted_names, mean = [names[i] for i in order], [ranks.mean[i] for i in order]
    groups = alike(mean, ranks.critical_difference)
    x = Axis(1.0, float(count), False, SIDE, WIDTH - SIDE)
    bars = [(x.at(mean[start]) - 4, x.at(mean[end]) + 4) for start, end in groups]
    levels = _levels(bars)
    first = AXIS + BAR * (max(levels, default=0) + 1) + NAME
    half = (count + 1) // 2
    parts = [f"<desc>{escape(_told(sorted_names, mean, groups, ranks))}</desc>", _scale(x), _ruler(x, ranks)]
    for i, (name, rank) in enumerate(zip(sorted_names, mean, strict=True)):
        # The outermost names come first on either side, so that no line crosses another.
        row = i if i < half else count - 1 - i
        parts.append(_method(name, rank, x.at(rank), first + NAME * row, left=i < half))
    for (a, b), level in zip(bars, levels, strict=True):
        y = AXIS + BAR * (level + 1)
        parts.append(f'<path class="alike" d="M{a:.1f} {y}H{b:.1f}" stroke="var(--blue)" stroke-width="4"/>')
    return svg(title, "".join(parts), first + NAME * half)


def alike(mean: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Return first and last of every largest group of ascending ranks that lie within less than `difference`."""
    groups: list[tuple[int, int]] = []
    for start in range(len(mean)):
        end = max(i for i in range(start, len(mean)) if i == start or mean[i] - mean[start] < difference)
        if end > start and (not groups or end > groups[-1][1]):
            groups.append((start, end))
    return groups


def _levels(bars: Sequence[tuple[float, float]]) -> list[int]:
    """A row for each bar, from and to a pixel, so that none seems to go on in another."""
    last: list[float] = []
    levels = []
    for start, end in bars:
        level = next((i for i, taken in enumerate(last) if taken + BAR < start), len(last))
        last[level : level + 1] = [end]
        levels.append(level)
    return levels


def _scale(x: Axis) -> str:
    parts = [f'<line class="axis" x1="{x.start}" x2="{x.stop}" y1="{AXIS}" y2="{AXIS}"/>']
    for tick in range(1, round(x.high) + 1) if x.high <= 12 else x.ticks():
        at = x.at(tick)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{AXIS - 5}" y2="{AXIS}"/>')
        parts.append(f'<text x="{at:.1f}" y="{AXIS - 9}" text-anchor="middle">{number(tick)}</text>')
    return "".join(parts)


def _ruler(x: Axis, ranks: Ranks) -> str:
    """The critical difference to scale, from the axis's start, unless it is longer than the axis."""
    a, b, y = x.at(1.0), x.at(1.0 + ranks.critical_difference), 22
    told = f"critical difference {ranks.critical_difference:.2f}, Friedman's p {_p(ranks.p_value)}"
    text = f'<text x="{a:.1f}" y="12">{told}</text>'
    return text if b > x.stop else text + f'<path class="axis" fill="none" d="M{a:.1f} {y - 4}v8m0 -4H{b:.1f}m0 -4v8"/>'


def _method(name: str, rank: float, at: float, y: float, *, left: bool) -> str:
    edge, anchor, aside = (SIDE - 12, "end", -6) if left else (WIDTH - SIDE + 12, "start", 6)
    short = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
    label = f'{escape(short)} <tspan font-weight="600">{rank:.2f}</tspan>'
    return (
        f'<path class="axis" fill="none" d="M{at:.1f} {AXIS}V{y}H{edge}"/>'
        f'<text x="{edge + aside}" y="{y + 4}" text-anchor="{anchor}">{label}</text>'
    )


def _told(names: Sequence[str], mean: Sequence[float], groups: Sequence[tuple[int, int]], ranks: Ranks) -> str:
    """What the diagram shows, in words, names in full."""
    told = ", ".join(f"{name} {rank:.2f}" for name, rank in zip(names, mean, strict=True))
    joined = "; ".join(", ".join(names[a : b + 1]) for a, b in groups) or "none"
    return (
        f"Mean ranks, best first: {told}. Critical difference {ranks.critical_difference:.2f}; Friedman's p "
        f"{_p(ranks.p_value)}. Groups that do not differ: {joined}."
    )


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
