"""What decides a run, in short: hashes of weights and of a loader's data, names of functions and of what they hold."""

import functools
import hashlib
import random
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from pared.train.resuming import generators_of, kept_generators

#: Rows of larger tensors are taken at equal distances.
MOST = 2**26


def digest(value: Any) -> str:
    """Return the hash of a tensor, an array, a scalar, or of nested mappings and sequences of them."""
    found = hashlib.blake2b(digest_size=16)
    _feed(found, value)
    return found.hexdigest()


def data_print(loader: Any) -> str:
    """Return the hash of a loader's first batch under a fixed seed, and of all rows where it holds them in memory.

    Nothing is drawn from its generators. Where the same seed gives another batch each time, it is "" and nothing is known.
    """
    if isinstance(loader, list | tuple):
        return digest(loader)
    first, second = (_first(loader) for _ in range(2))
    if first != second:
        return ""
    held = getattr(getattr(loader, "dataset", None), "tensors", None)
    return digest([first, held if isinstance(held, list | tuple) else None])


def name_of(function: Any) -> str:
    """Return a function's name with the constants in it, or a module's with its options and state."""
    if isinstance(function, functools.partial):
        return f"{name_of(function.func)}({function.args}, {function.keywords})"
    if isinstance(function, nn.Module):
        return f"{function!r} {digest(function.state_dict())}"
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    code = getattr(function, "__code__", None)
    if not isinstance(code, types.CodeType):
        return name
    return f"{name} {[item for item in code.co_consts if isinstance(item, int | float) and item is not None]} {code.co_names}"


def optimizer_name(make: Callable[[Iterable[nn.Parameter]], Optimizer]) -> str:
    """Return the kind and the options of the optimizer that `make` makes."""
    made = make([nn.Parameter(torch.zeros(1))])
    group = {key: value for key, value in made.param_groups[0].items() if key not in ("params", "param_names")}
    return f"{type(made).__name__} {sorted((key, str(value)) for key, value in group.items())}"


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        tensor = value.detach().to_dense().cpu()
        if tensor.numel() > MOST and tensor.ndim:
            tensor = tensor[:: -(-tensor.numel() // MOST)]
        found.update(f"{tuple(value.shape)} {value.dtype}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        found.update(f"{value.shape} {value.dtype}".encode() + (b"" if value.dtype.hasobject else value.tobytes()))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            found.update(f"{key}:".encode())
            _feed(found, item)
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)}[".encode())
        for item in value:
            _feed(found, item)
    elif isinstance(value, str | int | float | bool | None):
        found.update(f"{value!r},".encode())
    else:
        found.update(type(value).__qualname__.encode())


def _first(loader: Any) -> str:
    """The hash of the first batch, workers left out of it."""
    with kept_generators(loader), _seeded(loader):
        if (
            isinstance(loader, DataLoader)
            and loader.batch_sampler is not None
            and hasattr(loader.dataset, "__getitem__")
        ):
            places = next(iter(loader.batch_sampler), [])
            return digest(loader.collate_fn([loader.dataset[place] for place in places]))
        return digest(next(iter(loader), None))


@contextmanager
def _seeded(loader: Any) -> Iterator[None]:
    """Let whatever draws begin at a seed, and go on after the block as if nothing had been drawn."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what data sets draw from
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what data sets draw from
    torch.default_generator.manual_seed(0)
    for generator in generators_of(loader):
        generator.manual_seed(0)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002 - what data sets draw from
