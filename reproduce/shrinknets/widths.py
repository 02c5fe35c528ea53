"""ShrinkNets, section 4.4: at equal strength Fashion-MNIST ends wider than MNIST. Widths over time, and at the end.

    python reproduce/shrinknets/widths.py --data DIR                 # DIR/{mnist,fashion-mnist}/*.gz, or $PARED_DATA
    python reproduce/shrinknets/widths.py --data DIR --seeds 1 --rows 5000
    python reproduce/shrinknets/widths.py --only table               # what is there so far

Two hidden layers that start with 1000 units (the paper: one to five of 5000), switches from uniform(-1, 1), the sign
variance rule with gamma 0.99, removal once an epoch, Adam, no weight decay. The two sets share rows' numbers, seeds, epochs
and strengths. Each run lands as one JSON file under --out and is not run again. Test accuracy is that of the last epoch.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pared
from pared.data.images import read_mnist
from pared.methods import SignVariance
from pared.models import kaiming_, mlp
from pared.train.batches import train_on

SETS = ("mnist", "fashion-mnist")
STRENGTHS = (1e-4, 1e-3, 1e-2)
HIDDEN, BATCH, LR, GAMMA = (1000, 1000), 128, 1e-3, 0.99


def flat(folder: Path, part: str, rows: int) -> tuple[Tensor, Tensor]:
    """Read the first `rows` images as vectors with mean 0 and deviation 1 over all pixels."""
    x, y = read_mnist(folder, part)
    x = x[:rows].float().flatten(1)
    return (x - x.mean()) / x.std(), y[:rows]


def run(data: Path, name: str, strength: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and return its widths after every epoch."""
    train, (x, y) = flat(data / name, "train", options.rows), flat(data / name, "t10k", 10_000)
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(*train), BATCH, shuffle=True, drop_last=True, generator=generator)
    model = kaiming_(mlp(train[0].shape[1], 10, HIDDEN, generator=generator), generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    method = pared.Shrink(strength, rule=SignVariance(GAMMA), init="uniform")
    session = method.bind(model, optimizer, train[0][:2], steps_per_epoch=len(loader), generator=generator)
    widths = []
    for _ in range(options.epochs):
        train_on(model, optimizer, loader, F.cross_entropy, session=session)
        widths.append([switch.channels for switch in session.switches.values()])
    small = session.realize().eval()
    with torch.no_grad():
        accuracy = 100.0 * (small(x).argmax(1) == y).double().mean().item()
    return {
        "set": name,
        "strength": strength,
        "seed": seed,
        "widths": widths,
        "test": accuracy,
        "params": session.params,
    }


def error(values: list[float]) -> float:
    """Return the standard error of the mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def table(out: Path) -> None:
    """Print the final widths of both sets beside each other."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
    print(f"{'strength':>9}  {'set':<14}{'runs':>5}{'units':>16}{'test':>17}   widths over time, first seed")
    for strength in STRENGTHS:
        for name in SETS:
            mine = [r for r in runs if r["set"] == name and r["strength"] == strength]
            if not mine:
                continue
            units, scores = [sum(r["widths"][-1]) for r in mine], [r["test"] for r in mine]
            steps = mine[0]["widths"][:: max(1, len(mine[0]["widths"]) // 5)]
            told = " ".join("-".join(map(str, widths)) for widths in steps)
            print(
                f"{strength:>9g}  {name:<14}{len(mine):>5}{statistics.mean(units):>9.0f} ± {error(units):<4.0f}"
                f"{statistics.mean(scores):>10.2f} ± {error(scores):.2f}   {told}"
            )


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PARED_DATA"))
    parser.add_argument("--out", type=Path, default=Path("results/shrinknets/widths"))
    parser.add_argument("--only", choices=["runs", "table"])
    parser.add_argument("--rows", type=int, default=20_000, help="training images, at most 60,000")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if options.only != "table":
        if options.data is None:
            parser.error("say where the data is with --data DIR or PARED_DATA; DIR holds mnist/ and fashion-mnist/")
        options.out.mkdir(parents=True, exist_ok=True)
        for seed in range(options.seeds):
            for strength in STRENGTHS:
                for name in SETS:
                    path = options.out / f"{name}-{strength:g}-{seed}.json"
                    if path.exists():
                        continue
                    result = run(Path(options.data), name, strength, seed, options)
                    result |= {"command": " ".join(sys.argv), "torch": torch.__version__, "pared": pared.__version__}
                    path.write_text(json.dumps(result), encoding="utf-8")
                    print(f"{path}: {result['widths'][-1]}, {result['test']:.2f}", flush=True)
    table(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
