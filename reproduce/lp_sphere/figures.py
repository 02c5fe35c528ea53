"""L_p sphere: figures 2 to 10, drawn from what hoyer.py and images.py left.

    python reproduce/lp_sphere/figures.py                                       # from results/lp_sphere
    python reproduce/lp_sphere/figures.py --hoyer DIR --images DIR --points FILE --out figures/
    python reproduce/lp_sphere/figures.py --only 2,7

One page a figure and data set, its charts as SVG. A figure without results is named and left out. What the paper leaves
open: figure 2's neuron is the first of the output layer, each column relative to its largest weight, and beside the columns
the sizes are drawn in order; the sparsity of figures 3 and 4 is the mean over layers, and of accuracies there is that on test
images only; which 16 neurons figure 7 shows. Networks
that did not learn are marked in figures 5 and 6. Figure 1 is a drawing and figure 9b a schedule without values.
"""

import argparse
import statistics
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from hoyer import learnt, published
from images import THEIRS

from pared.ops import expected_hoyer
from pared.report.charts import COLOURS, Series, chart, heatmap

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import Page, results, write_page
from compared import METHODS, SPARSITIES

#: The exponents that the paper's figure 7 shows.
SHOWN = (1.1, 1.3, 1.7, 3.0)


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    return statistics.mean(values)


def exponents(found: list[dict[str, Any]]) -> list[float]:
    """Return the exponents that were run, rising."""
    return sorted({one["p"] for one in found})


def figure_2(name: str, found: list[dict[str, Any]]) -> Page:
    """Draw the weights of an output neuron for every exponent, as columns and in order of size."""
    first: dict[float, list[float]] = {}
    for one in found:
        if "output" in one and one["form"] == "momentum":
            first.setdefault(one["p"], one["output"])
    columns, series = [], []
    for place, (p, weights) in enumerate(sorted(first.items())):
        most = max(map(abs, weights)) or 1.0
        columns.append((f"p={p:g}", [[w / most] for w in weights]))
        sizes = sorted((abs(w) / most for w in weights), reverse=True)
        series.append(Series(f"p={p:g}", list(enumerate(sizes, 1)), COLOURS[place % len(COLOURS)]))
    title = f"Weights of an output neuron on {name} against p"
    charts = [
        heatmap("Each column: the weights, relative to the largest", [columns], cell=(52, 6)),
        chart("The same in order of size", series, x_label="rank", y_label="|weight| / largest"),
    ]
    return f"figure-2-{name}", title, charts if columns else []


def figure_3(name: str, found: list[dict[str, Any]]) -> Page:
    """Draw accuracy and sparsity over epochs for the exponents that both forms were run with."""
    both = [p for p in exponents(found) if {one["form"] for one in found if one["p"] == p} == {"momentum", "direct"}]
    test, sparsity = [], []
    for place, p in enumerate(both):
        for form in ("momentum", "direct"):
            mine = [one["epochs"] for one in found if (one["p"], one["form"]) == (p, form)]
            epochs = range(min(map(len, mine)))
            style: dict[str, Any] = {
                "colour": COLOURS[place % len(COLOURS)],
                "dash": "" if form == "momentum" else "5 4",
            }
            label = f"p={p:g}" + ("" if form == "momentum" else ", direct")
            accuracy = [(e + 1, mean(run[e]["test"] for run in mine)) for e in epochs]
            hoyer = [(e + 1, mean(mean(run[e]["hoyer"]) for run in mine)) for e in epochs]
            test.append(Series(label, accuracy, **style))
            sparsity.append(Series(label, hoyer, **style))
    charts = [
        chart("Accuracy over epochs", test, x_label="epoch", y_label="test accuracy"),
        chart("Sparsity over epochs", sparsity, x_label="epoch", y_label="Hoyer's sparsity, mean of layers"),
    ]
    number = "3" if name == "mnist" else "4"
    return f"figure-{number}", f"LpSGD-m (lines) and LpSGD (dashed) on {name}", charts if both else []


