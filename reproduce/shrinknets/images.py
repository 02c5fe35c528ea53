"""ShrinkNets on images: the front of one shrinking run against networks of fixed width, trained one by one.

    python reproduce/shrinknets/images.py --data DIR                 # DIR/fashion-mnist/*.gz, or $PARED_DATA
    python reproduce/shrinknets/images.py --data DIR --only front --rows 20000 --epochs 16
    python reproduce/shrinknets/images.py --data DIR --only trained --plan 16,16,0,32,32,0,64,0 --rows 16000 --out OUT
    python reproduce/shrinknets/images.py --data DIR --only table    # what is there so far

Each piece lands as one JSON file under --out and is not run again; the shrinking run goes on after every epoch it has
saved. Networks are chosen on 5,000 validation images taken from the training part; test images are reported on only.
The paper's VGG is five times as deep and its images are CIFAR-10; here the widths are 64-64-128-128-256, so that two CPU
cores can do it.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pared
from pared.data.images import read_mnist
from pared.measure.latency import model_latency_us
from pared.measure.size import macs, parameters
from pared.models import vgg
from pared.train.batches import train_on
from pared.train.context import Observer

PLAN = "64,64,0,128,128,0,256,0"  # widths, 0 for a pooling layer
VALIDATION, BATCH, LR = 5_000, 128, 1e-3


def network(plan: str, seed: int, width: float = 1.0) -> nn.Sequential:
    """Return the small VGG for 28 x 28 grey images."""
    widths = [int(item) for item in plan.split(",")]
    return vgg(widths, channels=1, size=28, width=width, generator=torch.Generator().manual_seed(seed))


class Images:
    """Normalised images: rows to train on, rows to choose on, rows to report on."""

    def __init__(self, folder: Path, rows: int, seed: int) -> None:
        x, y = read_mnist(folder, "train")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        mean, deviation = x.float().mean() / 255, x.float().std() / 255
        x = (x.float() / 255 - mean) / deviation
        chosen, rest = order[:VALIDATION], order[VALIDATION:][:rows]
        self.train, self.validation = (x[rest], y[rest]), (x[chosen], y[chosen])
        x, y = read_mnist(folder, "t10k")
        self.test = ((x.float() / 255 - mean) / deviation, y)

    def loader(self, seed: int) -> DataLoader[tuple[Tensor, ...]]:
        """Return the training batches in an order drawn from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(*self.train), BATCH, shuffle=True, drop_last=True, generator=generator)

    def accuracy(self, model: nn.Module, part: str = "validation") -> float:
        """Return the accuracy in points."""
        x, y = getattr(self, part)
        model.eval()
        with torch.no_grad():
            answers = torch.cat([model(rows).argmax(1) for rows in x.split(500)])
        return 100.0 * (answers == y).double().mean().item()


def record(images: Images, model: nn.Module, **rest: Any) -> dict[str, Any]:
    """Return what the tables tell of a network; latencies are microseconds on one thread."""
    batch = images.test[0][:64]
    return {
        "params": parameters(model),
        "macs": macs(model, batch[:1]),
        "widths": [m.weight.shape[0] for m in model.modules() if isinstance(m, nn.Conv2d)],
        "validation": images.accuracy(model),
        "test": images.accuracy(model, "test"),
        "latency_us_1": model_latency_us(model, batch[:1]),
        "latency_us_64": model_latency_us(model, batch),
        **rest,
    }


def run_front(images: Images, options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """One run of `pared.shrink`: the dense reference and the whole front."""
    epochs: list[dict[str, Any]] = []

    def tell(line: dict[str, Any]) -> None:
        epochs.append(line)
        print(json.dumps(line), flush=True)

    result = pared.shrink(
        network(options.plan, options.seed),
        images.loader(options.seed + 1),
        images.accuracy,
        max_drop=1.0,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=LR),
        epochs=options.epochs,
        dense_epochs=options.epochs,
        fine_tune=options.fine_tune,
        smallest=0.005,
        folder=out / "run",
        observer=Observer(epoch=tell, note=lambda line: print(line, flush=True)),
    )
    print(result)
    return {
        "dense": record(images, result.dense.model),
        "front": [record(images, p.model, chosen=p is result.chosen, epoch=p.epoch) for p in result.front],
        "epochs": epochs,
        "seconds": result.seconds,
    }


