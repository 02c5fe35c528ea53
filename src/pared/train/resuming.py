"""What runs that go on in a folder share: whose folder it is, and where a loader's random numbers were."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pared.errors import RunError
from pared.process import forked_random
from pared.train.checkpoint import load_state, save_state


def claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Note in a folder what its run is about, or make sure that it holds this very run; values may be mappings of tensors.

    Raises:
        RunError: it holds another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.safetensors"
    if not path.exists():
        save_state(path, about)
        return
    there = load_state(path)
    for key, value in about.items():
        if not _same(there.get(key), value):
            told = "" if isinstance(value, Mapping) else f" ({_short(there.get(key))}, here {_short(value)})"
            raise RunError(
                f"{folder} holds a run with another {key}{told}; give the same options to go on with it, or another folder"
            )


def _same(there: Any, here: Any) -> bool:
    if isinstance(here, Mapping):
        found = isinstance(there, Mapping) and there.keys() == here.keys()
        return found and all(torch.equal(there[name], tensor.cpu()) for name, tensor in here.items())
    return there == here


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def generator_states(loader: Any) -> list[Tensor]:
    """Return the states of the generators that a loader and its samplers hold, each once."""
    return [one.get_state() for one in generators_of(loader)]


def set_generator_states(loader: Any, states: Sequence[Tensor]) -> None:
    """Put a loader's generators where they were."""
    for one, state in zip(generators_of(loader), states, strict=True):
        one.set_state(state)


@contextmanager
def kept_generators(loader: Any) -> Iterator[None]:
    """Let what is drawn inside of the block, by a loader's generators or torch's own, be drawn as if it had not been."""
    before = generator_states(loader)
    try:
        with forked_random():
            yield
    finally:
        set_generator_states(loader, before)


def generators_of(loader: Any) -> list[torch.Generator]:
    """Return the generators that a loader and its samplers hold, each once."""
    sampler, by_batch = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    holders = (loader, sampler, by_batch, getattr(by_batch, "sampler", None))
    found = [getattr(one, "generator", None) for one in holders]
    return list(dict.fromkeys(one for one in found if isinstance(one, torch.Generator)))
