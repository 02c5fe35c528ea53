"""L_p sphere, table 4 and figures 8 to 10: LpSS and every rival on images, beside the dense network.

    python reproduce/lp_sphere/images.py --data DIR                         # MNIST, 40 epochs; hours on a CPU
    python reproduce/lp_sphere/images.py --data DIR --epochs 5              # a short schedule
    python reproduce/lp_sphere/images.py --data DIR --set fashion-mnist --methods dense,LpSS --budget 60
    python reproduce/lp_sphere/images.py --data DIR --set cifar10 --k 2,4,6,8 --methods LpSS --sparsities 0.98 --p 1.07
    python reproduce/lp_sphere/images.py --only table                       # what is there so far

WRN-12-1 on MNIST, WRN-18-1 on Fashion-MNIST, WRN-22-2 on CIFAR-10 (--k for other widths: figure 10), batches of 256, 256
and 512. Rates are those of the paper's code: 0.4 with Nesterov momentum 0.9 for all but LpSS, whose sphere takes 2 / batch,
and whose other parameters take 0.4 too; on MNIST along the paper's triangle, else along the line of its code. All weights of
layers can die, equally in all layers, as in that code. Fashion-MNIST and CIFAR-10 are cropped, flipped, and cut out.
Accuracy is that of the last epoch; nothing is chosen on test images. Each run lands as one JSON file under --out.
"""

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pared.models import wide_resnet
from pared.optim import LpSGD, lp_groups, piecewise_linear, triangular

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import Runs, accuracy, arguments, read_images, reproduce, results, told
from compared import METHODS, PAPER, SPARSITIES

#: Depth, width, channels, epochs, batch, and the side of what is cut out.
SETS = {"mnist": (12, 1, 1, 40, 256, 0), "fashion-mnist": (18, 1, 1, 50, 256, 6), "cifar10": (22, 2, 3, 250, 512, 16)}
#: The paper's table 4: dense, then SET, Static, RigL, SNIP and LpSS at each sparsity.
THEIRS = {
    "mnist": "99.47 99.55 99.49 99.59 99.55 99.57 99.54 99.44 99.48 99.41 99.53 99.47 99.42 99.43 99.33 99.46",
    "fashion-mnist": "94.18 94.32 93.89 94.20 93.64 94.36 93.73 93.57 93.58 92.81 93.91 92.56 92.44 93.16 92.29 93.09",
    "cifar10": "94.11 93.64 93.92 94.23 94.30 94.23 92.49 92.33 93.40 93.02 93.83 91.05 91.05 92.85 91.46 93.10",
}
#: Exponents of LpSS at each sparsity: of the first four weights, and of the others.
EXPONENTS = {0.5: (1.4, 1.3), 0.8: (1.3, 1.15), 0.9: (1.2, 1.07)}
RATE, SPHERE_RATE = 0.4, 2.0
#: The line of the paper's code, as shares of the run and of the rate, without and with the sphere.
LINE = {
    False: [(0.0, 0.025), (1 / 6, 1.0), (1 / 3, 0.5), (0.94, 0.005), (1.0, 0.00025)],
    True: [(0.0, 0.02), (1 / 6, 1.0), (1 / 3, 0.25), (0.94, 0.002), (1.0, 0.0001)],
}


def augmented(x: Tensor, hole: int, generator: torch.Generator) -> Tensor:
    """Return images shifted by up to 4 pixels (reflected at the edges), flipped or not, with a square set to 0."""
    if not hole:
        return x
    n, _, side, _ = x.shape
    at = torch.arange(side)
    shift = torch.randint(9, (2, n, 1), generator=generator)
    rows, columns = (at + shift[0])[:, None, :, None], (at + shift[1])[:, None, None, :]
    flip = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(3), columns)
    padded = F.pad(x, (4, 4, 4, 4), "reflect")
    index = torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None]
    moved = padded[(*index, rows, columns)]
    center = torch.randint(side, (2, n, 1), generator=generator)
    inside = [(at - c).abs() * 2 + 1 <= hole for c in center]
    return moved.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def exponents(sparsity: float, p: float | None) -> list[float]:
    """Return the exponents of the weights in their order, of which the last goes for all that are left."""
    if p is not None:
        return [p]
    first, others = EXPONENTS.get(sparsity, EXPONENTS[0.9])
    return [first] * 4 + [others]


