"""L_p sphere, figures 3 to 6: accuracy and Hoyer's sparsity of every layer against the exponent, by both forms of LpSGD.

    python reproduce/lp_sphere/hoyer.py --data DIR                   # DIR/fashion-mnist/*.gz, or $PARED_DATA
    python reproduce/lp_sphere/hoyer.py --data DIR --set mnist --p 1.2,1.5,1.8,2.5 --forms momentum,direct
    python reproduce/lp_sphere/hoyer.py --only table --points FILE   # what is there so far, beside the paper's points

The networks of table 2, every layer's weights on the sphere, biases by heavy-ball SGD with the same rate; on the sphere
0.02, times 0.3 every epoch on MNIST, times 0.4 every 4 epochs on Fashion-MNIST. The paper states neither the batch size
(64 here) nor the number of epochs (--epochs). A layer's sparsity is the mean over its neurons. Each run lands as one JSON
file under --out and is not run again.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pared
from pared.data.images import read_mnist
from pared.models import cnn
from pared.ops import expected_hoyer, hoyer
from pared.optim import LpSGD, lp_groups

#: The exponents of figures 3, 4 and 6 each, the factor of the rate, and every how many epochs.
SETS = {"mnist": (0.3, 1, 4), "fashion-mnist": (0.4, 4, 12)}
RATE, BATCH = 0.02, 64
EXPONENTS = "1.1,1.2,1.3,1.5,1.8,2,2.5,3,4,6"


def weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of the layers, a neuron in each row."""
    return [m.weight.detach().flatten(1) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def images(folder: Path, part: str, rows: int) -> tuple[Tensor, Tensor]:
    """Read the first `rows` images with mean 0 and deviation 1 over all pixels."""
    x, y = read_mnist(folder, part)
    x = x[:rows].float().reshape(-1, 1, 28, 28) / 255.0
    return (x - x.mean()) / x.std(), y[:rows].long()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share that is right, in points."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(1000), y.split(1000), strict=True))
    return 100.0 * right / len(x)


def run(data: Path, name: str, p: float, form: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network; return its accuracy and every layer's sparsity after each epoch."""
    x, y = images(data / name, "train", options.rows)
    test = images(data / name, "t10k", 10_000)
    generator = torch.Generator().manual_seed(seed)
    model = cnn(name, generator=generator)
    momentum = 0.9 if form == "momentum" else 0.0
    groups = lp_groups(model, p, constrain="all", lr=RATE, euclidean_lr=options.bias_rate)
    optimizer = LpSGD(groups, RATE, p, momentum=momentum, form=form)  # pyright: ignore[reportArgumentType]
    factor, every, usual = SETS[name]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, every, factor)
    began, epochs = time.perf_counter(), []
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
        told = {"loss": float(torch.stack(losses).mean()), "test": accuracy(model, *test), "hoyer": layers}
        epochs.append(told)
        print(f"{name} p={p:g} {form} seed {seed}, epoch {len(epochs)}: {told['test']:.2f}", flush=True)
    dims = [w.shape[1] for w in weights(model)]
    return {"set": name, "p": p, "form": form, "seed": seed, "rows": len(x), "dims": dims, "epochs": epochs} | {
        "bias_rate": options.bias_rate,
        "seconds": time.perf_counter() - began,
        "command": " ".join(sys.argv),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pared": pared.__version__},
    }


def published(path: Path | None) -> dict[tuple[int, float], float]:
    """Read the paper's own trained points: sparsity by layer (from 1) and exponent."""
    if path is None:
        return {}
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "trained"]
    return {(int(row["layer"]), round(float(row["p"]), 4)): float(row["H"]) for row in rows}


def table(out: Path, name: str, points: Path | None) -> None:
    """Print ours, theory and the paper's points, layer by layer, and the mean distances to the latter."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"{name}-*.json"))]
    theirs = published(points) if name == "fashion-mnist" else {}
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
            told = ", ".join(f"{layer}: {statistics.mean(values):.3f}" for layer, values in far.items())
            convolutions = [value for layer in (1, 2, 3) for value in far[layer]]
            print(
                f"mean distance to the paper's points by layer: {told}; of the convolutions {statistics.mean(convolutions):.3f}"
            )


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PARED_DATA"))
    parser.add_argument("--set", default="fashion-mnist", choices=list(SETS))
    parser.add_argument("--p", default=EXPONENTS)
    parser.add_argument("--forms", default="momentum")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, help="4 on MNIST and 12 on Fashion-MNIST if left out")
    parser.add_argument("--bias-rate", type=float, default=RATE, help="of biases and norms")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--points", type=Path, help="the paper's points of figure 6 as CSV: layer, dim, kind, p, H")
    parser.add_argument("--out", type=Path, default=Path("results/lp_sphere/hoyer"))
    parser.add_argument("--only", choices=["table"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    if options.only != "table":
        if options.data is None:
            parser.error(f"say where the data is with --data DIR or PARED_DATA; DIR holds {options.set}/*.gz")
        options.out.mkdir(parents=True, exist_ok=True)
        for seed in map(int, options.seeds.split(",")):
            for form in options.forms.split(","):
                for p in map(float, options.p.split(",")):
                    path = options.out / f"{options.set}-{form}-{p:g}-{seed}.json"
                    if not path.exists():
                        path.write_text(json.dumps(run(Path(options.data), options.set, p, form, seed, options)))
    table(options.out, options.set, options.points)
    return 0


if __name__ == "__main__":
    sys.exit(main())
