"""Dynamic regularizer: sparsity that is used. What the networks of tables.py are pruned to, and what is gained by it.

    python reproduce/dynamic_prior/used.py --data DIR                   # after tables.py; half a minute a network
    python reproduce/dynamic_prior/used.py --data DIR --network mlp --parts prune      # times later, on an idle core
    python reproduce/dynamic_prior/used.py --only table                 # what is there so far

Networks of every strength that all seeds were run with, and that loses at most 0.2 points of validation accuracy against
none as the mean over seeds, are pruned once, without training afterwards, in two ways: the smallest weights of the whole network
become 0, then units that this cuts off are removed (`pared.remove_dead`) and layers become sparse where that is measured to
be faster (`pared.sparsify`); or whole units are removed, those first whose weights are small beside their layer's. Each goes
as far as validation accuracy is at most 0.2 points below that of the same network unpruned: the last of steps by a factor of
2^(1/4), from the whole network on, before the first that fails. Of each penalty the strength counts whose networks keep the
fewest parameters, as the mean over seeds. Accuracies are of test images, params are numbers that are not 0, and times those
of a forward pass on one thread, the least of many, in turns with the network that it was, at 1 row and at 256; "sparse" is
how many layers became so, and widths are means.
"""

import argparse
import copy
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import pared
from pared.measure.latency import least_us

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import Runs, accuracy, arguments, interval, reproduce, results
from tables import LOSS, NETWORKS, STRENGTHS, label_of, network, parts_of, titled

STEP, MOST, BATCHES = 2.0**0.25, 40, (1, 256)


@torch.no_grad()
def without_weights(model: nn.Module, example: Tensor, share: float) -> nn.Module:
    """Return a copy in which the largest `share` of all weights is left, without the units that this has cut off."""
    small = copy.deepcopy(model)
    weights = [p for p in small.parameters() if p.ndim > 1]
    sizes = torch.cat([w.abs().flatten() for w in weights])
    least = sizes.kthvalue(len(sizes) - max(1, round(share * len(sizes))) + 1).values
    for weight in weights:
        weight.mul_(weight.abs() >= least)
    pared.remove_dead(small, graph=pared.graph(small, example))
    return small


@torch.no_grad()
def without_units(model: nn.Module, example: Tensor, share: float) -> nn.Module:
    """Return a copy in which that share of all units is left, one of each layer at least: those of large weights."""
    small = copy.deepcopy(model)
    graph = pared.graph(small, example)
    worth: dict[str, Tensor] = {}
    for space in graph.removable():
        made = [small.state_dict()[slot.tensor] for slot in space.slots if slot.axis == 0]
        sizes = torch.stack([w.flatten(1).norm(dim=1) for w in made if w.ndim > 1]).norm(dim=0)
        worth[space.name] = sizes / sizes.mean()
    order = torch.cat(list(worth.values())).sort().values
    least = order[len(order) - max(1, round(share * len(order)))]
    gone = {name: (mine < least.clamp(max=mine.max())).nonzero().flatten() for name, mine in worth.items()}
    pared.remove(small, {name: units for name, units in gone.items() if len(units)}, graph=graph, living="cut")
    return small


#: The two ways of making a network small: from the network, an example and the share that is left.
WAYS: dict[str, Callable[[nn.Module, Tensor, float], nn.Module]] = {"weights": without_weights, "units": without_units}


def smallest(way: str, model: nn.Module, example: Tensor, good: Callable[[nn.Module], bool]) -> tuple[float, nn.Module]:
    """Return the least share that can be left, and the network with it, before the first that is not good."""
    kept, best = 1.0, model
    for step in range(1, MOST + 1):
        small = WAYS[way](model, example, STEP**-step)
        if not good(small):
            break
        kept, best = STEP**-step, small
    return kept, best


def alive(model: nn.Module) -> int:
    """Return how many numbers of its parameters are not 0."""
    return sum(int(p.count_nonzero()) for p in model.parameters())


def opened(path: Path, found: dict[str, Any], example: Tensor) -> nn.Module:
    """Return a network that tables.py or this script left."""
    model = network(found["set"].split()[1], example.shape[1], example.shape[2]).eval()
    if "way" in found:
        return pared.load(model, path)
    model.load_state_dict(load_file(path))
    return model


def prune(path: Path, found: dict[str, Any], label: str, options: argparse.Namespace) -> dict[str, Any]:
    """Prune one network both ways, and return what is left and its accuracy."""
    parts = parts_of(options.data, found["set"].split()[0], found["of"], "cpu")
    x = parts["test"][0]
    model = opened(path, found, x[:1])
    told: dict[str, Any] = {name: found[name] for name in ("set", "penalty", "strength", "density", "seed")}
    enough = accuracy(model, *parts["validation"]) - LOSS
    told |= {"label": label, "params": alive(model), "test": accuracy(model, *parts["test"])}
    for way in WAYS:
        share, small = smallest(way, model, x[:1], lambda one: accuracy(one, *parts["validation"]) >= enough)
        told[way] = {"share": share, "params": alive(small), "test": accuracy(small, *parts["test"])}
        told[way]["widths"] = [len(p) for p in small.parameters() if p.ndim > 1]
        pared.save(small, options.out / f"{label}-{way}.safetensors")
    print(label, {way: (told[way]["params"], told[way]["test"]) for way in WAYS}, flush=True)
    return told


