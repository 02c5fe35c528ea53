"""Files that are written whole or not at all, and tensors read from them."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pared.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(path: Path, *, mmap: bool = False) -> "tuple[dict[str, str], dict[str, Tensor]]":
    """Return the metadata and the tensors of a safetensors file, on the CPU.

    The tensors are copies: what happens to the file later changes nothing. With `mmap` they stay mapped to it, so that
    only the pages that are used are read; a file that is overwritten in place then changes them, and one that is
    truncated ends the process.

    Raises:
        SafetensorError, OSError, ValueError: the file is missing or damaged; callers say what it should have been.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata() or {}, tensors if mmap else {name: tensor.clone() for name, tensor in tensors.items()}


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write `content` beside `path`, flush it to the disk if `durable`, and rename it into place.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(
            f"{path} could not be written ({error.strerror}); free some space or choose another place"
        ) from None
