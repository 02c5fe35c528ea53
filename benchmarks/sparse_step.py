"""A whole sparse training step beside dense ones: one process, one thread, interleaved, minimum and median.

    python benchmarks/sparse_step.py [--json] [--quick] [--width 1024] [--batch 128]

The network is a multilayer perceptron 784-W-W-W-10 with biases and ReLU; its three hidden layers are sparse, the layer of
the outputs is dense, behind a `BatchMajor`. A step is: zero gradients, forward, cross-entropy, backward, SGD with
momentum. Sparse steps use our kernels ("native") or torch's sparse CSR ("torch"). Their rivals train all weights in dense
torch ("dense"), the same through torch.compile ("compiled"), dense weights that are multiplied by a mask ("masked"), or
SciPy's CSR matrices with the same arithmetic written by hand ("scipy"). A claim's ratio is the minimum of dense over that
of ours (of time passed or processor time, whichever gives less), with a bar to reach at batch 128; what the other rivals
took stands beside it. Short steps are timed behind an untimed one of the same network. The first losses of all that train
the same sparse network must agree, or nothing is printed.
"""

import contextlib
import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from pared.measure.latency import threads
from pared.native import library
from pared.nn import SparseLinear
from stacks import (
    INPUTS,
    OUTPUTS,
    Claim,
    claim,
    compiler,
    finish,
    options,
    rebuilt,
    say,
    sparse_network,
    take_turns,
    without_native,
)

#: Bars at batch 128: width -> sparsity -> times faster than dense.
NATIVE = {1024: {0.9: 3.0, 0.95: 5.5, 0.98: 9.0}, 4096: {0.9: 2.8, 0.95: 5.0, 0.98: 11.0}}
TORCH = {0.9: 1.8, 0.95: 3.7, 0.98: 5.0}
BATCH, RATE, MOMENTUM = 128, 0.01, 0.9
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
    return take_turns(steps, ("native", "torch", "dense"), seconds)


def claims_of(width: int, sparsity: float, batch: int, rivals: tuple[str, ...], seconds: float) -> list[Claim]:
    """Return what is claimed of our paths for one network and batch."""
    times = measure(contestants(width, sparsity, batch, rivals), seconds)
    found = []
    for path in ("native", "torch"):
        if path in times:
            bars = NATIVE[width] if path == "native" else TORCH
            name = f"sparse training step, {path} kernels, width {width}, {sparsity:.0%} sparse, batch {batch}: times faster"
            found.append(
                claim(f"{name} than dense", times, path, "dense", bars.get(sparsity) if batch == BATCH else None)
            )
    return found


def main() -> None:
    arguments = options(__doc__, "one width (1024) and batch (128) with two rivals", NATIVE, (32, BATCH, 512))
    note = "left out by --quick" if arguments.quick else compiler()
    rivals: tuple[str, ...] = ("dense", "masked") if note else ("dense", "masked", "compiled")
    cases = [(arguments.width or 1024, s, arguments.batch or BATCH) for s in (0.9, 0.95, 0.98)]
    if not arguments.quick:
        rivals = (*rivals, "scipy")
        cases = [(w, s, b) for w in NATIVE for b in (32, BATCH, 512) for s in (0.8, 0.9, 0.95, 0.98, 0.99)]
    cases = [c for c in cases if arguments.width in (None, c[0]) and arguments.batch in (None, c[2])]
    claims: list[Claim] = []
    with threads(1), warnings.catch_warnings() if not note else contextlib.nullcontext():
        if not note:
            warnings.filterwarnings("ignore", category=DeprecationWarning)
        for width, sparsity, batch in cases:
            seconds = 6.0 if width == 1024 else 20.0
            found = claims_of(width, sparsity, batch, rivals, seconds)
            claims += found
            if not arguments.json:
                say(found)
    finish(claims, {"torch.compile": note or "measured"}, as_json=arguments.json)


if __name__ == "__main__":
    main()
