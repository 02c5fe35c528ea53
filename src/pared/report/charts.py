"""Small SVG charts, hand-written: readable without a mouse, in light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 130, 22, 46
#: Okabe and Ito's palette, told apart by readers with colour-blindness; as CSS variables so that a page may darken them.
COLOURS = ("blue", "orange", "green", "pink", "sky", "red")


@dataclass(frozen=True)
class Series:
    """Points of one kind with a label, a colour by name, and how they are drawn; without a line, the label stands by."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    line: bool = True
    marker: str = ""
    dash: str = ""
    above: bool = True


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels with its ticks."""

    low: float
    high: float
    log: bool
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, v = (
            math.log10(x) if self.log else x for x in (self.low, self.high, max(value, self.low) if self.log else value)
        )
        return self.start + (v - low) / ((high - low) or 1.0) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Return round values inside the range."""
        if self.log:
            low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            decades = [10.0**e for e in range(low, high + 1)]
            steps = (1, 1.5, 2, 3, 5, 7) if self.high < 10 * self.low else (1, 3) if high - low <= 3 else (1,)
            ticks = [d * s for d in decades for s in steps]
            return [t for t in ticks if self.low * 0.999 <= t <= self.high * 1.001]
        span = self.high - self.low
        step = 10 ** math.floor(math.log10(span / 4)) if span > 0 else 1.0
        step = next((step * m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= 6), step * 10)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_log: bool = False,
    y_log: bool = False,
    x_format: Callable[[float], str] | None = None,
    y_format: Callable[[float], str] | None = None,
    flip: bool = False,
    height: int = HEIGHT,
) -> str:
    """Return one SVG with lines and markers, each series labelled at its end; `flip` puts large x on the left."""
    points = [p for s in series for p in s.points if all(math.isfinite(v) for v in p)]
    if not points:
        return ""
    span_x, span_y = _span([p[0] for p in points], x_log), _span([p[1] for p in points], y_log, pad=0.08)
    right = WIDTH - RIGHT
    x = Axis(*span_x, x_log, right if flip else LEFT, LEFT if flip else right)
    y = Axis(*span_y, y_log, height - BOTTOM, TOP)
    parts = [_frame(x, y, x_label, y_label, x_format or number, y_format or number, height)]
    parts += [_draw(s, x, y) for s in series]
    parts.append(_end_labels(series, x, y, height))
    return svg(title, "".join(parts), height)


def bars(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]]) -> str:
    """Return horizontal bars on a log scale: each row is (label, [(name, value, value as text), …])."""
    values = [max(v, 1e-9) for _, items in rows for _, v, _ in items]
    height = TOP + sum(26 * len(items) + 34 for _, items in rows)
    low = min(values) / 3
    axis = Axis(low, max(max(values), low * 10), True, 170, WIDTH - 120)
    parts, top = [], TOP
    for label, items in rows:
        parts.append(f'<text class="strong" x="0" y="{top + 8}">{escape(label)}</text>')
        top += 18
        for i, (name, value, text) in enumerate(items):
            end = axis.at(max(value, low))
            colour = COLOURS[i % len(COLOURS)]
            parts.append(f'<text x="162" y="{top + 14}" text-anchor="end">{escape(name)}</text>')
            parts.append(
                f'<rect x="170" y="{top + 2}" width="{max(end - 170, 2):.1f}" height="17" rx="2" fill="var(--{colour})"/>'
            )
            parts.append(f'<text x="{end + 6:.1f}" y="{top + 15}">{escape(text)}</text>')
            top += 26
        top += 16
    return svg(title, "".join(parts), height)


def heatmap(
    title: str,
    panels: Sequence[Sequence[tuple[str, Sequence[Sequence[float]]]]],
    *,
    cell: tuple[float, float] = (7.0, 7.0),
    most: float = 1.0,
) -> str:
    """Return matrices as grids of cells, blue above 0 and orange below, full at ±`most`: rows of (label, matrix)."""
    parts, y = [], 0.0
    for row in panels:
        x, y = 0.0, y + 18.0
        for label, matrix in row:
            parts.append(f'<text x="{x:.1f}" y="{y - 5:.1f}">{escape(label)}</text>')
            parts.append(_cells(matrix, x, y, cell, most))
            x += max(max(map(len, matrix), default=0) * cell[0], 7.0 * len(label)) + 12.0
        y += max((len(matrix) for _, matrix in row), default=0) * cell[1] + 8.0
    return svg(title, "".join(parts), math.ceil(y))


def svg(title: str, body: str, height: int) -> str:
    """Return an SVG element that scales with its container and names itself to screen readers."""
    name = escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{name}</title>{body}</svg>"
    )


