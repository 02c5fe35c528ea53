"""Differentiable sparsification of ResNets: depth learned on CIFAR-10, beside thinner networks and other rivals.

    python reproduce/gates/images.py --data DIR                 # 10,000 images, 32x32, 3 seeds
    python reproduce/gates/images.py --data DIR --rows 50000 --epochs 100 --width 16 --device cuda:0
    python reproduce/gates/images.py --only table               # what is there so far

The paper prints no numbers: the table is ours. A ResNet of three stages with three residual blocks each is trained from
scratch, its blocks competing within their stage ("gates", at several strengths); those whose share stays 0 leave while it
trains, and what is left is folded into a plain network. Its rivals have the same images, epochs, rates and seeds: networks
of the same depth that are uniformly thinner ("thin"), networks that lack as many blocks of each stage, chosen at random
("random"), softmax gates of which the k largest of a stage are kept, k as the gates chose ("softmax"), and the group lasso
on the last norm of each block, by its proximal step ("lasso"). Accuracy is on the last 10,000 training images, which no one
trains on ("validation"), and on the test images; latency is of 64 images on one thread. Each run is one JSON file.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import accuracy, arguments, read_images, reproduce, results, told

from pared.measure.latency import least_us, threads
from pared.measure.size import macs
from pared.methods import Gates
from pared.models import depth_groups, resnet

BLOCKS, BATCH, RATE, DECAY = (3, 3, 3), 128, 0.1, 5e-4
STRENGTHS = (0.12, 0.2, 0.3)


@cache
def images(data: str, rows: int) -> tuple[Tensor, ...]:
    """Return images and classes to train on, for validation, and for the test."""
    x, y, x_test, y_test = read_images(Path(data), "cifar10")
    return x[:rows], y[:rows], x[40_000:], y[40_000:], x_test, y_test


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images shifted by up to 4 pixels, flipped or not: one draw for each batch."""
    down, right = torch.randint(9, (2,), generator=generator).tolist()
    moved = F.pad(x, (4, 4, 4, 4))[:, :, down : down + x.shape[2], right : right + x.shape[3]]
    return moved.flip(3) if torch.rand((), generator=generator) < 0.5 else moved


