"""Differentiable sparsification, section GCN: a graph of road sensors learned from their speeds alone.

    python reproduce/gates/traffic.py --data DIR [--seeds 0,1,2] [--horizons 3,6,12] [--budget MINUTES]
    python reproduce/gates/traffic.py --only table

Los-loop: 2016 steps of five minutes, 207 sensors (`traffic/los_speed.csv`, `los_adj.csv`). The first 70 % of the steps are
for training, the next 10 % for validation, forecasts begin in the last 20 % for the test; errors are root mean squares in
miles per hour. Speeds are standardised by one mean and deviation, those of training. A shared linear model forecasts
y_i(t + h) of all sensors with the same weights, from the last 12 steps x of sensor i and those of others by a matrix A:
"beside" b + w·x_i + u·(A x)_i, or "propagated" b + u·(A x)_i, which has to learn from A what a sensor's own speeds mean.
A speed of 0 is a missing reading: inputs are then the last reading, and it is no target. This file has none: its publishers
interpolated, which lets a little of the future into the past of whoever forecasts, alike for all that are compared.

A is the identity, the given graph (weights by distance; rows or both sides normalised), a random graph of as many edges with
self loops, dense and free, or learned over all pairs by `SparseAdjacency` with penalty, with at most as many entries as the
given graph. Where strength alone leaves more by two thirds of the epochs, the least are killed; edges that are 0 then are
taken out physically. The best epoch by validation within the number of edges counts, and strengths are chosen by the
validation error of the first seed; the others run with that one alone. Each run is a JSON file; nothing is run twice.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pared.data.graphs import read_traffic
from pared.nn import FixedAdjacency, SparseAdjacency
from pared.nn.graph import Adjacency
from pared.ops.lines import Lines
from pared.surgery import remove_edges

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import arguments, interval, reproduce, results

LAGS, BATCH = 12, 128
FORMS = ("beside", "propagated")
FIXED = ("identity", "given, rows", "given, balanced", "random", "dense")
#: Strengths of the penalty that are tried. Scaled both ways rows cannot leave what columns need: less works there.
STRENGTHS = {"row": (0.0, 3e-7, 1e-6, 3e-6), "sinkhorn": (0.0, 3e-7, 1e-6)}
Part = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Roads:
    """Windows of inputs (n, sensors, lags), targets (n, sensors) and which of these count, for each part of time."""

    train: Part
    validation: Part
    test: Part
    deviation: float
    adjacency: Tensor


@cache
def roads(data: Path, horizon: int) -> Roads:
    """Cut the week into windows."""
    traffic = read_traffic(data / "traffic/los_speed.csv", data / "traffic/los_adj.csv")
    there, steps = ~traffic.speed.isnan(), len(traffic.speed)
    begin, end = int(0.7 * steps), int(0.8 * steps)
    last = torch.where(there, torch.arange(steps)[:, None], 0).cummax(0).values  # of the last reading
    seen = traffic.speed[:begin][there[:begin]]
    speed = (traffic.speed.gather(0, last).nan_to_num(float(seen.mean())) - seen.mean()) / seen.std()
    now = torch.arange(LAGS - 1, steps - horizon)
    x = torch.stack([speed[now - lag] for lag in range(LAGS)], -1)
    y, counts = speed[now + horizon], there[now + horizon].float()
    parts = (now + horizon < begin, (now >= begin) & (now + horizon < end), now >= end)
    train, validation, test = ((x[part], y[part], counts[part]) for part in parts)
    return Roads(train, validation, test, float(seen.std()), traffic.adjacency)


class Free(Adjacency):
    """A dense matrix that is learned as it is, from the identity on."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.nodes, self.weight = nodes, nn.Parameter(torch.eye(nodes))

    def values(self) -> Tensor:
        """Return the matrix."""
        return self.weight

    def lines(self) -> Lines:
        """Say that it is all there."""
        return Lines(self.nodes)


