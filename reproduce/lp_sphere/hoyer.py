"""L_p sphere, figures 2 to 7: accuracy, Hoyer's sparsity of every layer and likeness of neurons, by both forms of LpSGD.

    python reproduce/lp_sphere/hoyer.py --data DIR                   # DIR/fashion-mnist/*.gz, or $PARED_DATA
    python reproduce/lp_sphere/hoyer.py --data DIR --set mnist --p 1.2,1.5,1.8,2.5 --forms momentum,direct
    python reproduce/lp_sphere/hoyer.py --only table --points FILE   # what is there so far, beside the paper's points

The networks of table 2, every layer's weights on the sphere, biases by heavy-ball SGD with the same rate; on the sphere
0.02, times 0.3 every epoch on MNIST, times 0.4 every 4 epochs on Fashion-MNIST. The paper states neither the batch size
(64 here) nor the number of epochs (--epochs). A layer's sparsity is the mean over its neurons. At the end a run keeps the
weights of the first output neuron (figure 2), and of every layer the correlations between its neurons' weights, the mean of
their sizes and a corner of 16 x 16 (figure 7; which part the paper shows, and what "obviously higher" means, it does not
say). Vectors of few entries are alike by chance, so this is told too: of independent normal ones of d entries the mean
|correlation| is Γ((d-1)/2) / (sqrt(π) Γ(d/2)). Each run lands as one JSON file under --out and is not run again.
"""

import argparse
import csv
import math
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.data.images import read_mnist
from pared.models import cnn
from pared.ops import cross_correlation, expected_hoyer, hoyer
from pared.optim import LpSGD, lp_groups

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import Runs, accuracy, arguments, reproduce, results

#: The exponents of figures 3, 4 and 6 each, the factor of the rate, and every how many epochs.
SETS = {"mnist": (0.3, 1, 4), "fashion-mnist": (0.4, 4, 12)}
RATE, BATCH, CORNER = 0.02, 64, 16
EXPONENTS = "1.1,1.2,1.3,1.5,1.8,2,2.5,3,4,6"


def weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of the layers, a neuron in each row."""
    return [m.weight.detach().flatten(1) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def images(folder: Path, part: str, rows: int) -> tuple[Tensor, Tensor]:
    """Read the first `rows` images with mean 0 and deviation 1 over all pixels."""
    x, y = read_mnist(folder, part)
    x = x[:rows].float().reshape(-1, 1, 28, 28) / 255.0
    return (x - x.mean()) / x.std(), y[:rows].long()


def correlations(model: nn.Module) -> list[dict[str, Any]]:
    """Return, for every layer, how large correlations between its neurons are on average, and a corner of their matrix."""
    found = []
    for w in weights(model):
        matrix = cross_correlation(w)
        apart = matrix[~torch.eye(len(w), dtype=torch.bool)]
        found.append({"mean": float(apart.abs().mean()), "corner": rounded(matrix[:CORNER, :CORNER])})
    return found


def rounded(x: Tensor) -> list[Any]:
    """Return numbers of four digits behind the point."""
    return (x.double() * 1e4).round().div(1e4).tolist()


def run(name: str, p: float, form: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network; return its accuracy and every layer's sparsity after each epoch, and what neurons are at the end."""
    data = Path(options.data)
    x, y = images(data / name, "train", options.rows)
    test = images(data / name, "t10k", 10_000)
    generator = torch.Generator().manual_seed(seed)
    model = cnn(name, generator=generator)
    momentum = 0.9 if form == "momentum" else 0.0
    groups = lp_groups(model, p, constrain="all", lr=RATE, euclidean_lr=options.bias_rate)
    optimizer = LpSGD(groups, RATE, p, momentum=momentum, form=form)  # pyright: ignore[reportArgumentType]
    factor, every, usual = SETS[name]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, every, factor)
    epochs: list[dict[str, Any]] = []
    for _ in range(options.epochs or usual):
        model.train()
        losses = []
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            if len(batch) == BATCH:
                loss = F.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        schedule.step()
        layers = [float(hoyer(w).mean()) for w in weights(model)]
        done = {"loss": float(torch.stack(losses).mean()), "test": accuracy(model, *test), "hoyer": layers}
        epochs.append(done)
        print(f"{name} p={p:g} {form} seed {seed}, epoch {len(epochs)}: {done['test']:.2f}", flush=True)
    return {
        "set": name,
        "p": p,
        "form": form,
        "seed": seed,
        "rows": len(x),
        "dims": [w.shape[1] for w in weights(model)],
        "epochs": epochs,
        "bias_rate": options.bias_rate,
        "output": rounded(weights(model)[-1][0]),
        "correlation": correlations(model),
    }


def runs(options: argparse.Namespace) -> Runs:
    """Return what was asked for, by name."""
    for seed in map(int, options.seeds.split(",")):
        for form in options.forms.split(","):
            for p in map(float, options.p.split(",")):
                yield f"{options.set}-{form}-{p:g}-{seed}", partial(run, options.set, p, form, seed, options)


