"""Dynamic regularizer, table 2: networks trained with the proposed penalty, with L1, L2 and none.

    python reproduce/dynamic_prior/tables.py --data DIR                     # MNIST and Fashion-MNIST, 5 seeds: 5 hours on a core
    python reproduce/dynamic_prior/tables.py --data DIR --sets mnist --penalties none,proposed --seeds 0 --budget 60
    python reproduce/dynamic_prior/tables.py --data DIR --sets cifar10 --network small-vgg --rows 10000 --epochs 6 --decay
    python reproduce/dynamic_prior/tables.py --data DIR --rows 2000 --epochs 1 --strengths 1e-4 --out /tmp/smoke
    python reproduce/dynamic_prior/tables.py --only table                     # what is there so far

Adam with rate 1e-3, batches of 32, s_p = 0.01 (--density), as the paper has it; draws, momentum, epochs and strengths, which it
does not give, are ours: 10 draws, 0.9, 5 epochs, and of each penalty strengths half a decade apart. 5000 training images
are left for validation. Each strength is run with the first seed. Then of each penalty, from the strongest down, all seeds are
run until one strength loses at most 0.2 points of validation accuracy against none, as the mean over seeds ("matched"); a
strength that loses more than 0.4 with the first seed is passed over. The strength with the best validation accuracy of the
first seed is run with all seeds, too ("best"): whether a penalty makes a network more accurate is another question than
how sparse it makes one that is as accurate. What is printed is of the last epoch: mean and 95 % interval. With a constant
rate that of deep networks moves by points from epoch to epoch; with --decay it falls to 0, which the paper does not have.

The paper's density has a threshold that it does not give, and counts no negative weight ("printed" here). Its training set
of MNIST has 50,000 images; ours has the 60,000 that are published, without those for validation. Weights are left beside
the results, for used.py.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pared.measure.weights import weight_figures
from pared.models import mlp, resnet, senet, two_layer_cnn, vgg
from pared.penalties import L1, L2, DynamicPrior, HoyerSquare, Penalty

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import Runs, accuracy, arguments, interval, keep_memory, read_images, reproduce, results

BATCH, RATE, HELD_OUT, DRAWS, MOMENTUM = 32, 1e-3, 5000, 10, 0.9
LOSS, HOPELESS, EVERY, EPOCHS, DENSITY = 0.2, 0.4, 100, 5, 0.01
THRESHOLDS = (1e-3, 1e-2)
NETWORKS = ("cnn", "mlp", "vgg", "resnet", "senet", "small-vgg", "small-resnet", "small-senet")
#: Strengths of each penalty, from the weakest.
STRENGTHS = {
    "none": (0.0,),
    "l1": (3e-6, 1e-5, 3e-5, 1e-4, 3e-4),
    "l2": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "hoyer": (1e-6, 3e-6, 1e-5, 3e-5, 1e-4),
    "proposed": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "uniform": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "printed": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "signed": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "squared": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}
#: The proposed penalty and other readings of it, by the options that they differ in.
READINGS: dict[str, dict[str, Any]] = {
    "proposed": {},
    "uniform": {"prior": "uniform"},
    "printed": {"prior": "printed"},
    "signed": {"prior": "signed"},
    "squared": {"norm": "l2_squared"},
}
#: Table 2: accuracy in points, and density.
PAPER = {
    "mnist cnn": {"proposed": "99.2, 1.2e-3", "l2": "99.0, 1.6e-3"},
    "cifar10 cnn": {"proposed": "42.2, 2.4e-3", "l2": "38, 3.2e-3", "l1": "16, 1.8e-3"},
    "cifar10 vgg": {"proposed": "88.3, 5.5e-4", "l2": "87.5, 6.3e-4", "l1": "64, 4.8e-4"},
    "cifar10 resnet": {"proposed": "91.0, 8.3e-4", "l2": "90.8, 9.1e-4", "l1": "86.2, 8.6e-4"},
    "cifar10 senet": {"proposed": "91.3, 4.2e-4", "l2": "91.0, 3.9e-4", "l1": "84.3, 4.0e-4"},
}


def network(name: str, channels: int, size: int, generator: torch.Generator | None = None) -> nn.Module:
    """Return a network for square images of ten classes by its name; a "small-" one has a quarter of the channels."""
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), mlp(channels * size * size, 10, (300, 100), generator=generator))
    if name == "cnn":
        return two_layer_cnn(channels=channels, size=size, generator=generator)
    part = 4 if name.startswith("small-") else 1
    deep: dict[str, Callable[[], nn.Module]] = {
        "vgg": lambda: vgg(11, width=1 / part, generator=generator),
        "resnet": lambda: resnet(width=64 // part, generator=generator),
        "senet": lambda: senet(width=64 // part, generator=generator),
    }
    return deep[name.removeprefix("small-")]()


def penalty(name: str, model: nn.Module, strength: float, density: float, seed: int) -> Penalty | None:
    """Return the penalty by its name."""
    if name in READINGS:
        return DynamicPrior(model, strength, density, DRAWS, MOMENTUM, seed=seed, **READINGS[name])
    made: dict[str, Callable[[], Penalty]] = {
        "l1": lambda: L1(model, strength),
        "l2": lambda: L2(model, strength),
        "hoyer": lambda: HoyerSquare(model, strength),
    }
    return None if name == "none" else made[name]()


def parts_of(data: Path, name: str, rows: int | None, device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images and classes for training, the last of the training images for validation, and those of the test."""
    x, y, *test = (part.to(device) for part in read_images(data, name, rows))
    held = min(HELD_OUT, len(x) // 5)
    return {"train": (x[:-held], y[:-held]), "validation": (x[-held:], y[-held:]), "test": (test[0], test[1])}


@torch.no_grad()
def judged(model: nn.Module, parts: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return accuracies in points, and the loss on test images."""
    model.eval()
    found = {name: accuracy(model, *parts[name]) for name in ("validation", "test")}
    pieces = zip(*(whole.split(1000) for whole in parts["test"]), strict=True)
    loss = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in pieces) / len(parts["test"][0])
    model.train()
    return found | {"test loss": loss}


def run(name: str, kind: str, strength: float, seed: int, label: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and return its loss and its weights' figures over steps, and its accuracies after each epoch."""
    parts = parts_of(Path(options.data), name, options.rows, options.device)
    x, y = parts["train"]
    generator = torch.Generator().manual_seed(seed)
    model = network(options.network, x.shape[1], x.shape[2], generator)
    model = model.to(options.device).to(memory_format=torch.channels_last)  # the faster on a CPU
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    last = 0.0 if options.decay else 1.0
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last, options.epochs * (len(x) // BATCH))
    press = penalty(kind, model, strength, options.density, seed)
    steps: list[dict[str, Any]] = []
    epochs: list[dict[str, float]] = []
    for epoch in range(options.epochs):
        losses: list[Tensor] = []
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            (loss if press is None else loss + press()).backward()
            optimizer.step()
            rates.step()
            losses.append(loss.detach())
            if len(losses) == EVERY:
                steps.append({"loss": float(torch.stack(losses).mean())} | densities(model))
                losses = []
        epochs.append(judged(model, parts))
        print(f"{label}, epoch {epoch + 1}: {epochs[-1]['test']:.2f}", flush=True)
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, options.out / f"{label}.safetensors"
    )
    return {
        "set": setting(name, options),
        "of": options.rows,
        "penalty": kind,
        "strength": strength,
        "density": options.density,
        "seed": seed,
        "rows": len(x),
        "steps": steps,
        "epochs": epochs,
        "weights": densities(model),
    }


def densities(model: nn.Module) -> dict[str, Any]:
    """Return densities and magnitudes at both thresholds."""
    return {f"{threshold:g}": weight_figures(model, threshold) for threshold in THRESHOLDS}


def runs(options: argparse.Namespace) -> Runs:
    """Return what was asked for, by name; which strengths are run with all seeds depends on what is there by then."""
    seeds, kinds = [int(s) for s in options.seeds.split(",")], options.penalties.split(",")
    if unknown := {*kinds} - STRENGTHS.keys():
        raise SystemExit(f"penalties are {', '.join(STRENGTHS)}; got {', '.join(sorted(unknown))}")
    for name in options.sets.split(","):

        def one(kind: str, strength: float, seed: int, name: str = name) -> tuple[str, Callable[[], dict[str, Any]]]:
            label = label_of(setting(name, options), kind, strength, options.density, seed)
            return label, partial(run, name, kind, strength, seed, label, options)

        yield from (one("none", 0.0, seed) for seed in seeds)
        for kind in kinds:
            yield from (one(kind, strength, seeds[0]) for strength in strengths(kind, options))
        for kind in kinds:
            for strength in sorted(strengths(kind, options), reverse=True):
                mine = partial(lost, options, setting(name, options), kind, strength)
                if mean(mine(seeds[:1])) > HOPELESS:
                    continue
                yield from (one(kind, strength, seed) for seed in seeds)
                if mean(mine(seeds)) <= LOSS:
                    break
        for kind in kinds:
            first = {
                s: mean(lost(options, setting(name, options), kind, s, seeds[:1])) for s in strengths(kind, options)
            }
            yield from (one(kind, min(first, key=lambda s: first[s]), seed) for seed in seeds)


def setting(name: str, options: argparse.Namespace) -> str:
    """Return what runs that are compared have in common: set and network, and rows, epochs and rates if not usual."""
    rows = f" {options.rows} rows" if options.rows else ""
    epochs = f" {options.epochs} epochs" if options.epochs != EPOCHS else ""
    return f"{name} {options.network}{rows}{epochs}" + (" decayed" if options.decay else "")


def titled(found: dict[str, Any]) -> str:
    """Return what a run's penalty is called, with its sampling density where that is not the usual one."""
    usual = found["penalty"] not in READINGS or found["density"] == DENSITY
    return found["penalty"] if usual else f"{found['penalty']} {found['density']:g}"


def label_of(name: str, kind: str, strength: float, density: float, seed: int) -> str:
    """Return how a run's files are called."""
    sampled = f"-d{density:g}" if kind in READINGS else ""
    return f"{name.replace(' ', '-')}-{kind}{sampled}-{strength:g}-{seed}"


def strengths(kind: str, options: argparse.Namespace) -> tuple[float, ...]:
    """Return those of a penalty."""
    return tuple(map(float, options.strengths.split(","))) if options.strengths and kind != "none" else STRENGTHS[kind]


def mean(values: list[float]) -> float:
    """Return the mean, and of nothing infinity: what has not been run is not as accurate."""
    return statistics.mean(values) if values else math.inf


def lost(options: argparse.Namespace, name: str, kind: str, strength: float, seeds: list[int]) -> list[float]:
    """Return how much validation accuracy was lost against none, in points, for each of the seeds that are there."""
    found = {
        (r["penalty"], r["seed"]): r["epochs"][-1]["validation"]
        for r in mine(options)
        if r["set"] == name and (r["penalty"] == "none" or (r["penalty"], r["strength"]) == (kind, strength))
    }
    return [found["none", s] - found[kind, s] for s in seeds if ("none", s) in found and (kind, s) in found]


def mine(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results with the sampling density that was asked for."""
    return [r for r in results(options) if r["penalty"] not in READINGS or r["density"] == options.density]


def table(options: argparse.Namespace) -> None:
    """Print, of each set and penalty, each strength, and say which is matched and which the best."""
    found = mine(options)
    wide = 2 + max((len(r["set"]) for r in found), default=3)
    print(f"{'set':<{wide}}{'penalty':<10}{'strength':>9}{'runs':>5}  {'lost':<14}{'test':<14}", end="")
    print(*(f"{f'|w| > {t:g}, %':<16}{f'w > {t:g}, %':<16}" for t in THRESHOLDS), "magnitude      paper")
    for name in dict.fromkeys(r["set"] for r in found):
        paper = PAPER.get(" ".join(name.split()[:2]).replace("small-", ""), {})  # of all rows and whole widths
        plain = {r["seed"]: r["epochs"][-1]["validation"] for r in found if r["set"] == name and r["penalty"] == "none"}
        matched: dict[str, dict[int, float]] = {}
        for kind in STRENGTHS:
            group: dict[float, list[dict[str, Any]]] = {}
            for r in found:
                if (r["set"], r["penalty"]) == (name, kind):
                    group.setdefault(r["strength"], []).append(r)
            marks = marked(group, plain)
            kept = [strength for strength, told in marks.items() if told[0].startswith("matched")]
            if kept:
                matched[kind] = {r["seed"]: r["epochs"][-1]["test"] for r in group[kept[0]]}
            for strength, same in sorted(group.items()):
                print(f"{name:<{wide}}{kind:<10}{strength:>9g}{len(same):>5}", end="  ")
                gaps = [plain[r["seed"]] - r["epochs"][-1]["validation"] for r in same if r["seed"] in plain]
                print(f"{interval(gaps) if gaps else '-':<14}", end="")
                print(f"{interval([r['epochs'][-1]['test'] for r in same]):<14}", end="")
                for threshold in THRESHOLDS:
                    for which in ("density", "density_printed"):
                        print(f"{interval([100.0 * r['weights'][f'{threshold:g}'][which] for r in same]):<16}", end="")
                print(f"{interval([r['weights'][f'{THRESHOLDS[0]:g}']['magnitude'] for r in same]):<15}", end="")
                print(f"{paper.get(kind, '-'):<15}{' '.join(marks.get(strength, []))}")
        for one, other in combinations(matched, 2):
            gaps = [matched[one][seed] - matched[other][seed] for seed in plain]
            print(f"{name:<{wide}}test accuracy, matched, {one} less {other}: {interval(gaps)}")


def marked(group: dict[float, list[dict[str, Any]]], plain: dict[int, float]) -> dict[float, list[str]]:
    """Return which strength is matched, and which was the best on validation, of those that all seeds were run with."""
    gaps = {
        strength: statistics.mean(plain[r["seed"]] - r["epochs"][-1]["validation"] for r in same)
        for strength, same in group.items()
        if {r["seed"] for r in same} == plain.keys()
    }
    marks: dict[float, list[str]] = {}
    if kept := [strength for strength, gap in gaps.items() if gap <= LOSS]:
        strongest = len(group) > 1 and max(kept) == max(group)
        marks.setdefault(max(kept), []).append("matched" + (", the strongest tried" if strongest else ""))
    if gaps:
        marks.setdefault(min(gaps, key=lambda s: gaps[s]), []).append("best")
    return marks


def main() -> int:
    """Run what is missing and print the table."""
    parser = arguments(__doc__, "dynamic_prior/tables", seeds="0,1,2,3,4")
    parser.add_argument("--sets", default="mnist,fashion-mnist")
    parser.add_argument("--network", default="cnn", choices=NETWORKS)
    parser.add_argument(
        "--penalties", default="l2,l1,proposed", help="beside none; also hoyer, and " + ", ".join(READINGS)
    )
    parser.add_argument("--strengths", help="for every penalty; of each its own")
    parser.add_argument("--density", type=float, default=DENSITY, help="s_p")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--decay", action="store_true", help="the rate falls to 0 by a line; constant")
    parser.add_argument("--rows", type=int, help="training images, of which some are for validation; all")
    parser.add_argument("--device", default="cpu")
    keep_memory()
    return reproduce(parser, runs, table)


if __name__ == "__main__":
    sys.exit(main())
