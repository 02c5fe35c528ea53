"""A step with rates by class beside plain SGD: one process, one thread, interleaved, minimum and median.

    python benchmarks/class_rates.py [--json] [--quick] [--batch 128]

The network is a multilayer perceptron 512-512-512-512-512-K with SELU, whose four hidden layers are managed. A step is: zero
gradients, forward, cross-entropy, backward, and that of `ClassRateSGD` ("ours"). Its rivals are `torch.optim.SGD` ("sgd"),
which knows no classes, and two other ways to gradients by class, which then step by the same formulas: a backward pass for
each class that is there ("passes"), and gradients of every sample, by `torch.func` ("samples") and Opacus ("opacus", where it
is installed: `pip install opacus`), both at batch 128. A ratio is the
minimum of ours over that of SGD, of time passed or processor time, whichever is more. Weights must agree after three steps,
or nothing is printed. Memory is what rates take.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import pared
from pared.measure.latency import threads
from pared.optim import ClassRateSGD

WIDTH, HIDDEN, LR, RATE = 512, 4, 0.01, 1e4
BARS = {2: 1.4, 10: 2.3, 26: 4.0, 100: None}
Step = Callable[[], None]


def network(classes: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [one for _ in range(HIDDEN) for one in (nn.Linear(WIDTH, WIDTH), nn.SELU())]
        return nn.Sequential(*layers, nn.Linear(WIDTH, classes))


def plain(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        if isinstance(optimizer, ClassRateSGD):
            with optimizer.classes(y):
                F.cross_entropy(model(x), y).backward()
        else:
            F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def by_formula(model: nn.Module, x: Tensor, y: Tensor, classes: int, way: str) -> Step:
    """Return a step with gradients by class that are found in another way."""
    managed = [name for name, p in model.named_parameters() if p.ndim > 1][:-1]
    mu = {name: torch.ones(classes, *model.get_parameter(name).shape) for name in managed}
    here = y.unique()
    at = [(y == k).float() / len(y) for k in here]
    each = vmap(
        grad(lambda p, a, b: F.cross_entropy(functional_call(model, p, (a[None],)), b[None])), in_dims=(None, 0, 0)
    )

    private: Any = None
    if way == "opacus":
        from opacus.grad_sample import GradSampleModule

        private = GradSampleModule(model, loss_reduction="mean")

    def shares() -> list[dict[str, Tensor]]:
        if private is not None:
            private.zero_grad()
            F.cross_entropy(private(x), y).backward()
            found = {n: p.grad_sample for n, p in model.named_parameters()}
            return [{n: torch.tensordot(part, g, 1) for n, g in found.items()} for part in at]
        if way == "samples":
            found = each({n: p.detach() for n, p in model.named_parameters()}, x, y)
            return [{n: torch.tensordot(part, g, 1) for n, g in found.items()} for part in at]
        losses = F.cross_entropy(model(x), y, reduction="none")
        names, tensors = zip(*model.named_parameters(), strict=True)
        return [
            dict(zip(names, torch.autograd.grad(losses @ part, tensors, retain_graph=True), strict=True)) for part in at
        ]

    def step() -> None:
        found = shares()
        with torch.no_grad():
            for name, p in model.named_parameters():
                change = torch.zeros_like(p)
                for k, share in zip(here.tolist(), found, strict=True):
                    if name in mu:
                        change.addcmul_(mu[name][k], share[name])
                        mu[name][k].addcmul_(share[name], share[name], value=RATE * LR)
                    else:
                        change += share[name]
                p.sub_(change, alpha=LR)

    return step


def contestants(classes: int, batch: int) -> tuple[dict[str, Step], int]:
    """Return the steps, which have been taken three times and agree, and the bytes of the rates."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(batch, WIDTH, generator=generator), torch.randint(classes, (batch,), generator=generator)
    names = ["ours", "sgd", "passes"]
    if batch <= 128:
        names += ["samples", *(["opacus"] if find_spec("opacus") else [])]
    models = {name: network(classes) for name in names}
    optimizer = ClassRateSGD(models["ours"], LR, RATE, classes=classes)
    steps = {
        "ours": plain(models["ours"], optimizer, x, y),
        "sgd": plain(models["sgd"], torch.optim.SGD(models["sgd"].parameters(), LR), x, y),
        **{name: by_formula(models[name], x, y, classes, name) for name in names[2:]},
    }
    for name, step in steps.items():
        for _ in range(3):
            step()
        for p, q in zip(models[name].parameters(), models["ours"].parameters(), strict=True):
            if name != "sgd" and not torch.allclose(p, q, rtol=1e-3, atol=1e-5):
                raise SystemExit(f"{name} takes other steps: weights differ by {float((p - q).abs().max())}")
    return steps, sum(state["mu"].nbytes for state in optimizer.state.values() if "mu" in state)


def claim(classes: int, batch: int, seconds: float) -> dict[str, Any]:
    steps, rates = contestants(classes, batch)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    began, number = time.perf_counter(), 0
    while number < 8 or time.perf_counter() - began < seconds:
        for name, step in steps.items():
            if name in ("ours", "sgd") or number % 8 == 0:
                start, busy = time.perf_counter(), time.process_time()
                step()
                busy = time.process_time() - busy
                times[name].append((time.perf_counter() - start, busy))
        number += 1
    best = {name: min(t for t, _ in turns) for name, turns in times.items()}
    busy = {name: min(t for _, t in turns) for name, turns in times.items()}
    ratio, bar = max(best["ours"] / best["sgd"], busy["ours"] / busy["sgd"]), BARS[classes] if batch == 128 else None
    return {
        "name": f"step with rates of {classes} classes, batch {batch}: times a step of SGD",
        "ratio": ratio,
        "bar": bar,
        "holds": bar is None or ratio <= bar,
        "detail": {
            "milliseconds, minimum": {name: round(1e3 * t, 3) for name, t in best.items()},
            "times SGD": {name: round(t / best["sgd"], 2) for name, t in best.items()},
            "ratio of medians": median(t for t, _ in times["ours"]) / median(t for t, _ in times["sgd"]),
            "MiB of rates": rates / 2**20,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="batch 128, up to 26 classes: under a minute")
    parser.add_argument("--batch", type=int, choices=(128, 512), help="this batch only")
    arguments = parser.parse_args()
    batches = [arguments.batch] if arguments.batch else [128] if arguments.quick else [128, 512]
    with threads(1):
        claims = [
            claim(classes, batch, 6.0 if arguments.quick else 15.0)
            for batch in batches
            for classes in BARS
            if classes < 100 or not arguments.quick
        ]
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
            print(
                f"{one['name']}: {one['ratio']:.2f}{bar}  {one['detail']['times SGD']}, {one['detail']['MiB of rates']:.0f} MiB"
            )
        print(json.dumps(machine))
    sys.exit(0 if all(one["holds"] for one in claims) else 1)


if __name__ == "__main__":
    main()