def train(images: Images, model: nn.Module, epochs: int, seed: int) -> None:
    """Train plainly, the learning rate falling along a cosine."""
    optimizer, loader = torch.optim.Adam(model.parameters(), lr=LR), images.loader(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for _ in range(epochs):
        train_on(model, optimizer, loader, F.cross_entropy, after_step=schedule.step)


def run_trained(images: Images, options: argparse.Namespace) -> dict[str, Any]:
    """A network that is trained already, and what `pared.shrink` makes of it at one point of accuracy."""
    model = network(options.plan, options.seed)
    train(images, model, options.epochs, options.seed + 2)
    result = pared.shrink(
        model,
        images.loader(options.seed + 1),
        images.accuracy,
        max_drop=1.0,
        epochs=options.epochs,
        fine_tune=options.fine_tune,
        observer=Observer(note=lambda line: print(line, flush=True)),
    )
    print(result)
    return {
        "dense": record(images, result.dense.model),
        "front": [record(images, p.model, chosen=p is result.chosen, epoch=p.epoch) for p in result.front],
        "seconds": result.seconds,
    }


def run_static(images: Images, options: argparse.Namespace, number: int) -> dict[str, Any]:
    """A network of fixed width, its factor drawn evenly on a logarithmic scale so that sizes cover the front.

    None is wider than half: above that the dense reference is what a front has to be compared with.
    """
    generator = torch.Generator().manual_seed(1000 * options.seed + number)
    width = math.exp(torch.empty(1).uniform_(math.log(0.07), math.log(0.5), generator=generator).item())
    model, began = network(options.plan, number, width), time.perf_counter()
    train(images, model, options.epochs + options.fine_tune, number)
    return record(images, model, width=width, seconds=time.perf_counter() - began)


def piece(path: Path, make: Any, options: argparse.Namespace) -> None:
    """Make and write one result, unless it is there."""
    if path.exists():
        return
    result = make()
    result |= {"command": " ".join(sys.argv), "options": {k: str(v) for k, v in vars(options).items()}}
    result |= {
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pared": pared.__version__}
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"{path}: done", flush=True)


def table(out: Path) -> None:
    """Print the front beside the networks of fixed width that are there."""
    found = out / "front.json"
    if not found.exists():
        print("no front yet; run --only front")
        return
    run = json.loads(found.read_text(encoding="utf-8"))
    dense = run["dense"]
    statics = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("static-*.json"))]
    print(
        f"{'':10}{'params':>10}{'smaller':>9}{'MACs':>13}{'batch 1':>11}{'faster':>8}{'batch 64':>11}{'faster':>8}"
        f"{'validation':>12}{'test':>8}  widths"
    )
    rows = [("dense", dense), *(("front *" if p["chosen"] else "front", p) for p in run["front"])]
    rows += [("static", p) for p in sorted(statics, key=lambda p: -p["params"])]
    for name, p in rows:
        told = f"{name:10}{p['params']:>10,}{dense['params'] / p['params']:>8.1f}x{p['macs']:>13,}"
        for key in ("latency_us_1", "latency_us_64"):
            told += f"{p[key]:>8.0f} µs{dense[key] / p[key]:>7.1f}x"
        print(f"{told}{p['validation']:>12.2f}{p['test']:>8.2f}  {'-'.join(map(str, p['widths']))}")
    compare(run["front"], statics)
    shrinking = [line for line in run["epochs"] if line["phase"] == "shrink"]
    if shrinking:
        first, last = shrinking[0], shrinking[-1]
        print(
            f"epoch of the shrinking run: {first['seconds']:.1f} s at the start, {last['seconds']:.1f} s at the end "
            f"({first['seconds'] / last['seconds']:.1f}x); multiply-accumulates {first['macs'] / last['macs']:.0f}x fewer"
        )


def compare(front: Sequence[dict[str, Any]], statics: Sequence[dict[str, Any]]) -> None:
    """Print how many static networks lie below the front: beaten by a network of it that is no larger."""
    below = {"validation": 0, "test": 0}
    for static in statics:
        smaller = [p for p in front if p["params"] <= static["params"]]
        for part in below:
            below[part] += any(p[part] > static[part] for p in smaller)
    told = ", ".join(f"{count} of {len(statics)} on {part}" for part, count in below.items())
    print(f"static networks that a network of the front, no larger, does better than: {told}")


def main() -> int:
    """Run the pieces that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PARED_DATA"))
    parser.add_argument("--set", default="fashion-mnist", choices=["fashion-mnist", "mnist"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["front", "static", "trained", "table"])
    parser.add_argument("--plan", default=PLAN, help="widths, 0 for a pooling layer")
    parser.add_argument("--rows", type=int, default=55_000, help="training images, at most 55,000")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--fine-tune", type=int, default=4)
    parser.add_argument("--statics", type=int, default=10)
    parser.add_argument(
        "--first", type=int, default=0, help="the first of them to train; several processes may share them"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    out = options.out or Path("results/shrinknets") / f"{options.set}-{options.rows}-{options.seed}"
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    if options.only != "table":
        if options.data is None:
            parser.error(
                "say where the data is with --data DIR or PARED_DATA; DIR holds fashion-mnist/*.gz as published"
            )
        images = Images(Path(options.data) / options.set, options.rows, options.seed)
        if options.only in (None, "front"):
            piece(out / "front.json", lambda: run_front(images, options, out), options)
        if options.only == "trained":
            piece(out / "trained.json", lambda: run_trained(images, options), options)
        if options.only in (None, "static"):
            for number in range(options.first, options.statics):
                piece(out / f"static-{number:02}.json", lambda n=number: run_static(images, options, n), options)
    table(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
