"""One epoch of training, for every method alike."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared.methods.session import Session
from pared.train.arrays import Arrays, criterion

#: Rows are gathered in the epoch's order this many numbers at a time: one gather per batch costs more than the step
#: of a tiny network.
GATHER = 2**22


def batches(data: Arrays, batch_size: int, generator: torch.Generator) -> Iterator[Arrays]:
    """Yield the rows once in random order in full batches; the last, incomplete one is left for another epoch."""
    count = len(data) // batch_size
    order = torch.randperm(len(data), generator=generator)[: count * batch_size].to(data.x.device)
    together = max(1, GATHER // max(1, data.x.shape[1] * batch_size)) * batch_size
    for piece in order.split(together):
        rows = data.rows(piece)
        weights = [None] * (len(piece) // batch_size) if rows.w is None else rows.w.split(batch_size)
        for x, y, w in zip(rows.x.split(batch_size), rows.y.split(batch_size), weights, strict=True):
            yield Arrays(x, y, w)


def train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    data: Arrays,
    *,
    batch_size: int,
    generator: torch.Generator,
    session: Session | None = None,
    after_step: Callable[[], None] | None = None,
) -> float:
    """Train one epoch and return the mean loss, penalty included.

    Without a session the optimizer steps plainly. `after_step` runs after each step (a scheduler's `step`, say).
    """
    model.train()
    total, count = torch.zeros((), device=data.x.device), 0
    for batch in batches(data, batch_size, generator):
        if session is None:
            loss = criterion(model(batch.x), batch.y, batch.w)
            loss.backward()
            optimizer.step()
        else:
            with session.batch(batch.y):
                loss = criterion(model(batch.x), batch.y, batch.w) + session.penalty()
                loss.backward()
            session.step()
        optimizer.zero_grad()
        total += loss.detach()
        count += 1
        if after_step is not None:
            after_step()
    return float(total) / max(count, 1)


def adam(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Return Adam over the model's parameters, in its fused form where the device has one."""
    parameters = list(model.parameters())
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


def mean_loss(outputs: Tensor, data: Arrays) -> float:
    """Return the task loss of ready `outputs` on `data`, without penalty."""
    return float(criterion(outputs, data.y, data.w))
