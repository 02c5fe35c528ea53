"""A training step with the dynamic prior beside the same step with L2: one process, one thread, interleaved, minimum.

    python benchmarks/penalties.py [--json] [--quick] [--batch 32]

The network is ResNet-18 for 32x32 images (11.2 million weights), the batch has 32 of them, the optimizer is Adam. A step is:
zero gradients, forward, cross-entropy, the penalty, backward, the optimizer's step. "ours" is `DynamicPrior` with 10 draws of
exact counts and momentum; "l2" is `pared.penalties.L2`, by torch's own norms. "naive" draws one number for each weight and
draw, takes softmaxes and their largest by `topk`, and leaves the gradient to autograd; it takes one step in eight. A ratio
is the minimum of ours over that of L2, of time passed or processor time, whichever is more. The three networks begin alike,
and that of L2 shows where training is; gradients of the penalty are held against autograd over its own masks before.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pared
from pared.measure.latency import threads
from pared.models import resnet
from pared.penalties import L2, DynamicPrior

DRAWS, STRENGTH, MOMENTUM = 10, 1e-5, 0.9
BARS = {0.01: 1.3, 0.05: None, 0.1: 2.0}


class Naive:
    """The penalty as one would write it down."""

    def __init__(self, model: nn.Module, density: float) -> None:
        self.weights = [p for p in model.parameters() if p.ndim > 1]
        self.density, self.generator = density, torch.Generator().manual_seed(0)
        self.before: Tensor | None = None

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar."""
        w = torch.cat([p.flatten() for p in self.weights])
        size, before, total = w.detach().abs(), self.before, w.new_zeros(())
        for _ in range(DRAWS):
            u = torch.rand(len(w), generator=self.generator)
            chance = (u * size).softmax(0)
            if before is not None:
                chance = MOMENTUM * chance + (1.0 - MOMENTUM) * (u * before).softmax(0)
            mask = torch.zeros_like(w)
            mask[chance.topk(math.ceil(self.density * len(w)), sorted=False).indices] = 1.0
            total = total + torch.linalg.vector_norm(w * mask)
        self.before = size
        return STRENGTH * total


def training(make: Callable[[nn.Module], Callable[[], Tensor]], batch: int) -> Callable[[], None]:
    """Return a training step of a network of its own."""
    generator = torch.Generator().manual_seed(0)
    model = resnet(generator=generator)
    x = torch.randn(batch, 3, 32, 32, generator=generator)
    y = torch.randint(10, (batch,), generator=generator)
    optimizer, penalty = torch.optim.Adam(model.parameters(), lr=1e-3), make(model)

    def step() -> None:
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + penalty()).backward()
        optimizer.step()

    return step


def check(density: float) -> None:
    """Stop where the gradient is not that of a sum of norms of so many weights each."""
    weight = (0.02 * torch.randn(300, 400, generator=torch.Generator().manual_seed(1))).requires_grad_()
    penalty = DynamicPrior([weight], 1.0, density, 1)
    value = penalty()
    value.backward()
    assert weight.grad is not None
    mask = weight.grad != 0.0
    (twin,) = torch.autograd.grad(torch.linalg.vector_norm(weight * mask), weight)
    if int(mask.sum()) != math.ceil(density * weight.numel()) or not torch.allclose(weight.grad, twin):
        raise SystemExit(f"counts or gradients are wrong at density {density}")


def claim(density: float, batch: int, rounds: int) -> dict[str, Any]:
    """Return the claim's ratio of minima and what stands behind it."""
    check(density)
    steps = {
        "ours": training(lambda m: DynamicPrior(m, STRENGTH, density, DRAWS, MOMENTUM), batch),
        "l2": training(lambda m: L2(m, STRENGTH), batch),
        "naive": training(lambda m: Naive(m, density), batch),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for name in ("ours", "l2", "ours", "l2"):
        steps[name]()
    for number in range(rounds):
        for name in ("ours", "l2", "naive") if number % 8 == 1 else ("ours", "l2") if number % 2 else ("l2", "ours"):
            start, busy = time.perf_counter(), time.process_time()
            steps[name]()
            busy = time.process_time() - busy
            times[name].append((time.perf_counter() - start, busy))
    best = {name: min(t for t, _ in turns) for name, turns in times.items()}
    busy = {name: min(t for _, t in turns) for name, turns in times.items()}
    ratio = max(best["ours"] / best["l2"], busy["ours"] / busy["l2"])
    bar = BARS[density] if batch == 32 else None
    return {
        "name": f"training step of ResNet-18 with the dynamic prior at s_p = {density}, {DRAWS} draws: times that with L2",
        "ratio": ratio,
        "bar": bar,
        "holds": bar is None or ratio <= bar,
        "detail": {
            "milliseconds, minimum": {name: round(1e3 * t, 1) for name, t in best.items()},
            "times L2": {name: round(t / best["l2"], 2) for name, t in best.items()},
            "ratio of medians": median(t for t, _ in times["ours"]) / median(t for t, _ in times["l2"]),
            "rounds": rounds,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the two claims with a bar, four rounds: about a minute")
    parser.add_argument("--batch", type=int, default=32, help="images; bars are for 32")
    arguments = parser.parse_args()
    densities = [d for d, bar in BARS.items() if bar is not None or not arguments.quick]
    with threads(1):
        claims = [claim(density, arguments.batch, 4 if arguments.quick else 12) for density in densities]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "config": str(pared.show_config()),
        "threads": 1,
    }
    if arguments.json:
        print(json.dumps({"claims": claims, "machine": machine}, indent=1))
    else:
        for one in claims:
            bar = "" if one["bar"] is None else f" (bar {one['bar']}, {'holds' if one['holds'] else 'MISSED'})"
            print(f"{one['name']}: {one['ratio']:.2f}{bar}  {one['detail']['times L2']}")
        print(json.dumps(machine))
    sys.exit(0 if all(one["holds"] for one in claims) else 1)


if __name__ == "__main__":
    main()
