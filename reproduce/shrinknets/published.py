"""The paper's own 579 runs: their fronts, what its searches say, and our runs drawn over them.

    python reproduce/shrinknets/published.py --runs shrinknets_random_search_runs.csv
    python reproduce/shrinknets/published.py --runs … --search results/shrinknets/search/covtype --out figures/

The runs are the authors' random searches on CIFAR-10 (VGG16, from twice its widths) and Covertype (from 5000-5000-5000),
one row a run. A "shrinking" run started wide with a strength, a "static" one kept widths that were drawn. Sizes are exact
parameter counts. Ours on Covertype are of its first 20,000 rows, the paper's of all 581,012: shapes may be compared, heights
may not.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from pared.report.charts import Series, chart
from pared.report.html import standalone

RATIOS = ("smaller", "bench_cpu_bs1_s", "bench_cpu_large_s")
TITLES = {"CIFAR10_VGG": "CIFAR-10, VGG16", "COVER_FC": "Covertype, three hidden layers"}


def read(path: Path) -> pd.DataFrame:
    """Read the runs; of Covertype those with three layers, which the paper's figures show."""
    runs = pd.read_csv(path)
    layers = runs["layer_sizes"].str.split().str.len()
    return runs[(runs["dataset"] != "COVER_FC") | (layers == 3)]


def front(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that no smaller one equals in test accuracy, as the paper drew them, smallest first."""
    runs = runs.sort_values(["size_exact", "test_acc"], ascending=[True, False])
    return runs[runs["test_acc"] > runs["test_acc"].cummax().shift(fill_value=-1.0)]


def ratios(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for every point of the shrinking runs' front, the smallest and the fastest static run as accurate."""
    shrinking, static = runs[runs["mode"] == "DYNAMIC"], runs[runs["mode"] != "DYNAMIC"]
    found = []
    for _, run in front(shrinking).iterrows():
        rivals = static[static["test_acc"] >= run["test_acc"]]
        speeds = {key: rivals[key].min() / run[key] if len(rivals) else float("nan") for key in RATIOS[1:]}
        smaller = rivals["size_exact"].min() / run["size_exact"] if len(rivals) else float("nan")
        found.append({"accuracy": run["test_acc"], "size": int(run["size_exact"]), "smaller": smaller, **speeds})
    return found


def report(name: str, runs: pd.DataFrame) -> None:
    """Print a data set's front and what strength did to size."""
    shrinking = runs[runs["mode"] == "DYNAMIC"]
    print(f"{TITLES[name]}: {len(shrinking)} shrinking, {len(runs) - len(shrinking)} static runs")
    print(f"{'accuracy':>10}{'parameters':>12}{'smaller':>9}{'faster, 1 row':>15}{'many rows':>11}")
    for point in ratios(runs):
        told = [f"{point[key]:.1f}x" if point[key] == point[key] else "–" for key in RATIOS]
        print(f"{point['accuracy']:>10.4f}{point['size']:>12,}{told[0]:>9}{told[1]:>15}{told[2]:>11}")
    print("strength        runs   median neurons   median accuracy")
    for low in range(-7, -2):
        inside = shrinking[(shrinking["lambda"] >= 10.0**low) & (shrinking["lambda"] < 10.0 ** (low + 1))]
        if len(inside):
            neurons = [sum(map(int, sizes.split())) for sizes in inside["layer_sizes"]]
            print(
                f"1e{low} to 1e{low + 1}  {len(inside):>5}{statistics.median(neurons):>17,.0f}"
                f"{inside['test_acc'].median():>18.3f}"
            )
    print()


def ours(folder: Path) -> list[Series]:
    """Return our one-run fronts and searches on Covertype's first rows."""
    from pared.run import Run
    from pared.searching import Search

    found = []
    for path in sorted(folder.glob("fit-*/summary.json"))[:1]:
        records = Run.open(path.parent).front
        found.append(Series("one run", [(r["params"], r["test_score"]) for r in records], "green", marker="dot"))
    for path in sorted(folder.glob("random-strength-*/search.json"))[:1]:
        records = Search.open(path.parent).trials
        found.append(Series("", [(r["params"], r["test_score"]) for r in records], "pink", line=False, marker="open"))
    return found


def draw(name: str, runs: pd.DataFrame, extra: list[Series]) -> str:
    """Return the figure of a data set."""
    series = []
    for mode, label, colour in (("DYNAMIC", "shrinking", "blue"), ("STATIC", "static", "orange")):
        mine = runs[runs["mode"] == mode]
        points = list(zip(mine["size_exact"], mine["test_acc"], strict=True))
        series.append(Series("", [p for p in points if p[1] > 0.5], colour, line=False, marker="open"))
        best = front(mine[mine["test_acc"] > 0.5])
        series.append(Series(label, list(zip(best["size_exact"], best["test_acc"], strict=True)), colour))
    return standalone(chart(TITLES[name], [*series, *extra], x_label="parameters", y_label="test accuracy", x_log=True))


def main() -> int:
    """Print the tables and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the table of the paper's runs")
    parser.add_argument("--search", type=Path, help="the folder of search.py, drawn over Covertype")
    parser.add_argument("--out", type=Path, default=Path("results/shrinknets/published"))
    options = parser.parse_args()
    if not options.runs.exists():
        parser.error(f"{options.runs} does not exist; it is a table with one row a run, columns as in this script")
    runs = read(options.runs)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in TITLES:
        report(name, runs[runs["dataset"] == name])
        extra = ours(options.search) if options.search is not None and name == "COVER_FC" else []
        path = options.out / f"{name.lower()}.svg"
        path.write_text(draw(name, runs[runs["dataset"] == name], extra) + "\n", encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
