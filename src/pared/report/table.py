"""The table of a run: dense start, front, chosen point, references."""

from dataclasses import dataclass
from typing import Any

from pared.report.reading import RunRecord

HEAD = ("", "network", "params", "smaller", "validation", "test", "1 row", "256 rows", "file")


@dataclass(frozen=True)
class Row:
    """One line: `kind` is start, point, chosen or reference; `cells` are texts in the order of `HEAD`."""

    kind: str
    cells: tuple[str, ...]


def widths(record: dict[str, Any], outputs: int) -> str:
    """Return a network's widths as text, inputs first: 16-9-7-2."""
    return "-".join(str(width) for width in (record["inputs"], *record["hidden"], outputs))


def rows(run: RunRecord) -> list[Row]:
    """Return the lines of the table."""
    summary = run.summary
    task = summary["task"]
    outputs = len(task["classes"] if task["kind"] == "classification" else task["targets"])
    start = summary["start"]
    found = [_row(run, "start", "dense", start, widths(start, outputs), start["params"])]
    for record in summary["front"]:
        chosen = record["file"] == summary["chosen"]["file"]
        kind, mark = ("chosen", "chosen") if chosen else ("point", "")
        found.append(_row(run, kind, mark, record, widths(record, outputs), start["params"]))
    for record in summary["references"]:
        found.append(_row(run, "reference", "reference", {**record, "file": ""}, record["name"], start["params"]))
    return found


def _row(run: RunRecord, kind: str, mark: str, record: dict[str, Any], network: str, start: int) -> Row:
    show = run.metric.format
    factor = start / max(record["params"], 1)
    smaller = "1x" if kind == "start" else f"{factor:,.0f}x" if factor >= 10 else f"{factor:.1f}x"
    cells = (
        *(mark, network, f"{record['params']:,}", smaller, show(record["val_score"]), show(record["test_score"])),
        *(microseconds(record["latency_us_1"]), microseconds(record["latency_us_256"]), record["file"]),
    )
    return Row(kind, cells)


def microseconds(value: float) -> str:
    """Return a latency with its unit."""
    return f"{value:.0f} µs" if value < 9_995 else f"{value / 1_000:.0f} ms"


def render_table(run: RunRecord) -> str:
    """Return the table as plain text, and the choice in a sentence below it."""
    lines = [HEAD, *(row.cells for row in rows(run))]
    sizes = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    left = {0, 1, 8}
    text = []
    for number, line in enumerate(lines):
        cells = [c.ljust(sizes[i]) if i in left else c.rjust(sizes[i]) for i, c in enumerate(line)]
        text.append("  ".join(cells).rstrip())
        if number == 0:
            text.append("-" * (sum(sizes) + 2 * (len(sizes) - 1)))
    return "\n".join([*text, "", *sentences(run)])


def sentences(run: RunRecord) -> list[str]:
    """Return what the table means: the choice, its interval, the columns, the time."""
    summary, show = run.summary, run.metric.format
    chosen, start, data = summary["chosen"], summary["start"], summary["data"]
    low, high = summary["test_interval"]
    kept = [record["name"] for record in summary["columns"] if record["kept"]]
    phases = summary["seconds_by_phase"]
    return [
        f"Chosen: {summary['chosen_because']}.",
        f"Test {run.metric.label} {show(chosen['test_score'])} (95 % interval {show(low)} to {show(high)}, "
        f"{data['test']:,} rows); "
        f"the dense network has {show(start['test_score'])}.",
        *(f"The {r['name']} was stopped early: {r['limited']}." for r in summary["references"] if r.get("limited")),
        f"It asks for {len(kept)} of {data['columns']} columns ({chosen['inputs']} of {data['inputs']} inputs): "
        f"{shortened(kept)}.",
        f"{summary['seconds']:.1f} s in all: "
        + ", ".join(f"{name.replace('_', ' ')} {s:.1f}" for name, s in phases.items())
        + ".",
    ]


def shortened(names: list[str], most: int = 12) -> str:
    """Return names as text, the rest counted."""
    short = [name if len(name) <= 40 else name[:39] + "…" for name in names[:most]]
    return ", ".join(short) + (f" and {len(names) - most} more" if len(names) > most else "")