def run(method: str, sparsity: float, k: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and return its test accuracy."""
    depth, _, channels, usual, batch, hole = SETS[options.set]
    x, y, *test = read_images(Path(options.data), options.set, options.rows)
    generator = torch.Generator().manual_seed(seed)
    model = wide_resnet(depth, k, channels=channels, generator=generator).to(options.device)
    test = [part.to(options.device) for part in test]
    steps, epochs = len(x) // batch, options.epochs or usual
    sphere = method == "LpSS"
    if sphere:
        p = exponents(sparsity, options.p)
        groups = lp_groups(model, p, lr=SPHERE_RATE / batch, euclidean_lr=RATE)
        optimizer: torch.optim.Optimizer = LpSGD(groups, SPHERE_RATE / batch, p[0])
    else:
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True)
    session, total = None, epochs * steps
    if method != "dense":
        session = METHODS[method](sparsity, total).bind(model, optimizer, total_steps=total, generator=generator)
    if options.set == "mnist":
        schedule = triangular(optimizer, total)
    else:
        schedule = piecewise_linear(optimizer, [(time * total, factor) for time, factor in LINE[sphere]])
    story: list[dict[str, float]] = []
    for epoch in range(epochs):
        losses = []
        for rows in torch.randperm(len(x), generator=generator)[: steps * batch].split(batch):
            images = augmented(x[rows], hole, generator).to(options.device, memory_format=torch.channels_last)
            loss = F.cross_entropy(model(images), y[rows].to(options.device))
            loss.backward()
            optimizer.step() if session is None else session.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        done = {"loss": float(torch.stack(losses).mean()), "test": accuracy(model, test[0], test[1])}
        story.append(done | {"sparsity": 0.0 if session is None else session.sparsity})
        print(f"{options.set} {method} {sparsity:g}, seed {seed}, epoch {epoch + 1}: {story[-1]}", flush=True)
    params = sum(p.numel() for p in model.parameters())
    return {
        "set": options.set,
        "k": k,
        "method": method,
        "sparsity": sparsity,
        "p": options.p,
        "seed": seed,
        "rows": len(x),
        "params": params,
        "live": params if session is None else session.params,
        "story": story,
    }


def runs(options: argparse.Namespace) -> Runs:
    """Return what was asked for, by name."""
    for seed in map(int, options.seeds.split(",")):
        for k in map(int, (options.k or str(SETS[options.set][1])).split(",")):
            for method in options.methods.split(","):
                for sparsity in map(float, options.sparsities.split(",")) if method != "dense" else (0.0,):
                    p = f"-p{options.p:g}" if options.p is not None and method == "LpSS" else ""
                    name = f"{options.set}-k{k}-{method.replace(' ', '_')}{p}-{sparsity:g}-{seed}"
                    yield name, partial(run, method, sparsity, k, seed, options)


def table(options: argparse.Namespace) -> None:
    """Print mean and standard error over seeds of the last epoch, the paper's value, and what sparsity was reached."""
    for name, row in THEIRS.items():
        found = results(options, f"{name}-*.json")
        for k in sorted({one["k"] for one in found}):
            theirs = [float(value) if k == SETS[name][1] else None for value in row.split()]
            mine = [one for one in found if one["k"] == k]
            lengths = sorted({(len(one["story"]), one["rows"]) for one in mine})
            told_ = ", ".join(f"{epochs} epochs of {rows:,} images" for epochs, rows in lengths)
            print(f"\n{name}, k = {k}: {mine[0]['params']:,} parameters, {told_}; test accuracy, ours / the paper's")
            dense = [one["story"][-1]["test"] for one in mine if one["method"] == "dense"]
            print(f"{'dense':>12}{cell(dense, theirs[0]):>24}")
            sparsities = sorted({one["sparsity"] for one in mine if one["method"] != "dense"})
            print(f"{'sparsity':>12}" + "".join(f"{sparsity:>24g}" for sparsity in sparsities))
            for method in METHODS:
                line = ""
                for sparsity in sparsities:
                    chosen = [one for one in mine if (one["method"], one["sparsity"]) == (method, sparsity)]
                    for p in sorted({one["p"] for one in chosen}, key=str):
                        some = [one["story"][-1] for one in chosen if one["p"] == p]
                        place = list(PAPER).index(method) if method in PAPER and sparsity in SPARSITIES else None
                        known = None if place is None else theirs[1 + 5 * SPARSITIES.index(sparsity) + place]
                        reached = statistics.mean(one["sparsity"] for one in some)
                        said = f" ({reached:.3f})" if abs(reached - sparsity) > 0.005 else ""
                        line += f"{cell([one['test'] for one in some], known) + said:>24}"
                if line:
                    print(f"{method:>12}{line}")


def cell(values: list[float], theirs: float | None) -> str:
    """Return ours beside theirs."""
    return told(values) + (f" / {theirs:.2f}" if values and theirs is not None else "")


def main() -> int:
    """Run what is missing and print the table."""
    parser = arguments(__doc__, "lp_sphere/images")
    parser.add_argument("--set", default="mnist", choices=list(SETS))
    parser.add_argument("--methods", default=",".join(["dense", *METHODS]))
    parser.add_argument("--sparsities", default=",".join(map(str, SPARSITIES)))
    parser.add_argument("--k", help="widths; the paper's if left out")
    parser.add_argument("--p", type=float, help="one exponent for LpSS instead of those of the paper's code")
    parser.add_argument("--epochs", type=int, help="the paper's 40, 50 or 250 if left out")
    parser.add_argument("--rows", type=int, help="train on that many images only")
    parser.add_argument("--device", default="cpu")
    return reproduce(parser, runs, table)


if __name__ == "__main__":
    sys.exit(main())
