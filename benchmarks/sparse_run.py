"""A whole run of RigL with sparse layers beside the same run with masks: accuracy, time and memory.

    python benchmarks/sparse_run.py --data DIR [--json] [--quick]        # DIR/mnist/*.gz, or $PARED_DATA

The network is 784-1024-1024-1024-10 on MNIST, its hidden layers 95 % sparse, the last one dense; RigL changes connections
every 100 steps. Both runs start from the same weights and connections and see the same batches of 128; their epochs are
taken in turns, one thread. Memory is by how much a process of its own grows at most while it builds a network of width 4096,
dense or 99 % sparse, and takes ten steps with SGD and momentum.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import pared
from pared.data.images import read_mnist
from pared.measure.latency import threads
from pared.methods import RigL, WeightSession
from pared.models import mlp
from pared.nn import BatchMajor, SparseLinear

SPARSITY, BATCH, WIDTHS, WIDE = 0.95, 128, (1024, 1024, 1024), 4096
APART, TIME = 0.2, 0.4


def pair(seed: int, total: int) -> list[WeightSession]:
    """Return the same start twice: with masks, and with sparse layers."""
    method = RigL(SPARSITY, every=100, where="but last", rescale=True)
    masked = mlp(784, 10, WIDTHS, generator=torch.Generator().manual_seed(seed))
    sessions = [method.bind(masked, solver(masked), total_steps=total, generator=torch.Generator().manual_seed(seed))]
    layers: list[nn.Module] = []
    for name, module in masked.named_children():
        if f"{name}.weight" in sessions[0].connections:
            assert isinstance(module, nn.Linear)
            layers.append(SparseLinear.from_linear(module, sessions[0].masked(f"{name}.weight").mask))
        elif isinstance(module, nn.Linear):
            layers += [BatchMajor(), nn.Linear(module.in_features, module.out_features)]
            layers[-1].load_state_dict(module.state_dict())
        else:
            layers.append(module)
    sparse = nn.Sequential(*layers)
    return [*sessions, method.bind(sparse, solver(sparse), total_steps=total)]


def solver(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of both."""
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def run(data: Path, seed: int, epochs: int) -> dict[str, list[float]]:
    """Train both, an epoch of each in turns, and return accuracies and seconds."""
    x, y = read_mnist(data / "mnist", "train")
    x_test, y_test = read_mnist(data / "mnist", "t10k")
    x, x_test = ((images.float().flatten(1) / 255.0 - 0.13) / 0.31 for images in (x, x_test))
    steps = len(x) // BATCH
    sessions, seconds = pair(seed, epochs * steps), [0.0, 0.0]
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        for turn in (0, 1) if epoch % 2 else (1, 0):
            session, began = sessions[turn], time.perf_counter()
            for rows in order[: steps * BATCH].split(BATCH):
                F.cross_entropy(session.model(x[rows]), y[rows]).backward()
                session.step()
                session.optimizer.zero_grad()
            seconds[turn] += time.perf_counter() - began
    with torch.no_grad():
        right = [100.0 * float((s.model(x_test).argmax(1) == y_test).double().mean()) for s in sessions]
    print(
        f"seed {seed}: masked {right[0]:.2f}, sparse {right[1]:.2f}; {seconds[0]:.0f} and {seconds[1]:.0f} s",
        file=sys.stderr,
    )
    return {"accuracy": right, "seconds": seconds}


def grown(kind: str) -> int:
    """Return by how many bytes a process of its own grows."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
    done = subprocess.run([sys.executable, __file__, "--grow", kind], capture_output=True, check=True, env=environment)
    return int(done.stdout.split()[-1])


def grow(kind: str) -> None:
    """Print by how many bytes this process grows while it trains a wide network."""
    torch.set_num_threads(1)
    x, y = torch.randn(BATCH, WIDE), torch.randint(10, (BATCH,))
    warm = nn.Linear(WIDE, 10)
    F.cross_entropy(warm(x), y).backward()
    before = held()
    if kind == "dense":
        model = mlp(WIDE, 10, (WIDE, WIDE, WIDE))
    else:
        hidden = [layer for _ in range(3) for layer in (SparseLinear(WIDE, WIDE, density=0.01), nn.ReLU())]
        model = nn.Sequential(*hidden, BatchMajor(), nn.Linear(WIDE, 10))
    optimizer = solver(model)
    for _ in range(10):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(held() - before)


def held() -> int:
    """Return the most bytes this process has held, by Linux's own count."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def claims(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, and return what is claimed with what was found."""
    found = [
        run(Path(options.data), seed, 1 if options.quick else options.epochs)
        for seed in range(1 if options.quick else 3)
    ]
    masked, sparse = (statistics.mean(one["accuracy"][turn] for one in found) for turn in (0, 1))
    ratio = sum(one["seconds"][1] for one in found) / sum(one["seconds"][0] for one in found)
    apart = abs(masked - sparse)
    told = [
        {
            "name": "accuracy of sparse layers and of masks, points apart",
            "ratio": apart,
            "bar": APART,
            "holds": apart <= APART,
        }
        | {"detail": f"masked {masked:.2f}, sparse {sparse:.2f}, {len(found)} seeds"},
        {
            "name": "time of the run with sparse layers, against masks",
            "ratio": ratio,
            "bar": TIME,
            "holds": ratio <= TIME,
        }
        | {"detail": f"{sum(one['seconds'][1] for one in found):.0f} s in all"},
    ]
    if sys.platform == "linux":
        dense, small = grown("dense"), grown("sparse")
        told.append(
            {
                "name": "peak memory of training at 99 %, against dense",
                "ratio": small / dense,
                "bar": None,
                "holds": True,
            }
            | {"detail": f"{small / 2**20:.0f} MiB and {dense / 2**20:.0f} MiB, width {WIDE}"}
        )
    return told


def main() -> int:
    """Print the claims and say whether they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PARED_DATA"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed")
    parser.add_argument("--grow", choices=["dense", "sparse"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grow:
        grow(options.grow)
        return 0
    if options.data is None:
        parser.error("say where the data is with --data DIR or PARED_DATA; DIR holds mnist/*.gz")
    with threads(1):
        made = claims(options)
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__} | {
        "pared": pared.__version__,
        "kernels": str(pared.show_config()),
    }
    if options.json:
        print(json.dumps({"claims": made, "machine": machine}))
    else:
        for one in made:
            bar = "" if one["bar"] is None else f" (bar {one['bar']:g}: {'holds' if one['holds'] else 'missed'})"
            print(f"{one['name']}: {one['ratio']:.2f}{bar}; {one['detail']}")
    return 0 if all(one["holds"] for one in made) else 1


if __name__ == "__main__":
    sys.exit(main())
