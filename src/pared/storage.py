"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path

from pared.errors import RunError


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
