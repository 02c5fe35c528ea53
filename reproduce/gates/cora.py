"""Differentiable sparsification, section GCN: Cora and CiteSeer with their own graph, and with one learned on its pattern.

    python reproduce/gates/cora.py --data DIR [--seeds 0,1,…] [--graphs cora,citeseer] [--budget MINUTES]
    python reproduce/gates/cora.py --only table

The public split (20 labels a class, 500 nodes for validation, 1000 for the test), read from `planetoid/*.npz`. The network is
that of Kipf and Welling (arXiv 1609.02907): two layers, 16 hidden, dropout 0.5, features divided by their sum, Adam at 0.01,
weight decay 5e-4 on the weights of the first layer, 200 epochs. The epoch with the best accuracy on validation data counts,
and of several the one with the least loss; training ends when 50 epochs brought nothing better.

"plain" has D^-1/2 (A + I) D^-1/2. The others learn A on the graph's edges and self loops, by rows, by Sinkhorn, or balanced
and symmetric, with the penalty at each of several strengths. Strengths are chosen by the mean validation accuracy of the
first seeds (`--choosing`); the other seeds run with the chosen one alone. The test part chooses nothing. The paper has no
figures for this section. "start" is the scaling alone, which is not learned: what the paper's scaling itself costs or gains.
Each run is a JSON file of its own; nothing is run twice. Intervals are 95 %, by Student's t over seeds.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pared.data.graphs import Graph, read_planetoid
from pared.models import GCN, gcn
from pared.nn import FixedAdjacency, SparseAdjacency
from pared.nn.graph import Adjacency

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import arguments, interval, reproduce, results

EPOCHS, PATIENCE = 200, 50
LEARNED = {
    "row": {"scaling": "row"},
    "sinkhorn": {"scaling": "sinkhorn"},
    "balanced": {"scaling": "balanced", "symmetric": True},
}
STRENGTHS = (0.0, 1e-4, 1e-3)


@cache
def graph(data: Path, name: str) -> tuple[Graph, Tensor]:
    """Return a graph, and its features with sums of 1."""
    found = read_planetoid(data / f"planetoid/{name}.npz")
    sums = torch.sparse.sum(found.x, 1).to_dense().clamp(min=1e-12)
    index = found.x.indices()
    values = found.x.values() / sums[index[0]]
    return found, torch.sparse_coo_tensor(index, values, found.x.shape, is_coalesced=True, check_invariants=False)


def made(name: str, found: Graph) -> Adjacency:
    """Return the matrix of that name."""
    nodes, edges = len(found.y), found.both_ways()
    if name == "plain":
        return FixedAdjacency.normalized(nodes, edges)
    kind, _, start = name.partition(", ")
    learned = SparseAdjacency(nodes, edges=edges, **LEARNED[kind])
    return learned.realize() if start else learned


def classify(name: str, of: str, strength: float, seed: int, *, data: Path) -> dict[str, Any]:
    """Train one network, and return its accuracies at the best epoch by validation."""
    found, x = graph(data, of)
    net = gcn(x.shape[1], int(found.y.max()) + 1, made(name, found), generator=torch.Generator().manual_seed(seed))
    decayed = [net.first.weight]
    others = [p for p in net.parameters() if p is not net.first.weight]
    optimizer = torch.optim.Adam([{"params": decayed, "weight_decay": 5e-4}, {"params": others}], lr=0.01)
    best: dict[str, Any] = {"validation": -1.0, "loss": math.inf, "epoch": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from torch's own generator
        for epoch in range(EPOCHS):
            net.train()
            loss = F.cross_entropy(net(x)[found.train], found.y[found.train])
            if strength and isinstance(net.adjacency, SparseAdjacency):
                loss = loss + strength * net.adjacency.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            now = judged(net, found, x)
            if (now["validation"], -now["loss"]) > (best["validation"], -best["loss"]):
                best = now | {"epoch": epoch}
            elif epoch - best["epoch"] >= PATIENCE:
                break
    return {"name": name, "of": of, "strength": strength, "seed": seed} | best


@torch.no_grad()
def judged(net: GCN, found: Graph, x: Tensor) -> dict[str, float]:
    """Return accuracies in points, the loss on validation data, and the share of entries that are left."""
    values = net.eval().adjacency.values()
    logits = net(x)
    right = logits.argmax(1) == found.y
    return {
        "validation": 100.0 * float(right[found.validation].float().mean()),
        "test": 100.0 * float(right[found.test].float().mean()),
        "loss": float(F.cross_entropy(logits[found.validation], found.y[found.validation])),
        "left": int((values > 0).sum()) / (2 * found.edges.shape[1] + len(found.y)),
    }


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name every run, those that choose a strength before those that take it."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    choosing = seeds[: options.choosing]
    for of in options.graphs.split(","):

        def named(name: str, strength: float, seed: int, of: str = of) -> tuple[str, Callable[[], dict[str, Any]]]:
            run = partial(classify, name, of, strength, seed, data=options.data)
            return f"{of}_{name.replace(', ', '-')}_{strength:g}_{seed}", run

        for name in ("plain", *(f"{kind}, start" for kind in LEARNED)):
            for seed in seeds if name in (options.names or [name]) else ():
                yield named(name, 0.0, seed)
        for name in [name for name in LEARNED if name in (options.names or LEARNED)]:
            for strength in STRENGTHS:
                for seed in choosing:
                    yield named(name, strength, seed)
            chosen = choose(results(options), name, of, choosing)
            for seed in seeds[len(choosing) :]:
                yield named(name, chosen, seed)


def choose(found: list[dict[str, Any]], name: str, of: str, seeds: list[int]) -> float:
    """Return the strength with the best mean accuracy on validation data over the first seeds."""
    means: dict[float, float] = {}
    for strength in {run["strength"] for run in found if (run["name"], run["of"]) == (name, of)}:
        keys = (name, of, strength)
        fits = [r["validation"] for r in found if (r["name"], r["of"], r["strength"]) == keys and r["seed"] in seeds]
        means[strength] = sum(fits) / len(fits) if len(fits) == len(seeds) else -math.inf  # not before all are there
    return max(means, key=lambda strength: (means[strength], strength), default=0.0)


def table(options: argparse.Namespace) -> None:
    """Print what is there: accuracies, and the share of entries left; a star where validation has chosen."""
    found = results(options)
    choosing = [int(seed) for seed in options.seeds.split(",")][: options.choosing]
    for of in sorted({run["of"] for run in found}):
        print(f"\n{of:<18} strength    n {'test accuracy':>16} {'validation':>16}  entries left")
        names = ("plain", *(f"{kind}, start" for kind in LEARNED), *LEARNED)
        for name in names:
            fits = [run for run in found if (run["name"], run["of"]) == (name, of)]
            chosen = choose(found, name, of, choosing)
            for strength in sorted({run["strength"] for run in fits}):
                some = [run for run in fits if run["strength"] == strength]
                columns = " ".join(f"{interval([run[key] for run in some], 3):>16}" for key in ("test", "validation"))
                left = sum(run["left"] for run in some) / len(some)
                star = "*" if strength == chosen and name in LEARNED else " "
                print(f"{name:<18} {strength:8g}{star} {len(some):3} {columns} {100.0 * left:9.1f} %")


if __name__ == "__main__":
    parser = arguments(__doc__, "gates/cora", seeds="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument("--graphs", default="cora,citeseer")
    parser.add_argument("--names", nargs="*", help="only these matrices; all when not given")
    parser.add_argument("--choosing", type=int, default=3, help="so many seeds choose strengths")
    raise SystemExit(reproduce(parser, runs, table))