def figure_5(name: str, found: list[dict[str, Any]], theirs: dict[tuple[int, float], float]) -> Page:
    """Draw every layer's sparsity against the exponent: ours, theory, and the paper's points."""
    mine = [one for one in found if one["form"] == "momentum"]
    charts = []
    ps = exponents(mine)
    for layer, d in enumerate(mine[0]["dims"] if len(ps) > 1 else []):
        low, high = ps[0], ps[-1]
        grid = [low * (high / low) ** (k / 60) for k in range(61)]
        ours = [(p, mean(one["epochs"][-1]["hoyer"][layer] for one in mine if one["p"] == p)) for p in ps]
        at_chance = [(p, value) for p, value in ours if not all(learnt(one) for one in mine if one["p"] == p)]
        paper = sorted((p, value) for (which, p), value in theirs.items() if which == layer + 1)
        series = [
            Series("theory", [(p, float(expected_hoyer(d, p))) for p in grid], "blue"),
            Series("ours", ours, "green", marker="dot"),
            Series("did not learn", at_chance, "red", line=False, marker="ring"),
            Series("the paper's", paper, "orange", marker="open", dash="2 4"),
        ]
        kind = "convolution" if layer < 3 else "fully connected"
        drawn = [one for one in series if one.points]
        charts.append(
            chart(f"Layer {layer + 1}, {kind}, dim {d}", drawn, x_label="p", y_label="Hoyer's sparsity", height=260)
        )
    return f"figure-{'5' if name == 'mnist' else '6'}", f"Sparsity of layers on {name} against p", charts


def figure_7(name: str, found: list[dict[str, Any]]) -> Page:
    """Draw a part of the correlations between neurons, a row for each layer, a column for each exponent."""
    some = {one["p"]: one for one in found if "correlation" in one and one["form"] == "momentum"}
    shown = [p for p in SHOWN if p in some] if len([p for p in SHOWN if p in some]) > 1 else sorted(some)[:4]
    panels = []
    for layer in range(len(some[shown[0]]["dims"]) if shown else 0):
        corners = [(p, some[p]["correlation"][layer]) for p in shown]
        panels.append(
            [(f"layer {layer + 1}, p={p:g}: {corner['mean']:.2f}", corner["corner"]) for p, corner in corners]
        )
    title = f"Correlations between neurons on {name}"
    charts = (
        [heatmap("Blue is 1, orange -1; behind p the mean size over all pairs", panels, cell=(10, 10))]
        if panels
        else []
    )
    return f"figure-7-{name}", title, charts


def by_run(found: list[dict[str, Any]]) -> dict[tuple[str, int, int], list[dict[str, Any]]]:
    """Return results of images.py by what may be compared: data set, epochs and images."""
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault((one["set"], len(one["story"]), one["rows"]), []).append(one)
    return groups