def times(path: Path, found: dict[str, Any], label: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return microseconds of a forward pass before and after, and how many layers became sparse, of each way and batch."""
    x = parts_of(options.data, found["set"].split()[0], found["of"], "cpu")["test"][0]
    model = opened(path, found, x[:1])
    told: dict[str, Any] = {"of": label}
    for way in WAYS:
        small = opened(options.out / f"{label}-{way}.safetensors", found | {"way": way}, x[:1])
        for batch in BATCHES:
            fast = pared.sparsify(small, x[:batch])
            was, now = least_us([partial(model, x[:batch]), partial(fast.model, x[:batch])], seconds=0.5)
            told[f"{way} {batch}"] = [was, now, sum(layer.sparse for layer in fast.layers)]
    return told


def runs(options: argparse.Namespace) -> Runs:
    """Return what was asked for, by name: networks of the strengths that all seeds were run with."""
    seeds = {int(seed) for seed in options.seeds.split(",")}
    there = [r for r in results(argparse.Namespace(out=options.tables)) if r["seed"] in seeds]
    found = [r for r in there if r["set"].split()[1] == options.network]
    for name in dict.fromkeys(r["set"] for r in found):
        mine = [r for r in found if r["set"] == name]
        plain = {r["seed"]: r["epochs"][-1]["validation"] for r in mine if r["penalty"] == "none"}
        if not plain:
            raise SystemExit(f"{options.tables} has no run of {name} without a penalty; let tables.py make one first")
        for r in mine:
            same = [s for s in mine if (titled(s), s["strength"]) == (titled(r), r["strength"])]
            gaps = [plain[s["seed"]] - s["epochs"][-1]["validation"] for s in same if s["seed"] in plain]
            if len(gaps) < len(plain) or statistics.mean(gaps) > LOSS:
                continue
            label = label_of(r["set"], r["penalty"], r["strength"], r["density"], r["seed"])
            path = options.tables / f"{label}.safetensors"
            if "prune" in options.parts.split(","):
                yield label, partial(prune, path, r, label, options)
            if "times" in options.parts.split(","):
                yield f"{label}-times", partial(times, path, r, label, options)


def table(options: argparse.Namespace) -> None:
    """Print what is left of each penalty's networks, of the strength that leaves the fewest parameters."""
    took = {one["of"]: one for one in results(options, "*-times.json")}
    found = [one for one in results(options) if "of" not in one]
    wide = 2 + max((len(r["set"]) for r in found), default=3)
    print(f"{'set':<{wide}}{'penalty':<15}{'strength':>9}{'runs':>5}  {'pruned':<8}{'params left, %':<16}", end="")
    print(f"{'test was':<15}{'test':<15}", end="")
    print("".join(f"{f'times as fast, {batch}':<19}{'sparse':<8}" for batch in BATCHES), "widths")
    for name in dict.fromkeys(r["set"] for r in found):
        for way in WAYS:
            for kind in dict.fromkeys(titled(r) for r in sorted(found, key=lambda r: [*STRENGTHS].index(r["penalty"]))):
                group: dict[float, list[dict[str, Any]]] = {}
                for r in found:
                    if (r["set"], titled(r)) == (name, kind):
                        group.setdefault(r["strength"], []).append(r)
                if not group:
                    continue
                strength = min(group, key=lambda s: statistics.mean(r[way]["params"] for r in group[s]))
                same = group[strength]
                print(f"{name:<{wide}}{kind:<15}{strength:>9g}{len(same):>5}  {way:<8}", end="")
                print(f"{interval([100.0 * r[way]['params'] / r['params'] for r in same]):<16}", end="")
                print(
                    f"{interval([r['test'] for r in same]):<15}{interval([r[way]['test'] for r in same]):<15}", end=""
                )
                for batch in BATCHES:
                    known = [took[r["label"]][f"{way} {batch}"] for r in same if r["label"] in took]
                    print(f"{interval([was / now for was, now, _ in known]) if known else '-':<19}", end="")
                    print(f"{statistics.mean(layers for _, _, layers in known) if known else math.nan:<8.2g}", end="")
                print(
                    "",
                    [round(statistics.mean(widths)) for widths in zip(*(r[way]["widths"] for r in same), strict=True)],
                )


def main() -> int:
    """Run what is missing and print the table."""
    parser = arguments(__doc__, "dynamic_prior/used", seeds="0,1,2,3,4")
    parser.add_argument("--tables", type=Path, default=Path("results/dynamic_prior/tables"))
    parser.add_argument("--parts", default="prune,times")
    parser.add_argument("--network", default="cnn", choices=NETWORKS)
    return reproduce(parser, runs, table)


if __name__ == "__main__":
    sys.exit(main())
