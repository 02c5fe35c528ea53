"""Files that are written whole or not at all, and tensors read from them."""

import contextlib
import errno
import os
import re
import secrets
import stat
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
    data = encoded(content)
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


def encoded(content: bytes | str) -> bytes:
    """Return text as UTF-8; what is no character (bytes of a path that no encoding knows) comes as an escape."""
    return content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content


def write_named(path: Path, content: bytes | str) -> None:
    """Write `content` to a path that a person named, whole or not at all where that is possible.

    What is there stays what it is: symbolic links are followed, a file keeps its mode, its owner (if this process may set
    it) and its hard links, and into a pipe, a device or an open descriptor such as /dev/stdout the content is written.

    Raises:
        RunError: it cannot be written.
    """
    data = encoded(content)
    try:
        descriptor = _descriptor(path)
        if descriptor is not None:
            _write_all(os.dup(descriptor), data)
            return
        found = _status(path)
        if found is None:
            target = Path(os.path.realpath(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, data, None)
        elif not stat.S_ISREG(found.st_mode):
            _write_all(os.open(path, os.O_WRONLY), data)
        else:
            _overwrite(Path(os.path.realpath(path)), data, found)
    except BrokenPipeError:
        raise RunError(f"{path} was closed by its reader before everything was written") from None
    except OSError as error:
        raise RunError(f"{path} could not be written ({error.strerror}); choose another place") from None


def _descriptor(path: Path) -> int | None:
    """The number of an open descriptor of this process that a path, or a link of its chain, stands for."""
    step = os.path.abspath(path)
    own = rf"/dev/(?:fd/)?|/proc/(?:self|thread-self|{os.getpid()})/fd/"
    for _ in range(40):
        match = re.fullmatch(rf"(?:{own})(stdout|stderr|(?<=fd/)\d+)", step)
        if match:
            return {"stdout": 1, "stderr": 2}.get(match[1]) or int(match[1])
        try:
            step = os.path.normpath(os.path.join(os.path.dirname(step), os.readlink(step)))
        except OSError:
            return None
    return None


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _overwrite(target: Path, data: bytes, found: os.stat_result) -> None:
    """Replace a regular file; in place where it has other names, or its folder takes no other file."""
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if found.st_nlink == 1:
        try:
            return _replace(target, data, found)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV, errno.EROFS):
                raise
    return _write_all(os.open(target, os.O_WRONLY | os.O_TRUNC), data)


def _replace(target: Path, data: bytes, found: os.stat_result | None) -> None:
    partial = target.with_name(f".pared-{secrets.token_hex(6)}.partial")
    opened = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if found is None else 0o600)
    try:
        if found is not None:
            with contextlib.suppress(OSError):
                os.fchown(opened, found.st_uid, found.st_gid)
            os.fchmod(opened, stat.S_IMODE(found.st_mode))
        _write_all(opened, data, durable=True)
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _write_all(descriptor: int, data: bytes, *, durable: bool = False) -> None:
    """Write everything to an open descriptor, and close it."""
    with os.fdopen(descriptor, "wb", closefd=True) as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(descriptor)
