"""A whole sparse training step beside dense ones: one process, one thread, interleaved, minimum and median.

    python benchmarks/sparse_step.py [--json] [--quick] [--width 1024] [--batch 128]

The network is a multilayer perceptron 784-W-W-W-10 with biases and ReLU; its three hidden layers are sparse, the layer of
the outputs is dense, behind a `BatchMajor`. A step is: zero gradients, forward, cross-entropy, backward, SGD with
momentum. Sparse steps use our kernels ("native") or torch's sparse CSR ("torch"). Their rivals train all weights in dense
torch ("dense"), the same through torch.compile ("compiled"), dense weights that are multiplied by a mask ("masked"), or
SciPy's CSR matrices with the same arithmetic written by hand ("scipy"). A claim's ratio is the minimum of dense over that
of ours, with a bar to reach at batch 128; what the other rivals took stands beside it. The first losses of all that train
the same sparse network must agree, or nothing is printed.
"""

import argparse
import contextlib
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

import pared
from pared.measure.latency import threads
from pared.native import disabled, library
from pared.nn import BatchMajor, SparseLinear

#: Bars at batch 128: width -> sparsity -> times faster than dense.
NATIVE = {1024: {0.9: 3.0, 0.95: 5.5, 0.98: 9.0}, 4096: {0.9: 2.8, 0.95: 5.0, 0.98: 11.0}}
TORCH = {0.9: 1.8, 0.95: 3.7, 0.98: 5.0}
INPUTS, OUTPUTS, BATCH, RATE, MOMENTUM = 784, 10, 128, 0.01, 0.9
Step = Callable[[], float]


class MaskedLinear(nn.Linear):
    """A dense layer that multiplies its weight by a mask, as most sparse training does."""

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        dense = layer.to_linear()
        self.weight, self.bias = dense.weight, dense.bias
        self.register_buffer("mask", (dense.weight != 0).to(dense.weight.dtype))

    def forward(self, input: Tensor) -> Tensor:
        """Return input (weight * mask)^T + bias."""
        return F.linear(input, self.weight * self.get_buffer("mask"), self.bias)


def sparse_network(width: int, sparsity: float) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (INPUTS, width, width):
        layers += [SparseLinear(inputs, width, density=1.0 - sparsity, generator=generator), nn.ReLU()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*layers, BatchMajor(), nn.Linear(width, OUTPUTS))


def rebuilt(model: nn.Sequential, change: Callable[[SparseLinear], nn.Module]) -> nn.Sequential:
    copied: list[nn.Module] = []
    for layer in list(model)[:-1]:
        one = change(layer) if isinstance(layer, SparseLinear) else type(layer)()
        copied += [] if isinstance(one, BatchMajor) and not isinstance(copied[0], SparseLinear) else [one]
    last = nn.Linear(model[-1].in_features, OUTPUTS)
    last.load_state_dict(model[-1].state_dict())
    return nn.Sequential(*copied, last)


def step_of(model: nn.Module, x: Tensor, y: Tensor, *, compiled: bool = False) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    forward = torch.compile(lambda: F.cross_entropy(model(x), y)) if compiled else lambda: F.cross_entropy(model(x), y)

    def step() -> float:
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def without_native(step: Step) -> Step:
    def inside() -> float:
        with disabled():
            return step()

    return inside


def scipy_step(model: nn.Sequential, x: Tensor, y: Tensor) -> Step:
    """Return the step with SciPy's CSR products, features-major; gradients of values by NumPy, in pieces."""
    layers = [m for m in model if isinstance(m, SparseLinear)]
    weights = [
        sparse.csr_matrix(
            (m.values.detach().numpy().copy(), m.col.numpy(), m.crow.numpy()), (m.out_features, m.in_features)
        )
        for m in layers
    ]
    rows = [m.pattern.row_of().numpy() for m in layers]
    last = model[-1]
    dense, offset = last.weight.detach().numpy().copy(), last.bias.detach().numpy().copy()
    biases = [m.bias.detach().numpy().copy() for m in layers if m.bias is not None]
    held = [np.zeros_like(w) for w in (*(m.data for m in weights), *biases, dense, offset)]
    labels, start = y.numpy(), np.ascontiguousarray(x.numpy().T)

    def dots(row: np.ndarray, col: np.ndarray, dy: np.ndarray, h: np.ndarray) -> np.ndarray:
        pieces = range(0, len(row), 65_536)
        return np.concatenate([np.einsum("ib,ib->i", dy[row[i : i + 65_536]], h[col[i : i + 65_536]]) for i in pieces])

    def step() -> float:
        hidden = [start]
        for weight, bias in zip(weights, biases, strict=True):
            hidden.append(np.maximum(weight @ hidden[-1] + bias[:, None], 0.0))
        logits = dense @ hidden[-1] + offset[:, None]
        logits -= logits.max(0)
        chance = np.exp(logits)
        chance /= chance.sum(0)
        samples = np.arange(len(labels))
        loss = -float(np.log(chance[labels, samples]).mean())
        chance[labels, samples] -= 1.0
        dy = chance / np.float32(len(labels))
        grads: list[np.ndarray] = [dy @ hidden[-1].T, dy.sum(1)]
        dy = dense.T @ dy
        sparse_grads, bias_grads = [], []
        for number in reversed(range(len(weights))):
            dy = dy * (hidden[number + 1] > 0)
            sparse_grads.insert(0, dots(rows[number], weights[number].indices, dy, hidden[number]))
            bias_grads.insert(0, dy.sum(1))
            if number:
                dy = weights[number].T @ dy
        changed = [*(m.data for m in weights), *biases, dense, offset]
        for weight, momentum, grad in zip(changed, held, [*sparse_grads, *bias_grads, *grads], strict=True):
            momentum *= MOMENTUM
            momentum += grad
            weight -= RATE * momentum
        return loss

    return step