def last(found: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, float]]:
    """Return means over seeds of the last epoch of runs alike in `keys`, by the sparsity that was reached."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault(tuple(str(one[key]) for key in keys), []).append(one)
    points = [
        {name: mean(one["story"][-1][name] for one in runs) for name in ("sparsity", "test")}
        | {"params": mean(one["params"] for one in runs), "live": mean(one["live"] for one in runs)}
        for runs in groups.values()
    ]
    return sorted(points, key=lambda point: (point["params"], point["sparsity"]))


def figure_8(key: tuple[str, int, int], found: list[dict[str, Any]]) -> Page:
    """Draw accuracy against the sparsity that was reached, for every method, with the dense network as a line."""
    name, epochs, rows = key
    usual = min(one["k"] for one in found)
    found = [one for one in found if one["k"] == usual]
    dense = [one["story"][-1]["test"] for one in found if one["method"] == "dense"]
    series: list[Series] = []
    for method in sorted(METHODS, key=lambda method: method != "LpSS"):
        points = last([one for one in found if one["method"] == method], ("sparsity", "p"))
        if points:
            style = {"marker": "dot"} if method == "LpSS" else {"dash": "5 4"}
            colour = COLOURS[len(series) % len(COLOURS)]
            series.append(Series(method, [(point["sparsity"], point["test"]) for point in points], colour, **style))
    if not series:
        return f"figure-8-{name}", name, []
    theirs = [float(value) for value in THEIRS[name].split()]
    series.append(
        Series("paper, LpSS", [(s, theirs[5 + 5 * k]) for k, s in enumerate(SPARSITIES)], "red", marker="open")
    )
    ends = [min(x for one in series for x, _ in one.points), max(x for one in series for x, _ in one.points)]
    if dense:
        series.append(Series("dense", [(x, mean(dense)) for x in ends], "sky", dash="2 3"))
    series.append(Series("paper, dense", [(x, theirs[0]) for x in ends], "red", dash="2 3"))
    number = "9a" if name == "cifar10" else "8"
    title = f"{name}, width {usual}: accuracy against sparsity, {epochs} epochs of {rows:,} images"
    drawn = chart("Accuracy against sparsity", series, x_label="sparsity reached", y_label="test accuracy", height=420)
    return f"figure-{number}-{name}-{epochs}-{rows}", title, [drawn]


def figure_10(key: tuple[str, int, int], found: list[dict[str, Any]]) -> Page:
    """Draw the sparsity that LpSS reached, and its accuracy, against the parameters of wider and wider networks."""
    name, epochs, rows = key
    runs = [one for one in found if one["method"] == "LpSS"]
    sparsity, test = [], []
    aims = sorted({(one["sparsity"], one["p"]) for one in runs}, key=str)
    for place, (aim, p) in enumerate(aims):
        points = last([one for one in runs if (one["sparsity"], one["p"]) == (aim, p)], ("k",))
        if len(points) > 1:
            label, colour = f"to {aim:g}" + (f", p={p:g}" if p else ""), COLOURS[place % len(COLOURS)]
            sparsity.append(Series(label, [(q["params"], q["sparsity"]) for q in points], colour, marker="dot"))
            test.append(Series(label, [(q["params"], q["test"]) for q in points], colour, marker="dot"))
    labels: dict[str, Any] = {"x_label": "parameters when dense", "x_log": True}
    title = f"{name}: LpSS against the size of the model, {epochs} epochs of {rows:,} images"
    charts = [
        chart("Sparsity reached", sparsity, y_label="sparsity", **labels),
        chart("Accuracy", test, y_label="test accuracy", **labels),
    ]
    return f"figure-10-{name}-{epochs}-{rows}", title, charts if sparsity else []


def main() -> int:
    """Draw what can be drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hoyer", type=Path, default=Path("results/lp_sphere/hoyer"), help="what hoyer.py left")
    parser.add_argument("--images", type=Path, default=Path("results/lp_sphere/images"), help="what images.py left")
    parser.add_argument("--points", type=Path, help="the paper's points of figure 6 as CSV: layer, dim, kind, p, H")
    parser.add_argument("--out", type=Path, default=Path("results/lp_sphere/figures"))
    parser.add_argument("--only", default="2,3,5,7,8,10", help="3 is 4 too, 5 is 6 too, 8 is 9a too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = set(options.only.split(","))
    networks = [one for one in results(argparse.Namespace(out=options.hoyer)) if "epochs" in one]
    for name in ("mnist", "fashion-mnist"):
        found = [one for one in networks if one["set"] == name]
        theirs = published(options.points) if name == "fashion-mnist" else {}
        pages = {
            "2": partial(figure_2, name, found),
            "3": partial(figure_3, name, found),
            "5": partial(figure_5, name, found, theirs),
            "7": partial(figure_7, name, found),
        }
        for number in sorted(wanted & pages.keys()):
            write_page(pages[number](), options.out)
    groups = by_run(results(argparse.Namespace(out=options.images)))
    for number, draw in (("8", figure_8), ("10", figure_10)):
        if number in wanted and not groups:
            print(f"figure-{number}: no results")
        for key, found in groups.items() if number in wanted else ():
            write_page(draw(key, found), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