def train(model: nn.Module, method: Gates | None, seed: int, options: argparse.Namespace) -> Any:
    """Train, and return the session if there is a method."""
    x, y, *_ = images(str(options.data), options.rows)
    steps, device = len(x) // BATCH, options.device
    total = steps * options.epochs
    model.to(device)
    plain = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": plain, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, RATE, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(seed)
    session = None
    if method is not None:
        session = method.bind(model, optimizer, x[:2].to(device), total_steps=total, steps_per_epoch=steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], total)
    for _ in range(options.epochs):
        for rows in torch.randperm(len(x), generator=generator)[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(model(augmented(x[rows].to(device), generator)), y[rows].to(device))
            if session is not None:
                loss = loss + session.penalty()
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return session


def network(width: int, seed: int, keep: tuple[tuple[int, ...], ...] | None = None) -> nn.Module:
    """Return a ResNet; of the identity blocks only those in `keep` are there, by stage."""
    model = resnet(BLOCKS, width=width, generator=torch.Generator().manual_seed(seed))
    if keep is None:
        return model
    first = 3  # behind the stem
    for stage, count in enumerate(BLOCKS):
        for block in range(count):
            if block not in keep[stage]:
                _take_out(model, first + block)
        first += count
    return model


def _take_out(model: nn.Module, place: int) -> None:
    """Take a block out; where it changes shapes, its shortcut stays."""
    block = model.get_submodule(str(place))
    stands = nn.Identity() if isinstance(block.shortcut, nn.Identity) else nn.Sequential(block.shortcut, nn.ReLU())
    model._modules[str(place)] = stands


def living(model: nn.Module) -> list[list[int]]:
    """Return which blocks of each stage have a branch."""
    found, first = [], 3
    for count in BLOCKS:
        blocks = [model.get_submodule(str(first + block)) for block in range(count)]
        found.append([n for n, b in enumerate(blocks) if any(isinstance(m, nn.BatchNorm2d) for m in _branch(b))])
        first += count
    return found


def _branch(block: nn.Module) -> list[nn.Module]:
    norm = getattr(block, "norm2", None)
    return [] if norm is None else list(norm.modules())


def run(kind: str, level: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network, and measure what is left of it."""
    x, _, *parts = images(str(options.data), options.rows)
    width, story = options.width, {}
    if kind == "gates":
        model = network(width, seed)
        session = train(model, Gates(level, depth_groups(model), cost="macs", scaled=True), seed, options)
        model.eval()
        small = session.realize()
        some = x[:200].to(options.device)
        with torch.no_grad():
            story = {"difference": float((small(some) - model(some)).abs().max())}
        story["events"] = [[e.step, e.layer, list(e.index)] for e in session.events]
        story["shares"] = {title: gate.shares().tolist() for title, gate in session.gates.items()}
    else:
        keep = None
        if kind == "random":
            counts = [len(stage) for stage in json_of(options, f"gates-{level:g}-{seed}")["blocks"]]
            generator = torch.Generator().manual_seed(seed + 1000)
            drawn = [torch.randperm(n, generator=generator)[:k].tolist() for n, k in zip(BLOCKS, counts, strict=True)]
            keep = tuple(tuple(stage) for stage in drawn)
        small = network(int(level) if kind == "thin" else width, seed, keep)
        train(small, None, seed, options)
    return story | measured(small.eval(), parts, options) | {"kind": kind, "level": level, "seed": seed}


def measured(model: nn.Module, parts: list[Tensor], options: argparse.Namespace) -> dict[str, Any]:
    """Return what a trained network is worth, and costs."""
    held = [part.to(options.device) for part in parts]
    blocks, model = living(model), model.cpu() if options.device == "cpu" else model
    with threads(1):
        (latency,) = least_us([partial(model, held[0][:64])], seconds=1.0)
    return {
        "validation": accuracy(model, held[0], held[1]),
        "test": accuracy(model, held[2], held[3]),
        "macs": macs(model, held[0][:1]),
        "params": sum(p.numel() for p in model.parameters()),
        "us": latency,
        "blocks": blocks,
        "rows": options.rows,
        "epochs": options.epochs,
    }


def json_of(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return what a run found."""
    return json.loads((options.out / f"{name}.json").read_text(encoding="utf-8"))


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield what is to be run, gates before what depends on them."""
    strengths = [float(s) for s in options.strengths.split(",")]
    levels = {"gates": strengths, "thin": [float(w) for w in options.thin.split(",")], "random": strengths}
    kinds = [kind for kind in options.kinds.split(",") if kind in levels]
    for seed in map(int, options.seeds.split(",")):
        for kind in kinds:
            for level in levels[kind]:
                yield f"{kind}-{level:g}-{seed}", partial(run, kind, level, seed, options)


def at_macs(points: list[dict[str, Any]], cost: float, key: str) -> float:
    """Return what networks of the line through `points` reach at a cost, linear in its logarithm; nan outside."""
    line = sorted((math.log(p["macs"]), p[key]) for p in points)
    where = math.log(cost)
    for (a, low), (b, high) in pairwise(line):
        if a <= where <= b:
            return low + (high - low) * (where - a) / (b - a)
    return math.nan


def table(options: argparse.Namespace) -> None:
    """Print all runs, by kind and level, and what thinner networks reach at the same cost."""
    found = results(options)
    print("| | blocks | MACs | us | validation | test | thinner, same MACs: validation | test |\n|" + "---|" * 8)
    for kind in ("thin", "gates", "random"):
        for level in sorted({r["level"] for r in found if r["kind"] == kind}):
            some = [r for r in found if (r["kind"], r["level"]) == (kind, level)]
            thin = {r["seed"]: [t for t in found if t["kind"] == "thin" and t["seed"] == r["seed"]] for r in some}
            rivals = [
                [v for r in some if not math.isnan(v := at_macs(thin[r["seed"]], r["macs"], key))]
                for key in ("validation", "test")
            ]
            blocks = " ".join("+".join(str(len(stage)) for stage in r["blocks"]) for r in some)
            cost, us = (statistics.mean(r[key] for r in some) for key in ("macs", "us"))
            scores = [told(r[key] for r in some) for key in ("validation", "test")]
            shown = [told(values) for values in rivals] if kind != "thin" else ["", ""]
            print(f"| {kind} {level:g} | {blocks} | {cost:,.0f} | {us:,.0f} | " + " | ".join([*scores, *shown]) + " |")
    differences = [r["difference"] for r in found if "difference" in r]
    if differences:
        print(f"largest difference between a gated network and what it was realised to: {max(differences):.1e}")


def main() -> int:
    """Run what is missing, and print the table."""
    parser = arguments(__doc__, "gates/images", seeds="0,1,2")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--strengths", default=",".join(map(str, STRENGTHS)))
    parser.add_argument("--thin", default="8,6,5,4", help="widths of the thinner networks; the first is the dense one")
    parser.add_argument("--kinds", default="thin,gates,random")
    return reproduce(parser, runs, table)


if __name__ == "__main__":
    sys.exit(main())
