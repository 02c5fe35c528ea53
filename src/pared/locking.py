"""Locks on files that end with their process, however it ends, and that say who holds them."""

import contextlib
import json
import os
import socket
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from pared.errors import RunError

#: The lock of a folder, which belongs to one run at a time.
NAME = ".pared.lock"


class Lock:
    """A lock on the file `path`, taken from the operating system; two in one process exclude each other too.

    Where a file system knows no locks it is always free.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self) -> bool:
        """Take the lock, and return whether it was free.

        Raises:
            OSError: the file cannot be written.
        """
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _locked(file):
                os.close(file)
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), self.path.stat()):
                    break
            os.close(file)  # its holder has just removed it
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S%z")}
        os.ftruncate(file, 0)
        os.write(file, json.dumps(about).encode())
        self._file = file
        _HELD.add(self)
        return True

    def release(self) -> None:
        """Let it go; the file is removed."""
        if self._file is None:
            return
        if sys.platform == "win32":  # where an open file cannot be removed
            self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Close the file; in a forked child this leaves the lock with its parent."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def holder(self) -> str:
        """Return who holds the lock, in words."""
        try:
            about = json.loads(self.path.read_text())
            return f"process {about['pid']} on {about['host']} since {about['since']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "another process"


@contextlib.contextmanager
def held(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Keep `folder`, which is made if need be, to one run while the block is open; wait so many seconds for it.

    Raises:
        RunError: another run has it, or it cannot be made.
    """
    lock, made = Lock(folder / NAME), not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + wait
        while not (free := lock.take()) and time.monotonic() < until:
            time.sleep(0.02)
    except OSError as error:
        raise RunError(f"{folder} cannot be created ({error.strerror}); choose another folder") from None
    if not free:
        raise RunError(
            f"{folder} is in use by {lock.holder()}; wait for it to end or stop it, or choose another folder"
        )
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            if made:
                folder.rmdir()  # nothing was written


if sys.platform == "win32":
    import msvcrt

    def _locked(file: int) -> bool:
        os.lseek(file, 2**30, os.SEEK_SET)  # beyond what says who it is, so that this can be read
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(file, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _locked(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # no locks here
        return True


_HELD: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    for lock in list(_HELD):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
