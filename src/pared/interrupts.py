"""SIGTERM as Ctrl-C: what is running keeps what it has and says how to go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Let SIGTERM raise `Terminated`, a KeyboardInterrupt, inside of the block, and list the signals that came.

    A handler of the user's own stays, as does an outer block's; only the main thread may have handlers at all.
    """
    seen: list[int] = []
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not mine:
        yield seen
        return

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        seen.append(number)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
