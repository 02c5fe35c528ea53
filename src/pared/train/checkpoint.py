"""Nested state in one safetensors file: written whole or not at all, read without running anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pared.errors import RunError
from pared.storage import read_tensors, write_atomically

FORMAT = "pared.checkpoint.1"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts, lists, tuples, tensors and JSON scalars to `path`, replacing it in one step.

    Raises:
        RunError: the disk is full or the folder cannot be written; an older file at `path` is untouched.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors)
    # Not flushed: a killed process loses nothing by that, and a flush an epoch would cost more than a small epoch.
    content = save(tensors, metadata={"format": FORMAT, "state": json.dumps(tree)})
    write_atomically(path, content, durable=False)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        RunError: the file is missing, truncated, or no checkpoint of pared.
    """
    from safetensors import SafetensorError

    try:
        metadata, tensors = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise RunError(f"{path} is no checkpoint of this version of pared; start the run anew without --resume")
        return _unpack(json.loads(metadata["state"]), tensors)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{path} cannot be read as a checkpoint ({error}); delete it and resume, or start the run anew"
        ) from None


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["tuple"])
    return {key: _unpack(item, tensors) for key, item in value["items"]}


def generator_for(seed: int, stream: int) -> torch.Generator:
    """Return a CPU generator of its own for `stream`, so that phases do not share random numbers."""
    return torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)