def contestants(width: int, sparsity: float, batch: int, rivals: tuple[str, ...]) -> dict[str, Step]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, INPUTS, generator=generator)
    y = torch.randint(OUTPUTS, (batch,), generator=generator)
    model = sparse_network(width, sparsity)
    copies = rebuilt(model, lambda m: SparseLinear.from_linear(m.to_linear(), m.pattern))
    steps: dict[str, Step] = {"torch": without_native(step_of(copies, x, y))}
    if library() is not None:
        steps["native"] = step_of(rebuilt(model, lambda m: SparseLinear.from_linear(m.to_linear(), m.pattern)), x, y)
    for name in rivals:
        if name == "scipy":
            steps[name] = scipy_step(model, x, y)
        elif name == "masked":
            steps[name] = step_of(rebuilt(model, MaskedLinear), x, y)
        else:
            steps[name] = step_of(rebuilt(model, SparseLinear.to_linear), x, y, compiled=name == "compiled")
    return steps


def measure(steps: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    """Return each contestant's times; they take turns, those without a claim every fourth turn."""
    first = {name: [step() for _ in range(3)] for name, step in steps.items()}
    for name, losses in first.items():
        if name not in ("dense", "compiled") and not np.allclose(losses, first["torch"], rtol=1e-3):
            raise SystemExit(f"{name} trains another network: losses {losses}, not {first['torch']}")
    times: dict[str, list[float]] = {name: [] for name in steps}
    began, number = time.perf_counter(), 0
    while number < 12 or time.perf_counter() - began < seconds:
        for name, step in steps.items():
            if number % 4 == 0 or name in ("native", "torch", "dense"):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        number += 1
    return times


def claims_of(width: int, sparsity: float, batch: int, rivals: tuple[str, ...], seconds: float) -> list[dict[str, Any]]:
    """Return what is claimed of our paths for one network and batch."""
    times = measure(contestants(width, sparsity, batch, rivals), seconds)
    best = {name: min(t) for name, t in times.items()}
    found = []
    for path in ("native", "torch"):
        if path not in best:
            continue
        bars = NATIVE[width] if path == "native" else TORCH
        bar = bars.get(sparsity) if batch == BATCH else None
        ratio = best["dense"] / best[path]
        found.append(
            {
                "name": f"sparse training step, {path} kernels, width {width}, {sparsity:.0%} sparse, batch {batch}: times "
                "faster than dense",
                "ratio": ratio,
                "bar": bar,
                "holds": bar is None or ratio >= bar,
                "detail": {
                    "milliseconds, minimum": {name: round(1e3 * t, 3) for name, t in best.items()},
                    "times faster, by medians": median(times["dense"]) / median(times[path]),
                    "times faster than": {
                        r: round(t / best[path], 2) for r, t in best.items() if r not in ("native", "torch")
                    },
                    "steps": {name: len(t) for name, t in times.items()},
                },
            }
        )
    return found


def compiler() -> str:
    """Return why dense torch cannot be compiled here, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda t: t + 1)(torch.zeros(4))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="width 1024 at batch 128 with two rivals: under a minute")
    parser.add_argument("--width", type=int, choices=NATIVE, help="this width only")
    parser.add_argument("--batch", type=int, choices=(32, BATCH, 512), help="this batch only")
    arguments = parser.parse_args()
    note = "left out by --quick" if arguments.quick else compiler()
    rivals: tuple[str, ...] = ("dense", "masked") if note else ("dense", "masked", "compiled")
    cases = [(1024, s, BATCH) for s in (0.9, 0.95, 0.98)]
    if not arguments.quick:
        rivals = (*rivals, "scipy")
        cases = [(w, s, b) for w in NATIVE for b in (32, BATCH, 512) for s in (0.8, 0.9, 0.95, 0.98, 0.99)]
    cases = [c for c in cases if arguments.width in (None, c[0]) and arguments.batch in (None, c[2])]
    claims: list[dict[str, Any]] = []
    with threads(1), warnings.catch_warnings() if not note else contextlib.nullcontext():
        if not note:
            warnings.filterwarnings("ignore", category=DeprecationWarning)
        for width, sparsity, batch in cases:
            seconds = 6.0 if width == 1024 else 20.0
            found = claims_of(width, sparsity, batch, rivals, seconds)
            claims += found
            for one in () if arguments.json else found:
                bar = "" if one["bar"] is None else f" (bar {one['bar']}, {'holds' if one['holds'] else 'MISSED'})"
                print(f"{one['name']}: {one['ratio']:.2f}{bar}  {one['detail']['milliseconds, minimum']}", flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "config": str(pared.show_config()),
        "threads": 1,
        "torch.compile": note or "measured",
    }
    if arguments.json:
        print(json.dumps({"claims": claims, "machine": machine}, indent=1))
    else:
        print(json.dumps(machine, indent=1))
    sys.exit(0 if all(one["holds"] for one in claims) else 1)


if __name__ == "__main__":
    main()
