"""Training on a loader's batches, for any network."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared.errors import ConfigError, DataError
from pared.methods.session import Session
from pared.surgery.trace import arguments

#: Takes what the network gives and the targets; returns a scalar.
Loss = Callable[[Any, Any], Tensor]


def train_on(
    model: nn.Module,
    optimizer: Optimizer,
    loader: Iterable[Any],
    loss: Loss,
    *,
    session: Session | None = None,
    around: Callable[[Any, Any], AbstractContextManager[None]] | None = None,
    after_step: Callable[[], object] | None = None,
) -> float:
    """Train one epoch on the pairs (x, y) of `loader` and return the mean task loss, penalty not included.

    x is what the network takes: a tensor, a sequence of arguments, or a mapping of keyword arguments. Batches go to the
    device of the network. What `around` gives of x and y is open for the forward and the backward pass.

    Raises:
        DataError: a batch is no pair, or there is none.
    """
    model.train()
    device = next(model.parameters()).device
    total, count = torch.zeros((), device=device), 0
    for batch in loader:
        x, y = pair(batch, device)
        with nullcontext() if around is None else around(x, y):
            value = loss(call(model, x), y)
            (value if session is None else value + session.penalty()).backward()
        optimizer.step()  # a session follows
        optimizer.zero_grad()
        total += value.detach()
        count += 1
        if after_step is not None:
            after_step()
    if not count:
        raise DataError("the training loader gave no batch; give one that can be gone through again and again")
    return float(total) / count


@torch.no_grad()
def recalibrate(model: nn.Module, loader: Iterable[Any], batches: int = 30) -> None:
    """Take the running statistics of batch norms anew, as plain means over the first `batches` of `loader`.

    They lag behind when factors and weights move fast, so that a network is judged by others than it was trained with.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
    if not norms:
        return
    device, momenta = next(model.parameters()).device, [norm.momentum for norm in norms]
    count = 0
    try:
        for batch in islice(loader, batches):
            if not count:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # torch's word for a plain mean
                model.train()
            call(model, pair(batch, device)[0])
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not count:
        raise DataError("the training loader gave no batch; give one that can be gone through again and again")


def length(loader: Iterable[Any]) -> int:
    """Return how many batches a loader gives.

    Raises:
        ConfigError: it does not know, or has none.
    """
    try:
        batches = len(loader)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(
            "train_loader must know its length (len), as the schedule is counted in steps; a DataLoader over a sized "
            "data set or a list of batches does"
        ) from None
    if batches < 1:
        raise ConfigError(f"train_loader is empty{_why_empty(loader)}")
    return batches


def _why_empty(loader: Any) -> str:
    size = getattr(loader, "batch_size", None)
    if not isinstance(size, int) or not getattr(loader, "drop_last", False):
        return ""
    return f": with drop_last=True, batch_size={size} is more than the rows there are; lower it"


def call(model: nn.Module, x: Any) -> Any:
    """Return what `model` gives for one batch."""
    args, kwargs = arguments(x)
    return model(*args, **kwargs)


def pair(batch: Any, device: torch.device) -> tuple[Any, Any]:
    """Return a batch's inputs and targets on `device`.

    Raises:
        DataError: it is no pair.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise DataError(f"the training loader must give pairs (x, y); got {type(batch).__name__}")
    return moved(batch[0], device), moved(batch[1], device)


def moved(item: Any, device: torch.device) -> Any:
    """Return `item`, its tensors on `device`."""
    if isinstance(item, Tensor):
        return item.to(device)
    if isinstance(item, Mapping):
        return {key: moved(value, device) for key, value in item.items()}
    return type(item)(moved(value, device) for value in item) if isinstance(item, list | tuple) else item


def first_rows(item: Any, rows: int) -> Any:
    """Return `item`, its tensors cut to their first `rows` rows."""
    if isinstance(item, Tensor):
        return item[:rows] if item.ndim else item
    if isinstance(item, Mapping):
        return {key: first_rows(value, rows) for key, value in item.items()}
    return type(item)(first_rows(value, rows) for value in item) if isinstance(item, list | tuple) else item
