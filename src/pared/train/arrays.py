"""Rows as tensors, and the loss of a task on them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Criterion = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Arrays:
    """Encoded rows: `x` (n, d) float32; `y` (n,) int64 labels or (n, t) float32 targets; weights `w` (n,) or None."""

    x: Tensor
    y: Tensor
    w: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def to(self, device: torch.device | str) -> "Arrays":
        """Return the same rows on `device`."""
        return Arrays(self.x.to(device), self.y.to(device), None if self.w is None else self.w.to(device))

    def columns(self, index: Tensor) -> "Arrays":
        """Return the rows with the features `index` only."""
        return Arrays(self.x.index_select(1, index.to(self.x.device)), self.y, self.w)

    def rows(self, index: Tensor) -> "Arrays":
        """Return the rows `index`, int64 (m,)."""
        return Arrays(self.x[index], self.y[index], None if self.w is None else self.w[index])


def balanced(rows: Arrays, classes: int) -> Arrays:
    """Return the rows with weights under which every class counts alike, times their own weights, mean 1."""
    counts = torch.bincount(rows.y, minlength=classes).clamp(min=1)
    weights = (len(rows) / counts.to(rows.x.dtype))[rows.y] * (1.0 if rows.w is None else rows.w)
    return Arrays(rows.x, rows.y, weights / weights.mean())


def criterion(outputs: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    """Return the mean loss, a scalar: cross-entropy for integer `y`, else squared error averaged over targets.

    Shapes: `outputs` (n, classes) or (n, t). With weights `w` (n,) the mean is weighted by them without renormalising
    in the batch, so that a batch of light rows moves the network less.
    """
    if not y.is_floating_point():
        if w is None:
            return F.cross_entropy(outputs, y)
        return (F.cross_entropy(outputs, y, reduction="none") * w).mean()
    if w is None:
        return F.mse_loss(outputs, y)
    return (F.mse_loss(outputs, y, reduction="none").mean(1) * w).mean()


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, *, rows: int = 65_536) -> Tensor:
    """Return the evaluation outputs for all rows of `x`, in pieces of `rows` to bound memory; the mode is restored."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(piece) for piece in x.split(rows)])
    finally:
        model.train(training)
