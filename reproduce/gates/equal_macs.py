"""The table of images.py: every run, and how it compares with thinner networks and gates at the same cost."""

import argparse
import math
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import results, told

ORDER = ("thin", "gates", "random", "softmax", "lasso")


def at_macs(points: list[dict[str, Any]], cost: float, key: str) -> float:
    """Return what networks of the line through `points` reach at a cost, linear in its logarithm; nan outside."""
    line = sorted((math.log(p["macs"]), p[key]) for p in points)
    where = math.log(cost)
    for (a, low), (b, high) in pairwise(line):
        if a <= where <= b and a < b:
            return low + (high - low) * (where - a) / (b - a)
    return math.nan


def ahead(some: list[dict[str, Any]], line: list[dict[str, Any]], key: str) -> str:
    """Return by how much the runs `some` are ahead of those of `line` at their cost, each of its own seed, and how many."""
    values = [r[key] - at_macs([p for p in line if p["seed"] == r["seed"]], r["macs"], key) for r in some]
    values = [value for value in values if not math.isnan(value)]
    return f"{told(values)} ({len(values)})" if values else "-"


def table(options: argparse.Namespace) -> None:
    """Print all runs, by kind and level, and by how much they are ahead, on test images, of others of the same cost."""
    found = results(options, f"{options.net}-*.json")
    dense = max((r["level"] for r in found if r["kind"] == "thin"), default=0.0)
    thinner = [r for r in found if r["kind"] == "thin"]
    gated = [r for r in found if r["kind"] == "gates" or (r["kind"], r["level"]) == ("thin", dense)]
    print(
        "| | seeds | components | MACs | us | validation | test | ahead of thinner, same MACs | ahead of gates |\n|"
        + "---|" * 9
    )
    for kind in ORDER:
        for level in sorted({r["level"] for r in found if r["kind"] == kind}):
            some = [r for r in found if (r["kind"], r["level"]) == (kind, level)]
            left, cost, us = (
                statistics.mean(values)
                for values in zip(*((sum(map(len, r["kept"].values())), r["macs"], r["us"]) for r in some), strict=True)
            )
            cells = [f"{kind} {level:g}", str(len(some)), f"{left:.1f}", f"{cost:,.0f}", f"{us:,.0f}"]
            cells += [told(r[key] for r in some) for key in ("validation", "test")]
            cells.append("" if kind == "thin" else ahead(some, thinner, "test"))
            cells.append("" if kind in ("thin", "gates") else ahead(some, gated, "test"))
            print("| " + " | ".join(cells) + " |")
    differences = [r["difference"] for r in found if "difference" in r]
    if differences:
        print(f"largest difference between a network and what was removed of it: {max(differences):.1e}")
