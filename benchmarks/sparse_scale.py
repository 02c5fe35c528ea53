"""How wide a network can be trained with sparse layers: time and memory against neurons, up to a million and more.

    python benchmarks/sparse_scale.py [--json] [--quick] [--neurons 1000000] [--figure DIR]

The network is 784-N-N-N-10, its first three layers with 20 weights a neuron, the last one dense; a step is a batch of 128
through forward, cross-entropy, backward and SGD with momentum, and after an epoch SET takes away 30 % of the weights of the
sparse layers and lets others grow. Each width has a process of its own, whose memory is by how much it grows at most. An
epoch of 60,000 images is reckoned from the median of the steps taken and one change of connections, one thread. Dense layers
of the same width would need the bytes named beside it: weight, gradient and momentum.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import pared
from pared.measure.latency import threads
from pared.methods import SET
from pared.nn import BatchMajor, SparseLinear
from pared.report.charts import COLOURS, Series, chart
from pared.report.html import standalone
from pared.topology import Constant

INPUTS, OUTPUTS, BATCH, ROWS, EACH = 784, 10, 128, 60_000, 20
NEURONS = (3_000, 30_000, 300_000, 1_000_000, 3_000_000)


def network(width: int) -> nn.Sequential:
    """Return a network of three sparse layers."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (INPUTS, width, width):
        layers += [SparseLinear(inputs, width, density=min(1.0, EACH / inputs), generator=generator), nn.ReLU()]
    return nn.Sequential(*layers, BatchMajor(), nn.Linear(width, OUTPUTS))


def memory() -> int:
    """Return the most bytes this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(neurons: int, steps: int) -> dict[str, Any]:
    """Build a network, take some steps and one change, and return what they took."""
    with threads(1):
        width, before = neurons // 3, memory()
        x, y = torch.randn(BATCH, INPUTS), torch.randint(OUTPUTS, (BATCH,))
        began = time.perf_counter()
        model = network(width)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        every = steps - 1  # the last step is the one with a change behind it
        method = SET(0.99, every=every, begin=0.0, end=1.0, fraction=Constant(0.3), where="but last")
        session = method.bind(model, optimizer, total_steps=2 * steps)
        built, taken = time.perf_counter() - began, []
        for _ in range(steps):
            began = time.perf_counter()
            F.cross_entropy(model(x), y).backward()
            session.step()
            optimizer.zero_grad()
            taken.append(time.perf_counter() - began)
    plain, change = median([*taken[: every - 1], *taken[every:]]), taken[every - 1]
    assert session.events, "no connection changed"
    weights = sum(m.count for m in model if isinstance(m, SparseLinear))
    dense = INPUTS * width + 2 * width * width
    return {
        "neurons": 3 * width,
        "weights": weights,
        "seconds to build": built,
        "seconds of a step": plain,
        "seconds of a change": max(0.0, change - plain),
        "seconds of an epoch": plain * (ROWS // BATCH) + max(0.0, change - plain),
        "bytes": memory() - before,
        "bytes if dense": 12 * dense,
    }


def draw(found: list[dict[str, Any]], folder: Path) -> None:
    """Write both charts as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, key, unit, scale in (
        ("time", "seconds of an epoch", "seconds", 1.0),
        ("memory", "bytes", "MiB", 2.0**20),
    ):
        series = [Series("sparse layers", [(r["neurons"], r[key] / scale) for r in found], COLOURS[0], marker="circle")]
        if name == "memory":
            dense = [(r["neurons"], r["bytes if dense"] / scale) for r in found]
            series.append(Series("dense, reckoned", dense, COLOURS[1], dash="4 3"))
        title = {"time": "Time of an epoch of 60,000 images", "memory": "Memory of training"}[name]
        figure = chart(title, series, x_label="neurons", y_label=unit, x_log=True, y_log=True)
        (folder / f"scale-{name}.svg").write_text(standalone(figure), encoding="utf-8")


def main() -> None:
    """Measure each width in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="up to 30,000 neurons")
    parser.add_argument("--neurons", type=int, help="this many only, in this process")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--figure", type=Path, help="folder for two charts")
    options = parser.parse_args()
    if options.neurons is not None:
        print(json.dumps(measure(options.neurons, options.steps)))
        return
    found: list[dict[str, Any]] = []
    for neurons in NEURONS[:2] if options.quick else NEURONS:
        command = [sys.executable, __file__, "--neurons", str(neurons), "--steps", str(options.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{neurons:,} neurons: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            break
        found.append(json.loads(done.stdout))
        one = found[-1]
        if not options.json:
            print(
                f"{one['neurons']:>9,} neurons, {one['weights']:>11,} weights: step {one['seconds of a step']:.3f} s, epoch "
                f"{one['seconds of an epoch']:,.0f} s, {one['bytes'] / 2**20:,.0f} MiB (dense: "
                f"{one['bytes if dense'] / 2**20:,.0f} MiB)",
                flush=True,
            )
    machine = {
        "processor": platform.processor() or platform.machine(),
        "config": str(pared.show_config()),
        "threads": 1,
    }
    if options.json:
        print(json.dumps({"runs": found, "machine": machine}, indent=1))
    if options.figure:
        draw(found, options.figure)


if __name__ == "__main__":
    main()
