"""Sparse convolutions beside dense ones: one process, one thread, interleaved, minimum and median.

    python benchmarks/sparse_conv.py [--json] [--quick] [--kernel 3] [--batch 32] [--sparsity 0.95]

A layer has as many channels out as in, and keeps the size of the images. "inference" is its forward pass; "training" is
that and the gradients of its image, weight and bias. Rivals are `nn.Conv2d` with all weights, on images as torch has them
("dense") and with channels last ("channels last"), and the sparse layer without our kernels, unfolded and multiplied by
torch's sparse CSR ("unfolded"). A "network" is eight such layers with batch norms and ReLU, and its step has the
cross-entropy and SGD with momentum too. A ratio is the minimum of the faster dense rival over that of ours: below 1 sparse
is slower. Times are those that the thread was at work, as others on the machine would count otherwise. There is no bar.
Answers must agree, or nothing is printed.
"""

import argparse
import copy
import json
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
from pared.native import disabled
from pared.nn import SparseConv2d
from pared.nn.dense import dense

#: Channels and side of the images: those of networks for small images, and the last two stages of one for large ones.
SHAPES = ((64, 32), (128, 16), (256, 8), (256, 14), (512, 7))
SPARSITIES, BATCHES, KERNELS = (0.8, 0.9, 0.95, 0.98), (1, 32, 128), (3, 1)
DENSE = ("dense", "channels last")
Call = Callable[[], Tensor]


def layer_of(channels: int, kernel: int, sparsity: float, seed: int = 0) -> SparseConv2d:
    generator = torch.Generator().manual_seed(seed)
    return SparseConv2d(channels, channels, kernel, padding=kernel // 2, density=1.0 - sparsity, generator=generator)


def inference_of(layer: nn.Module, x: Tensor) -> Call:
    def call() -> Tensor:
        with torch.inference_mode():
            return layer(x)

    return call


def training_of(layer: nn.Module, x: Tensor) -> Call:
    x = x.clone().requires_grad_()
    dy = torch.ones_like(x)

    def call() -> Tensor:
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        y.backward(dy)
        return y.detach()

    return call


def step_of(model: nn.Module, x: Tensor) -> Call:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    labels = torch.arange(len(x)) % 10

    def call() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).mean((2, 3))[:, :10], labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def unfolded(call: Call) -> Call:
    def inside() -> Tensor:
        with disabled():
            return call()

    return inside


def contestants(kind: str, model: nn.Module, x: Tensor, of: Callable[[nn.Module, Tensor], Call]) -> dict[str, Call]:
    """Return what takes turns; each has weights of its own."""

    def twin() -> nn.Module:
        made = dense(copy.deepcopy(model))
        return made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    calls = {"sparse": of(copy.deepcopy(model), x), "dense": of(dense(copy.deepcopy(model)), x)}
    calls["channels last"] = of(twin(), x.contiguous(memory_format=torch.channels_last))
    if kind != "network":
        calls["unfolded"] = unfolded(of(copy.deepcopy(model), x))
    return calls


def measure(calls: dict[str, Call], seconds: float) -> dict[str, list[float]]:
    """Return each contestant's times; the one without our kernels takes every fourth turn."""
    answers = {name: call().contiguous() for name, call in calls.items()}
    for name, answer in answers.items():
        if not torch.allclose(answer, answers["sparse"], rtol=1e-3, atol=1e-3):
            raise SystemExit(f"{name} gives another answer than the sparse layer")
    times: dict[str, list[float]] = {name: [] for name in calls}
    began, number = time.perf_counter(), 0
    while number < 8 or time.perf_counter() - began < seconds:
        for name, call in calls.items():
            if number % 4 == 0 or name != "unfolded":
                start = time.thread_time()
                call()
                times[name].append(time.thread_time() - start)
        number += 1
    return times


def claim_of(kind: str, channels: int, side: int, kernel: int, batch: int, sparsity: float, seconds: float) -> Any:
    """Return what was measured of one kind of call."""
    x = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))
    if kind == "network":
        layers = [layer_of(channels, kernel, sparsity, seed) for seed in range(8)]
        model: nn.Module = nn.Sequential(*(m for one in layers for m in (one, nn.BatchNorm2d(channels), nn.ReLU())))
        of: Any = step_of
    else:
        model, of = layer_of(channels, kernel, sparsity), inference_of if kind == "inference" else training_of
    times = measure(contestants(kind, model, x, of), seconds)
    best = {name: min(t) for name, t in times.items()}
    rival = min(DENSE, key=best.__getitem__)
    return {
        "name": f"sparse convolution, {kind}, {kernel}x{kernel}, {channels} channels, {side}x{side} pixels, batch {batch}, "
        f"{sparsity:.0%} sparse: times faster than dense",
        "ratio": best[rival] / best["sparse"],
        "bar": None,
        "holds": True,
        "detail": {
            "milliseconds, minimum": {name: round(1e3 * t, 3) for name, t in best.items()},
            "times faster, by medians": median(times[rival]) / median(times["sparse"]),
            "turns": len(times["sparse"]),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two shapes at 95 %%, and a network: under a minute")
    parser.add_argument("--kernel", type=int, choices=KERNELS, help="this kernel only")
    parser.add_argument("--batch", type=int, choices=BATCHES, help="this batch only")
    parser.add_argument("--sparsity", type=float, choices=SPARSITIES, help="this sparsity only")
    arguments = parser.parse_args()
    shapes, sparsities = (SHAPES[:1] + SHAPES[-1:], (0.95,)) if arguments.quick else (SHAPES, SPARSITIES)
    batches = BATCHES[:2] if arguments.quick else BATCHES
    cases = [
        (kind, *shape, k, batch, s)
        for kind in ("inference", "training")
        for k in KERNELS
        for shape in shapes
        for batch in batches
        for s in sparsities
    ]
    cases += [("network", *shape, 3, 32, s) for shape in shapes[:3] for s in sparsities]
    wanted = arguments.kernel, arguments.batch, arguments.sparsity
    chosen = [c for c in cases if all(w in (None, one) for w, one in zip(wanted, c[3:], strict=True))]
    claims = []
    with threads(1):
        for case in chosen:
            claims.append(claim_of(*case, seconds=1.0 if arguments.quick else 1.5))
            if not arguments.json:
                one = claims[-1]
                print(f"{one['name']}: {one['ratio']:.2f}  {one['detail']['milliseconds, minimum']}", flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "config": str(pared.show_config()),
        "threads": 1,
    }
    print(json.dumps({"claims": claims, "machine": machine} if arguments.json else machine, indent=1))
    sys.exit(0)


if __name__ == "__main__":
    main()