def published(path: Path | None) -> dict[tuple[int, float], float]:
    """Read the paper's own trained points: sparsity by layer (from 1) and exponent."""
    if path is None:
        return {}
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "trained"]
    return {(int(row["layer"]), round(float(row["p"]), 4)): float(row["H"]) for row in rows}


def table(options: argparse.Namespace) -> None:
    """Print ours, theory and the paper's points, layer by layer, and the mean distances to the latter."""
    name = options.set
    found = results(options, f"{name}-*.json")
    theirs = published(options.points) if name == "fashion-mnist" else {}
    for form in ("momentum", "direct"):
        runs = [one for one in found if one["form"] == form]
        if not runs:
            continue
        print(f"\n{name}, form {form}: sparsity after the last epoch (mean over seeds), ours / theory / the paper's")
        print(
            f"{'p':>6}{'seeds':>6}{'test':>7}"
            + "".join(f"{f'layer {k} ({d})':>24}" for k, d in enumerate(runs[0]["dims"], 1))
        )
        far: dict[int, list[float]] = {}
        for p in sorted({one["p"] for one in runs}):
            mine = [one for one in runs if one["p"] == p]
            line = f"{p:>6g}{len(mine):>6}{statistics.mean(one['epochs'][-1]['test'] for one in mine):>7.2f}"
            for layer, dim in enumerate(runs[0]["dims"], 1):
                ours = statistics.mean(one["epochs"][-1]["hoyer"][layer - 1] for one in mine)
                paper = theirs.get((layer, round(p, 4)))
                line += f"{ours:>10.3f} / {float(expected_hoyer(dim, p)):.3f} / " + (
                    "  -  " if paper is None else f"{paper:.3f}"
                )
                if paper is not None:
                    far.setdefault(layer, []).append(abs(ours - paper))
            print(line)
        if far:
            each = ", ".join(f"{layer}: {statistics.mean(values):.3f}" for layer, values in far.items())
            convolutions = [value for layer in (1, 2, 3) for value in far[layer]]
            print(
                f"mean distance to the paper's points by layer: {each}; of the convolutions {statistics.mean(convolutions):.3f}"
            )
        correlation_table(runs)


def correlation_table(found: list[dict[str, Any]]) -> None:
    """Print how alike neurons are by layer and exponent, and whether it is as the paper says of figure 7."""
    found = [one for one in found if "correlation" in one]
    if not found:
        return
    print("\nmean |correlation| of two neurons of a layer after the last epoch (ratio to independent ones)")
    dims, plain, beside = found[0]["dims"], [], []
    print(f"{'p':>6}{'runs':>6}" + "".join(f"{f'layer {k} ({d})':>20}" for k, d in enumerate(dims, 1)))
    for p in sorted({one["p"] for one in found}):
        mine = [one for one in found if one["p"] == p]
        means = [statistics.mean(one["correlation"][layer]["mean"] for one in mine) for layer in range(len(dims))]
        ratios = [mean / chance(d) for mean, d in zip(means, dims, strict=True)]
        line = "".join(f"{f'{mean:.3f} ({ratio:.1f}x)':>20}" for mean, ratio in zip(means, ratios, strict=True))
        learned = all(learnt(one) for one in mine)
        print(f"{p:>6g}{len(mine):>6}{line}" + ("" if learned else "   did not learn"))
        if learned:
            plain.append(min(means[3:5]) > max(means[:3]))
            beside.append(min(ratios[3:5]) > max(ratios[:3]))
    print(
        "the paper: layers 4 and 5, fully connected, are obviously more correlated than the convolutions 1 to 3 at one p."
    )
    for held, words in ((plain, "as they are"), (beside, "as multiples of independent ones")):
        verdict = "holds" if held and all(held) else "holds in part" if any(held) else "does not hold"
        print(f"  correlations {words}: both above all three at {sum(held)} of {len(held)} exponents: {verdict}")


def learnt(one: dict[str, Any]) -> bool:
    """Return whether a network got off the largest class's share."""
    return one["epochs"][-1]["test"] > 20.0


def chance(d: int) -> float:
    """Return the mean |correlation| of two independent normal vectors of d entries."""
    return math.exp(math.lgamma((d - 1) / 2) - math.lgamma(d / 2)) / math.sqrt(math.pi)


def main() -> int:
    """Run what is missing and print the table."""
    parser = arguments(__doc__, "lp_sphere/hoyer")
    parser.add_argument("--set", default="fashion-mnist", choices=list(SETS))
    parser.add_argument("--p", default=EXPONENTS)
    parser.add_argument("--forms", default="momentum")
    parser.add_argument("--epochs", type=int, help="4 on MNIST and 12 on Fashion-MNIST if left out")
    parser.add_argument("--bias-rate", type=float, default=RATE, help="of biases and norms")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--points", type=Path, help="the paper's points of figure 6 as CSV: layer, dim, kind, p, H")
    return reproduce(parser, runs, table)


if __name__ == "__main__":
    sys.exit(main())