def number(value: float) -> str:
    """Return a tick: 10k, 1.5M, 0.03."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:.3g}"


def _cells(matrix: Sequence[Sequence[float]], left: float, top: float, cell: tuple[float, float], most: float) -> str:
    """One path for all cells of a colour in each of ten strengths; cells next to 0 are left out."""
    paths: dict[int, list[str]] = {}
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            level = round(10 * max(-1.0, min(1.0, value / most))) if math.isfinite(value) else 0
            corner = f"M{left + j * cell[0]:g} {top + i * cell[1]:g}h{cell[0]:g}v{cell[1]:g}h-{cell[0]:g}z"
            paths.setdefault(level, []).append(corner)
    paths.pop(0, None)
    return "".join(
        f'<path d="{"".join(paths[level])}" fill="var(--{"blue" if level > 0 else "orange"})" '
        f'fill-opacity="{abs(level) / 10:g}"/>'
        for level in sorted(paths)
    )


def _span(values: Sequence[float], log: bool, pad: float = 0.03) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        low, high = max(low, 1e-12), max(high, 1e-12)
        factor = (high / low) ** pad if high > low else 2.0
        return low / factor, high * factor
    extra = (high - low) * pad or abs(high) * 0.1 or 1.0
    return low - extra, high + extra


def _frame(
    x: Axis,
    y: Axis,
    x_label: str,
    y_label: str,
    x_format: Callable[[float], str],
    y_format: Callable[[float], str],
    height: int,
) -> str:
    parts = []
    left, right = min(x.start, x.stop), max(x.start, x.stop)
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(y_format(tick))}</text>')
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{height - BOTTOM}" y2="{height - BOTTOM + 5}"/>'
        )
        parts.append(
            f'<text x="{at:.1f}" y="{height - BOTTOM + 19}" text-anchor="middle">{escape(x_format(tick))}</text>'
        )
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{height - BOTTOM}" y2="{height - BOTTOM}"/>')
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="{left - 56}" y="12">{escape(y_label)}</text>')
    return "".join(parts)


def _draw(series: Series, x: Axis, y: Axis) -> str:
    pixels = [(x.at(a), y.at(b)) for a, b in series.points if math.isfinite(a) and math.isfinite(b)]
    colour, parts = f"var(--{series.colour})", []
    if series.line and len(pixels) > 1:
        path = " ".join(f"{'M' if i == 0 else 'L'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(pixels))
        dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
    for a, b in pixels if series.marker else []:
        parts.append(_marker(series.marker, a, b, colour))
    if not series.line and pixels:
        parts.append(_beside(series, *pixels[0], max(x.start, x.stop)))
    return "".join(parts)


def _beside(series: Series, a: float, b: float, edge: float) -> str:
    """The name of a lone marker, above it or below it, turned inwards at the right edge."""
    anchor = "end" if a > edge - 60 else "middle"
    at = b - 14 if series.above else b + 22
    label = escape(series.label)
    return f'<text class="strong" x="{a:.1f}" y="{at:.1f}" text-anchor="{anchor}" fill="var(--{series.colour})">{label}</text>'


def _marker(kind: str, a: float, b: float, colour: str) -> str:
    if kind == "ring":
        return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="8" fill="none" stroke="{colour}" stroke-width="2.5"/>'
    if kind == "square":
        return f'<rect x="{a - 4.5:.1f}" y="{b - 4.5:.1f}" width="9" height="9" fill="{colour}"/>'
    if kind == "diamond":
        return f'<path d="M{a:.1f} {b - 6:.1f}l6 6l-6 6l-6 -6z" fill="{colour}"/>'
    if kind == "open":
        return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="var(--paper)" stroke="{colour}" stroke-width="2"/>'
    return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5" fill="{colour}"/>'


def _end_labels(series: Sequence[Series], x: Axis, y: Axis, height: int) -> str:
    """Names at the right end of each series, pushed apart so that none covers another."""
    edge = max(x.start, x.stop)
    wanted = []
    for item in series:
        pixels = [(x.at(a), y.at(b)) for a, b in item.points if math.isfinite(a) and math.isfinite(b)]
        if item.line and pixels:
            wanted.append((max(pixels)[1], item))
    wanted.sort(key=lambda pair: pair[0])
    parts, last = [], -math.inf
    overflow = max(0.0, _lowest([at for at, _ in wanted]) - (height - BOTTOM))
    for at, item in wanted:
        last = max(at - overflow, last + 15)
        parts.append(
            f'<text x="{edge + 10}" y="{last + 4:.1f}" fill="var(--{item.colour})" class="strong">{escape(item.label)}</text>'
        )
    return "".join(parts)


def _lowest(wanted: list[float]) -> float:
    last = -math.inf
    for at in wanted:
        last = max(at, last + 15)
    return last
