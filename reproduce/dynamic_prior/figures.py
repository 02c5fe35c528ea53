"""Dynamic regularizer: figures 1 to 5.

    python reproduce/dynamic_prior/figures.py                    # figures 1 and 2; 3 to 5 from what the other scripts left
    python reproduce/dynamic_prior/figures.py --only 1,2 --size 10000

One page a figure, its charts as SVG. Figures 1 and 2 are of vectors that are drawn here; the paper does not say of which.
Figure 1, norms of sampled vectors: 20,000 draws of one entry in a thousand, and in a hundred, from a vector of 10,000 entries,
a tenth of which are normal and the others 0, by the uniform prior, by magnitude, and as equation 4 is printed.
Figure 2, how large penalties are by the density of a vector with 10,000 entries: a share of them is normal with deviation 1,
the others are 0. Of the proposed penalty that is the mean of 200 draws (lambda of section 2.3: the sum over draws is divided
by their number), one entry in a hundred selected, once with the uniform prior of that section, once by magnitude; beside
them the bound sqrt(s_p) · L2, which is inequality 7 with the density exact, and holds for the uniform prior.
Figures 3 and 4 are loss, accuracy, magnitude and density over training, from tables.py: digits, clothes, and CIFAR-10; the
runs of the first seed with the strengths that are matched. Figure 5 is from projected.py.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pared.measure.weights import sampled_norms
from pared.penalties import Sampling
from pared.report.charts import COLOURS, Series, chart

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import Page, results, write_page
from tables import BATCH, EVERY, STRENGTHS, marked, titled

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BINS = 40


def sparse_vector(size: int, density: float, seed: int = 0) -> Tensor:
    """Return a vector with that share of entries from N(0, 1), the first ones, and zeros, (size,)."""
    vector = torch.zeros(size)
    count = max(1, round(density * size))
    vector[:count] = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return vector


def figure_1(size: int) -> Page:
    """Draw how norms of sampled vectors are distributed, as shares of draws by norm."""
    vector, charts = sparse_vector(size, 0.1), []
    for density in (0.001, 0.01):
        series = []
        for colour, prior in zip(COLOURS, ("uniform", "magnitude", "printed"), strict=False):
            norms = sampled_norms(
                [vector], 20_000 if size <= 10_000 else 1000, Sampling(density, prior=prior), vectors=True
            )
            top = max(float(norms.max()), 1e-9)
            counts = torch.histc(norms, BINS, 0.0, top).tolist()
            points = [((i + 0.5) * top / BINS, count / len(norms)) for i, count in enumerate(counts)]
            series.append(Series(prior, points, colour))
            told = ", ".join(f"{q:g}: {float(norms.quantile(q)):.3f}" for q in (0.05, 0.5, 0.95))
            print(
                f"figure 1, s_p = {density:g}, {prior}: no length {float((norms == 0).float().mean()):.3f}; quantiles {told}"
            )
        charts.append(
            chart(f"s_p = {density:g}", series, x_label="norm of the sampled vector", y_label="share of draws")
        )
    return "figure-1", "Distribution of the norm of sampled vectors", charts


def penalties_of(vector: Tensor, density: float, draws: int = 200) -> dict[str, float]:
    """Return how large each penalty is of a vector, with strength 1."""
    found = {"L1": float(vector.abs().sum()), "L2": float(vector.norm()), "L2 squared": float(vector.square().sum())}
    for prior in ("uniform", "magnitude"):
        norms = sampled_norms([vector], draws, Sampling(density, prior=prior), vectors=True)
        found[f"{prior} prior"] = float(norms.mean())
    return found | {"bound": density**0.5 * found["L2"]}


def figure_2(size: int) -> Page:
    """Draw how large penalties are by the density of the vector."""
    rows = {share: penalties_of(sparse_vector(size, share), 0.01) for share in SHARES}
    names = list(rows[SHARES[0]])
    print("figure 2, density of the vector: " + ", ".join(names))
    for share, row in rows.items():
        print(f"  {share:<6g} " + "  ".join(f"{row[name]:>9.3f}" for name in names))
    series = [
        Series(name, [(share, max(row[name], 1e-3)) for share, row in rows.items()], *_look(place))
        for place, name in enumerate(names)
    ]
    labels: dict[str, Any] = {"x_label": "density of the vector", "y_label": "penalty", "x_log": True, "y_log": True}
    return (
        "figure-2",
        "Size of penalties by the density of a vector",
        [chart("Penalties, s_p = 0.01", series, **labels)],
    )


def over_training(name: str, found: list[dict[str, Any]]) -> Page:
    """Draw loss, accuracy, magnitude and density over steps, of the first seed's runs."""
    plain = {r["seed"]: r["epochs"][-1]["validation"] for r in found if r["penalty"] == "none"}
    lines: dict[str, list[Series]] = {"loss": [], "accuracy": [], "magnitude": [], "density": [], "printed": []}
    kinds = dict.fromkeys(titled(r) for r in sorted(found, key=lambda r: [*STRENGTHS].index(r["penalty"])))
    for place, kind in enumerate(kinds):
        group: dict[float, list[dict[str, Any]]] = {}
        for r in found:
            if titled(r) == kind:
                group.setdefault(r["strength"], []).append(r)
        chosen = [strength for strength, marks in marked(group, plain).items() if "matched" in marks[0]]
        for r in [one for strength in chosen for one in group[strength] if one["seed"] == min(plain)]:
            add = partial(_add, lines, f"{kind} · {r['strength']:g}" if kind != "none" else kind, place)
            each = r["rows"] // BATCH
            per = each // EVERY  # records of an epoch; what is left of it is none
            steps = [i // per * each + (i % per + 1) * EVERY for i in range(len(r["steps"]))]
            at = partial(zip, steps, strict=True)
            add("loss", at(one["loss"] for one in r["steps"]))
            add("accuracy", ((each * (i + 1), one["test"]) for i, one in enumerate(r["epochs"])))
            add("magnitude", at(one["0.01"]["magnitude"] for one in r["steps"]))
            add("density", at(one["0.01"]["density"] for one in r["steps"]))
            add("printed", at(one["0.01"]["density_printed"] for one in r["steps"]))
    heads = {
        "loss": "Loss on training batches",
        "accuracy": "Accuracy on test images",
        "magnitude": "Magnitude, the norm of all weights",
        "density": "Density, |w| > 0.01",
        "printed": "Density as printed, w > 0.01",
    }
    charts = [chart(head, lines[key], x_label="steps", y_label=key) for key, head in heads.items() if lines[key]]
    number = "4" if name.startswith("cifar10") else "3"
    return (
        f"figure-{number}-{name.replace(' ', '-')}",
        f"{name}: training with each penalty, at matched accuracy",
        charts,
    )


def _add(lines: dict[str, list[Series]], label: str, place: int, which: str, points: Any) -> None:
    lines[which].append(Series(label, [(float(x), float(y)) for x, y in points], *_look(place)))


def _look(place: int) -> tuple[str, bool, str, str]:
    """Return colour, line, marker and dash of the series at that place: dashed where colours begin anew."""
    return COLOURS[place % len(COLOURS)], True, "", "" if place < len(COLOURS) else "5 4"


def figure_5(name: str, found: list[dict[str, Any]]) -> Page:
    """Draw accuracy and cross-entropy on test rows over epochs, means over seeds, of each loss."""
    accuracies, losses = [], []
    kinds = list(dict.fromkeys(r["loss"] for r in found))
    for place, kind in enumerate(sorted(kinds, key=lambda k: k != "ce")):
        stories = [r["story"] for r in found if r["loss"] == kind]
        for series, which in ((accuracies, "test"), (losses, "test loss")):
            means = [statistics.mean(one[which] for one in at) for at in zip(*stories, strict=True)]
            series.append(Series(kind, [(i + 1.0, value) for i, value in enumerate(means)], *_look(place)))
    charts = [
        chart("Accuracy on test rows", accuracies, x_label="epochs", y_label="test accuracy"),
        chart("Cross-entropy on test rows", losses, x_label="epochs", y_label="cross-entropy", y_log=True),
    ]
    return f"figure-5-{name}", f"{name}: cross-entropy (ce) and projected, by sampling density", charts if found else []


def main() -> int:
    """Draw what can be drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=Path("results/dynamic_prior/tables"), help="what tables.py left")
    parser.add_argument("--projected", type=Path, default=Path("results/dynamic_prior/projected"))
    parser.add_argument("--out", type=Path, default=Path("results/dynamic_prior/figures"))
    parser.add_argument("--size", type=int, default=10_000, help="of the vectors of figures 1 and 2")
    parser.add_argument("--only", default="1,2,3,5", help="3 is 4 too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = set(options.only.split(","))
    if unknown := wanted - {"1", "2", "3", "5"}:
        parser.error(f"figures are 1, 2, 3 (with 4) and 5; got {', '.join(sorted(unknown))}")
    drawn: list[Callable[[], Page]] = []
    if "1" in wanted:
        drawn.append(partial(figure_1, options.size))
    if "2" in wanted:
        drawn.append(partial(figure_2, options.size))
    for number, folder, draw in (("3", options.tables, over_training), ("5", options.projected, figure_5)):
        found = results(argparse.Namespace(out=folder)) if number in wanted else []
        if number in wanted and not found:
            print(f"figure {number}: no results in {folder}")
        for name in dict.fromkeys(r["set"] for r in found):
            drawn.append(partial(draw, name, [r for r in found if r["set"] == name]))
    for one in drawn:
        write_page(one(), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