class Linear(nn.Module):
    """One linear forecast for all sensors, from their own speeds and from those of others."""

    def __init__(self, adjacency: Adjacency, form: str) -> None:
        super().__init__()
        self.adjacency, self.far = adjacency, nn.Linear(LAGS, 1)
        self.own = nn.Linear(LAGS, 1, bias=False) if form == "beside" else None
        for layer in (self.far, self.own):
            if layer is not None:  # forecasts begin at the last speeds
                nn.init.zeros_(layer.weight)
                layer.weight.data[0, 0] = 0.5 if form == "beside" else 1.0
        nn.init.zeros_(self.far.bias)

    def forward(self, x: Tensor, values: Tensor | None = None) -> Tensor:
        """Return forecasts, (n, sensors), from `x` (n, sensors, lags)."""
        far = torch.einsum("nik,k->in", x, self.far.weight[0])  # A (x u) is (A x) u, at a twelfth of the work
        y = self.adjacency(far, values).t() + self.far.bias
        return y if self.own is None else y + self.own(x).squeeze(-1)


def made(name: str, adjacency: Tensor, seed: int) -> Adjacency:
    """Return the matrix of that name."""
    nodes, edges = len(adjacency), adjacency.nonzero(as_tuple=True)
    generator = torch.Generator().manual_seed(seed)
    if name == "identity":
        return FixedAdjacency(nodes, (torch.arange(nodes), torch.arange(nodes)))
    if name == "dense":
        return Free(nodes)
    if name == "random":
        others = (~torch.eye(nodes, dtype=torch.bool)).nonzero()
        others = others[torch.randperm(len(others), generator=generator)[: len(edges[0]) - nodes]].t()
        return FixedAdjacency.normalized(nodes, (others[0], others[1]), scaling="row")
    if name.startswith("given"):
        scaling = "row" if name.endswith("rows") else "balanced"
        return FixedAdjacency.normalized(nodes, (edges[0], edges[1]), adjacency[edges], scaling=scaling, loops=False)
    return SparseAdjacency(nodes, scaling=name)  # pyright: ignore[reportArgumentType]


def error(forecast: Tensor, part: Part, kind: float = 2.0) -> float:
    """Return the root of the mean square where there are readings, standardised; with `kind` 1 the mean size."""
    off = (forecast - part[1]).abs().pow(kind) * part[2]
    return float((off.sum() / part[2].sum()).pow(1.0 / kind))


