"""L_p sphere, table 1 with numbers: what every method costs in training, in FLOPs, time and memory, relative to dense.

    python reproduce/lp_sphere/costs.py --data DIR                     # DIR/mnist/*.gz, or $PARED_DATA; some ten minutes
    python reproduce/lp_sphere/costs.py --data DIR --net wrn --rows 2560 --epochs 1
    python reproduce/lp_sphere/costs.py --data DIR --methods dense,RigL,LpSS --parts flops
    python reproduce/lp_sphere/costs.py --only table                   # what is there so far

The network is 784-1024-1024-10, or WRN-12-1 (--net wrn), on MNIST at sparsity 0.9, batches of 128; methods as in the other
scripts, changes as often as they make them in short runs, so that a run shows a whole schedule.

FLOPs (--parts flops) are counted step by step over a run. A layer whose forward pass takes f when dense (2 for a weight and
position) takes, at a living share d, 2·d·f for the forward pass and the gradient of its inputs, and for the gradient of its
weights d·f, or f at a step at which the method looks at the gradients of all weights: every step of SNFS, those with a
change of RigL, SNIP and LpSS, none of the others. Source: Evci et al. (2020), Rigging the lottery, appendix H, where
that makes 3·f(S) a step, 2·f(S) + f(D) with a look, and for the first layer a gradient of inputs too; masks, norms and
the optimizer count nothing. A change of RigL pays that gradient and takes no step. A column says what were without looks,
and one what a run with a change every 40 steps would cost, the paper's frequency: looks at changes counted by that much less.

Time (--parts time) is that of a whole step, all methods in turns in one process; steps with a change apart. Memory (--parts
memory) is by how much a process of its own grows at most from before the network is built, on images of noise; and the bytes
of what has to be kept at the moment with most living weights: these, the optimizer's state for them, masks of a byte a
weight, and what the method remembers. Weights are dense tensors with zeros today, so no gain in time or in a process's
memory is to be expected of any method; only counts fall. Each part of a method lands as one JSON file under --out.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.methods.weight_session import WeightSession
from pared.models import mlp, wide_resnet
from pared.optim import LpSGD, lp_groups, piecewise_linear

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import Runs, accuracy, arguments, read_images, reproduce, results
from compared import METHODS

SPARSITY, BATCH, USUAL = 0.9, 128, 40
#: Rate, rate on the sphere, and exponents, of which the last goes for all layers that are left.
NETS = {"mlp": (0.05, 2 / 256, [1.2]), "wrn": (0.4, 2 / BATCH, [1.2, 1.2, 1.2, 1.2, 1.07])}
#: What the paper's table 1 says: what drops, what grows, the optimizer, and space and FLOPs. As printed, its column of
#: optimizers has RigL and LpSS swapped.
TABLE_1 = {
    "dense": ("", "", "SGD", ""),
    "SNIP": ("min gradient", "max gradient", "SGD", "not said"),
    "DeepR": ("stochastic", "random", "SGD", "sparse"),
    "SET": ("min weight", "random", "SGD", "sparse"),
    "SDR": ("weight below h", "weight above h", "SGD", "dense"),
    "SNFS": ("min weight", "momentum", "SGD", "dense"),
    "RigL": ("min weight", "max gradient", "SGD (printed: LpSGD)", "sparse"),
    "LpSS": ("weight below h", "gradient above h", "LpSGD (printed: SGD)", "sparse"),
}
#: Ours beside it, not in that table.
OTHERS = {
    "Static": ("nothing", "nothing"),
    "SNIP once": ("min |gradient·w| once", "nothing"),
    "soft DeepR": ("sign changes", "random walk"),
    "gradual": ("min weight", "nothing"),
}


#: What is printed of costs, and how wide.
COLUMNS = {
    "reached": 9,
    "FLOPs": 7,
    "no looks": 10,
    f"every {USUAL}": 10,
    "looks": 7,
    "step min": 10,
    "median": 8,
    "change": 8,
    "peak": 7,
    "kept": 7,
    "test": 7,
}


class Trainer:
    """A network, its optimizer and its method, and steps of them."""

    def __init__(self, method: str, net: str, total: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        if net == "mlp":
            self.model = nn.Sequential(nn.Flatten(), *mlp(784, 10, (1024, 1024), generator=generator))
        else:
            self.model = wide_resnet(12, 1, channels=1, generator=generator)
        rate, sphere, p = NETS[net]
        if method == "LpSS":
            groups = lp_groups(self.model, p, lr=sphere, euclidean_lr=rate)
            self.optimizer: torch.optim.Optimizer = LpSGD(groups, sphere, p[0])
        else:
            self.optimizer = torch.optim.SGD(self.model.parameters(), rate, momentum=0.9, nesterov=True)
        self.session: WeightSession | None = None
        if method != "dense":
            made = METHODS[method](SPARSITY, total)
            self.session = made.bind(self.model, self.optimizer, total_steps=total, generator=generator)
        self.schedule = piecewise_linear(self.optimizer, [(0.0, 0.1), (0.25 * total, 1.0), (float(total), 0.0)])

    @property
    def changes(self) -> bool:
        """Whether connections change at the step that comes."""
        return self.session is not None and self.session.method.due(self.session, self.session.steps + 1)

    @property
    def looks(self) -> bool:
        """Whether the step that comes looks at the gradients of all weights."""
        method = None if self.session is None else self.session.method
        return method is not None and (method.looks or (self.changes and not method.blind))

    def step(self, x: Tensor, y: Tensor) -> None:
        """Take a step."""
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step() if self.session is None else self.session.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def shares(self) -> dict[str, float]:
        """Return the living share of every layer's weight, by name."""
        known = {} if self.session is None else self.session.connections
        return {name: one.count / one.shape.numel() for name, one in known.items()}

    def kept(self) -> int:
        """Return the bytes that have to be kept: living weights, optimizer state for them, masks, what is remembered."""
        known = {} if self.session is None else {id(c.weight): c for c in self.session.connections.values()}
        total = 0
        for p in self.model.parameters():
            live = known[id(p)].count if id(p) in known else p.numel()
            total += live * p.element_size() + (p.numel() if id(p) in known else 0)
            for state in self.optimizer.state.get(p, {}).values():
                if isinstance(state, Tensor) and state.shape == p.shape and state.is_floating_point():
                    total += live * state.element_size()
        memory = {} if self.session is None else self.session.memory
        return total + sum(tensor.numel() * tensor.element_size() for tensor in memory.values())


