"""A whole training step with LpSGD-m beside the same step with SGD and momentum: one thread, interleaved, minimum.

    python benchmarks/lp_step.py [--json] [--quick]
    PARED_NATIVE=0 python benchmarks/lp_step.py   # on torch's own functions

The network is a multilayer perceptron 784-1024-1024-10, the batch has 128 rows, and the weights of all three layers are
on the sphere. A step is: zero gradients, forward, loss, backward, the optimizer's step. Compiled, both the pass through
the network and the optimizer's step are, for both optimizers; LpSGD's step runs as it is then. The bars are for the
compiled kernels of `pared.native`; on torch's functions a step takes about 1.45 times SGD's, with `torch.compile` and
without, so that the bar of the compiled one is missed. Networks that diverge or weights that turn denormal would make
times meaningless, so weights are checked to be on the sphere after the last step.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from pared.measure.latency import threads
from pared.models import mlp
from pared.native import library
from pared.ops import lp_norm
from pared.optim import LpSGD, lp_groups

EAGER, COMPILED = 1.6, 1.35
ROWS, WIDTHS = 128, (784, 1024, 1024, 10)


def training(make: Callable[[nn.Module], torch.optim.Optimizer], *, compiled: bool) -> tuple[Callable[[], None], Any]:
    """Return a training step and the network it trains."""
    generator = torch.Generator().manual_seed(0)
    model = mlp(WIDTHS[0], WIDTHS[-1], WIDTHS[1:-1], generator=generator)
    x = torch.randn(ROWS, WIDTHS[0], generator=generator)
    y = torch.randint(WIDTHS[-1], (ROWS,), generator=generator)
    optimizer, loss = make(model), nn.CrossEntropyLoss()
    forward = torch.compile(lambda: loss(model(x), y)) if compiled else lambda: loss(model(x), y)
    update = torch.compile(optimizer.step) if compiled else optimizer.step

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        update()

    return step, model


def claim(p: float, steps: int, *, compiled: bool) -> dict[str, Any]:
    """Return the claim's ratio of minima and what stands behind it."""
    ours, model = training(
        lambda m: LpSGD(lp_groups(m, p, constrain="all"), lr=1e-3, p=p, euclidean_lr=1e-2), compiled=compiled
    )
    rival, _ = training(lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9), compiled=compiled)
    times: dict[str, list[float]] = {"ours": [], "rival": []}
    for _ in range(5):
        ours()
        rival()
    for number in range(steps):
        for name, step in (("ours", ours), ("rival", rival))[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    off = max(float((lp_norm(w.detach(), p) - 1.0).abs().max()) for w in model.parameters() if w.ndim > 1)
    assert off < 1e-5, f"weights left the sphere by {off}"
    ratio, bar = min(times["ours"]) / min(times["rival"]), COMPILED if compiled else EAGER
    return {
        "name": f"training step, LpSGD-m at p={p} / SGD with momentum, {'compiled' if compiled else 'eager'}",
        "ratio": ratio,
        "bar": bar,
        "holds": ratio <= bar,
        "detail": {
            "milliseconds ours, minimum": 1e3 * min(times["ours"]),
            "milliseconds rival, minimum": 1e3 * min(times["rival"]),
            "ratio of medians": median(times["ours"]) / median(times["rival"]),
            "steps": steps,
            "away from the sphere": off,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer steps and one exponent: under a minute")
    arguments = parser.parse_args()
    steps, exponents = (150, (1.3,)) if arguments.quick else (400, (1.07, 1.3, 2.0))
    with threads(1):
        claims = [claim(p, steps, compiled=compiled) for compiled in (False, True) for p in exponents]
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    machine["kernels"] = "torch" if library() is None else "native"
    if arguments.json:
        print(json.dumps({"claims": claims, "machine": machine}, indent=1))
    else:
        for one in claims:
            print(f"{one['name']}: {one['ratio']:.2f} (bar {one['bar']}, {'holds' if one['holds'] else 'MISSED'})")
            print(json.dumps(one["detail"], indent=1))
        print(json.dumps(machine))
    sys.exit(0 if all(one["holds"] for one in claims) else 1)


if __name__ == "__main__":
    main()