def forecast(
    name: str, form: str, horizon: int, strength: float, seed: int, *, epochs: int, data: Path
) -> dict[str, Any]:
    """Train one model, and return its errors at the best epoch by validation within the number of edges."""
    found = roads(data, horizon)
    limit = int((found.adjacency > 0).sum())
    net = Linear(made(name, found.adjacency, seed), form)
    learned = net.adjacency if isinstance(net.adjacency, SparseAdjacency) else None
    of_graph = {id(p) for p in net.adjacency.parameters()}
    groups = [
        {"params": [p for p in net.parameters() if id(p) not in of_graph], "lr": 2e-3},
        {"params": list(net.adjacency.parameters()), "lr": 1e-3 if learned is None else 0.02},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator, best, cut = torch.Generator().manual_seed(seed), {"validation": math.inf}, 0
    for epoch in range(epochs):
        if learned is not None and epoch == 2 * epochs // 3:
            cut = cut_to(limit, learned)
            remove_edges(net, optimizer=optimizer)
        train(net, found.train, optimizer, strength, generator)
        schedule.step()
        with torch.no_grad():
            entries = len(net.adjacency.edges()[0])
            validation = error(net(found.validation[0]), found.validation) * found.deviation
            if validation < best["validation"] and (learned is None or entries <= limit):
                y = net(found.test[0])
                errors = {"rmse": error(y, found.test), "mae": error(y, found.test, 1.0)}
                best = {key: value * found.deviation for key, value in errors.items()} | {
                    "validation": validation,
                    "entries": entries,
                    "epoch": epoch,
                }
    told = {"name": name, "form": form, "horizon": horizon, "strength": strength, "seed": seed, "epochs": epochs}
    return told | best | {"cut": cut, "pairs": found.adjacency.numel()}


def train(
    net: Linear, part: Part, optimizer: torch.optim.Optimizer, strength: float, generator: torch.Generator
) -> None:
    """Go through the windows once, in random order."""
    for rows in torch.randperm(len(part[0]), generator=generator).split(BATCH):
        x, y, counts = (given[rows] for given in part)
        values = net.adjacency.values()
        loss = ((net(x, values) - y).square() * counts).sum() / counts.sum()
        if strength and isinstance(net.adjacency, SparseAdjacency):
            loss = loss + strength * net.adjacency.penalty(values=values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def cut_to(limit: int, learned: SparseAdjacency) -> int:
    """Kill what is 0, and the least until `limit` entries are left; return how many were not 0."""
    values = learned.values().flatten().masked_fill(learned.row == learned.col, math.inf)
    dead = learned.dead()
    least = values.argsort()[: max(0, len(values) - limit)]
    some = int((~dead[least]).sum())
    dead[least] = True
    learned.kill(dead)
    return some


def persistence(horizon: int, data: Path) -> dict[str, Any]:
    """Forecast that speeds stay as they are."""
    found = roads(data, horizon)
    kept = found.test[0][..., 0]
    errors = {"rmse": error(kept, found.test) * found.deviation, "mae": error(kept, found.test, 1.0) * found.deviation}
    told = {"name": "persistence", "form": "-", "horizon": horizon, "strength": 0.0, "seed": 0, "entries": 0, "cut": 0}
    return told | errors | {"validation": error(found.validation[0][..., 0], found.validation) * found.deviation}


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name every run: those of the first seed, which choose strengths, before those of the others, which take them."""
    first, *others = (int(seed) for seed in options.seeds.split(","))
    horizons = [int(steps) for steps in options.horizons.split(",")]
    for horizon in horizons:
        yield f"persistence_{horizon}", partial(persistence, horizon, options.data)
    for seed in (first, *others):
        for form, horizon in itertools.product(options.forms.split(","), horizons):
            tried = dict.fromkeys(FIXED, (0.0,)) | STRENGTHS
            if seed != first:
                found = results(options)
                tried = {name: (choose(found, name, form, horizon, first),) for name in tried}
            for name, strengths in tried.items():
                if options.names and name not in options.names:
                    continue
                for strength in strengths:
                    yield (
                        f"{name.replace(', ', '-')}_{form}_{horizon}_{strength:g}_{seed}",
                        partial(
                            forecast, name, form, horizon, strength, seed, epochs=options.epochs, data=options.data
                        ),
                    )


def choose(found: list[dict[str, Any]], name: str, form: str, horizon: int, seed: int) -> float:
    """Return the strength with the least error on validation data."""
    fits = [r for r in found if (r["name"], r["form"], r["horizon"], r["seed"]) == (name, form, horizon, seed)]
    return min(fits, key=lambda run: run["validation"])["strength"] if fits else 0.0


def table(options: argparse.Namespace) -> None:
    """Print what is there: errors of the test, by horizon."""
    found = results(options)
    for horizon in sorted({run["horizon"] for run in found}):
        print(
            f"\n{5 * horizon} minutes        {'':>22} {'test RMSE':>16} {'validation':>16} {'MAE':>16}  entries  cut  strength"
        )
        for form in ("-", *FORMS):
            for name in ("persistence", *FIXED, *STRENGTHS):
                fits = [r for r in found if (r["name"], r["form"], r["horizon"]) == (name, form, horizon)]
                if not fits:
                    continue
                first = min(run["seed"] for run in fits)
                chosen = choose(found, name, form, horizon, first)
                fits = [run for run in fits if run["strength"] == chosen]
                columns = [f"{interval([run[key] for run in fits], 3):>16}" for key in ("rmse", "validation", "mae")]
                entries, cut = (sum(run[key] for run in fits) / len(fits) for key in ("entries", "cut"))
                print(f"{name:<18} {form:<12} n={len(fits):<3}", *columns, f"{entries:8.0f} {cut:5.0f} {chosen:g}")


if __name__ == "__main__":
    parser = arguments(__doc__, "gates/traffic", seeds="0,1,2,3,4")
    parser.add_argument("--horizons", default="3,6,12")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--names", nargs="*", help="only these matrices; all when not given")
    parser.add_argument("--epochs", type=int, default=90)
    raise SystemExit(reproduce(parser, runs, table))