def forward_flops(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Return what the forward pass of one image takes in every layer, dense, by the weight's name."""
    found: dict[str, float] = {}

    def note(name: str, module: Any, _: Any, output: Tensor) -> None:
        found[f"{name}.weight"] = 2.0 * module.weight.numel() * output[0].numel() / module.weight.shape[0]

    chosen = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    handles = [module.register_forward_hook(partial(note, name)) for name, module in chosen.items()]
    with torch.no_grad():
        model(x[:2])
    for handle in handles:
        handle.remove()
    return found


def count_flops(method: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a whole run and count, relative to dense."""
    x, y, *test = read_images(Path(options.data), "mnist", options.rows)
    steps = len(x) // BATCH
    total = options.epochs * steps
    trainer = Trainer(method, options.net, total, seed)
    flops = forward_flops(trainer.model, x)
    generator = torch.Generator().manual_seed(seed)
    living = looked = kept = 0.0
    looks = 0
    for _ in range(options.epochs):
        for rows in torch.randperm(len(x), generator=generator)[: steps * BATCH].split(BATCH):
            shares, look = trainer.shares(), trainer.looks
            sparse = sum(shares.get(name, 1.0) * f for name, f in flops.items())
            living += 3.0 * sparse
            looked += look * (sum(flops.values()) - sparse)
            looks += look
            trainer.step(x[rows], y[rows])
            kept = max(kept, trainer.kept())
    dense, session = 3.0 * sum(flops.values()) * total, trainer.session
    print(f"{options.net} {method}, seed {seed}: {(living + looked) / dense:.3f} of dense", flush=True)
    return {
        "part": "flops",
        "net": options.net,
        "method": method,
        "seed": seed,
        "steps": total,
        "dense_flops": dense,
        "living": living / dense,
        "looked": looked / dense,
        "looks": looks,
        "always": session is not None and session.method.looks,
        "every": getattr(session.method, "every", None) if session is not None else None,
        "reached": 0.0 if session is None else session.sparsity,
        "kept": int(kept),
        "test": accuracy(trainer.model, test[0], test[1]),
    }


def time_steps(methods: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Let all methods take steps in turns, and return the seconds of each, those with a change apart."""
    x, y, *_ = read_images(Path(options.data), "mnist", 20 * BATCH)
    trainers = {method: Trainer(method, options.net, options.rounds, 0) for method in methods}
    plain: dict[str, list[float]] = {method: [] for method in methods}
    change: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(options.rounds):
        rows = slice(turn % 20 * BATCH, (turn % 20 + 1) * BATCH)
        for method, trainer in trainers.items():
            into = change if trainer.changes else plain
            began = time.perf_counter()
            trainer.step(x[rows], y[rows])
            if turn > 2:
                into[method].append(time.perf_counter() - began)
    return {"part": "time", "net": options.net, "plain": plain, "change": change}


def measure_memory(method: str, repeat: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return by how much a process of its own grows at most."""
    command = [sys.executable, __file__, "--measure", method, "--net", options.net]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # so that what is freed goes back at once
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    grown = int(done.stdout.split()[-1])
    print(f"{options.net} {method}, process {repeat}: {grown / 2**20:.1f} MiB", flush=True)
    return {"part": "memory", "net": options.net, "method": method, "repeat": repeat, "grown": grown}


def measured(options: argparse.Namespace) -> bool:
    """Print by how many bytes this process grows at most while it takes 20 steps with --measure; return whether it did."""
    if options.measure is None:
        return False
    x, y = torch.randn(4 * BATCH, 1, 28, 28), torch.randint(10, (4 * BATCH,))
    warm = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    optimizer = torch.optim.SGD(warm.parameters(), 0.1, momentum=0.9, nesterov=True)
    F.cross_entropy(warm(x[:BATCH]), y[:BATCH]).backward()
    optimizer.step()
    before = peak()
    trainer = Trainer(options.measure, options.net, 20, 0)
    for turn in range(20):
        rows = slice(turn % 4 * BATCH, (turn % 4 + 1) * BATCH)
        trainer.step(x[rows], y[rows])
    print(peak() - before)
    return True


def peak() -> int:
    """Return the most bytes this process has held.

    Linux hands `ru_maxrss` down from the process that started this one, so its own count is asked for first.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def runs(options: argparse.Namespace) -> Runs:
    """Return what was asked for, by name."""
    methods, parts = options.methods.split(","), options.parts.split(",")
    for seed in map(int, options.seeds.split(",")) if "flops" in parts else ():
        for method in methods:
            yield (
                f"flops-{options.net}-{method.replace(' ', '_')}-{seed}",
                partial(count_flops, method, seed, options),
            )
    for repeat in range(3) if "memory" in parts else ():
        for method in methods:
            yield (
                f"memory-{options.net}-{method.replace(' ', '_')}-{repeat}",
                partial(measure_memory, method, repeat, options),
            )
    if "time" in parts:
        yield f"time-{options.net}", partial(time_steps, methods, options)


def table(options: argparse.Namespace) -> None:
    """Print costs beside what the paper says."""
    for net in NETS:
        found = {part: results(options, f"{part}-{net}*.json") for part in ("flops", "time", "memory")}
        if not any(found.values()):
            continue
        print(f"\n{net} at sparsity {SPARSITY}: relative to dense")
        head = f"{'':>11}{'drops':>23}{'grows':>18}{'optimizer':>22}{'paper':>10}"
        print(head + "".join(f"{name:>{width}}" for name, width in COLUMNS.items()))
        for method in ["dense", *METHODS]:
            drops, grows, optimizer, paper = TABLE_1.get(method) or (*OTHERS[method], "SGD", "-")
            cells = flops_cells(method, found["flops"]) | time_cells(method, found["time"])
            cells["peak"] = memory_cell(method, found["memory"])
            line = f"{method:>11}{drops:>23}{grows:>18}{optimizer:>22}{paper:>10}"
            print(line + "".join(f"{cells.get(name, '-'):>{width}}" for name, width in COLUMNS.items()))
        print(
            "drops to paper: table 1 of the paper; no looks: FLOPs without gradients of dead weights; every 40: FLOPs with\n"
            "changes as seldom as in the paper; looks: the share of steps that look at all gradients; step: seconds without a\n"
            "change, change: the median of steps with one; peak: growth of the process; kept: living weights, their state,\n"
            "masks and memory. Storage is masked: no gain in step or peak is expected of any method today."
        )
        verdicts(found["flops"])


def verdicts(found: list[dict[str, Any]]) -> None:
    """Print what was counted for what the paper calls sparse, and what it calls dense."""
    for word in ("sparse", "dense"):
        told = []
        for method in TABLE_1:
            mine = [one for one in found if one["method"] == method]
            if mine and TABLE_1[method][3] == word:
                told.append(f"{method} {statistics.mean(one['living'] + one['looked'] for one in mine):.2f}")
        print(f"called {word} in space and FLOPs by the paper; FLOPs here: {', '.join(told) or '-'}")
    print(f"(sparsity {SPARSITY} all along would be {1 - SPARSITY:.2f}; LpSS begins at 0.2 and nears it in the run)")


def flops_cells(method: str, found: list[dict[str, Any]]) -> dict[str, str]:
    """Return what was counted, means over seeds."""
    mine = [one for one in found if one["method"] == method]
    dense = [one["kept"] for one in found if one["method"] == "dense"]
    if not mine:
        return {}
    rare = [one["living"] + one["looked"] * (1.0 if one["always"] else (one["every"] or 0) / USUAL) for one in mine]
    return {
        "reached": f"{statistics.mean(one['reached'] for one in mine):.3f}",
        "FLOPs": f"{statistics.mean(one['living'] + one['looked'] for one in mine):.3f}",
        "no looks": f"{statistics.mean(one['living'] for one in mine):.3f}",
        f"every {USUAL}": f"{statistics.mean(rare):.3f}",
        "looks": f"{statistics.mean(one['looks'] / one['steps'] for one in mine):.0%}",
        "test": f"{statistics.mean(one['test'] for one in mine):.2f}",
        "kept": f"{statistics.mean(one['kept'] for one in mine) / statistics.mean(dense):.2f}" if dense else "-",
    }


def time_cells(method: str, found: list[dict[str, Any]]) -> dict[str, str]:
    """Return times of a step relative to those of the dense network."""
    if not found or method not in found[0]["plain"] or not found[0]["plain"].get("dense"):
        return {}
    dense, plain, change = found[0]["plain"]["dense"], found[0]["plain"][method], found[0]["change"][method]
    cells = {}
    if plain:
        cells["step min"] = f"{min(plain) / min(dense):.2f}"
        cells["median"] = f"{statistics.median(plain) / statistics.median(dense):.2f}"
    if change:
        cells["change"] = f"{statistics.median(change) / statistics.median(dense):.2f}"
    return cells


def memory_cell(method: str, found: list[dict[str, Any]]) -> str:
    """Return the growth of a process relative to that of the dense network."""
    grown = {name: [one["grown"] for one in found if one["method"] == name] for name in (method, "dense")}
    if not all(grown.values()):
        return "-"
    return f"{statistics.median(grown[method]) / statistics.median(grown['dense']):.2f}"


def main() -> int:
    """Measure what is missing and print the table."""
    parser = arguments(__doc__, "lp_sphere/costs")
    parser.add_argument("--net", default="mlp", choices=list(NETS))
    parser.add_argument("--methods", default=",".join(["dense", *METHODS]))
    parser.add_argument("--parts", default="flops,memory,time")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100, help="steps of each method that are timed")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return reproduce(parser, runs, table, measured)


if __name__ == "__main__":
    sys.exit(main())
