"""What torch and Python keep once for the whole process, changed safely by several threads at once."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

#: Held while something runs that one thread at a time can do: `torch.export`, or a fork of the global random state.
LOCK = threading.RLock()


class Shared:
    """A setting that blocks in several threads may hold at once: the first block makes it, the last takes it back."""

    def __init__(self, hold: Callable[[], AbstractContextManager[Any]]) -> None:
        self._hold, self._count, self._lock = hold, 0, threading.Lock()
        self._held: AbstractContextManager[Any] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the setting inside the block."""
        with self._lock:
            if not self._count:
                self._held = self._hold()
                self._held.__enter__()
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count and self._held is not None:
                    self._held.__exit__(None, None, None)


_filters_kept = Shared(warnings.catch_warnings)


@contextmanager
def silent(category: type[Warning] = Warning, message: str = "") -> Iterator[None]:
    """Ignore warnings inside the block; Python has one list of filters for all threads, so other threads' too."""
    with _filters_kept():
        warnings.filterwarnings("ignore", message=message, category=category)
        yield


@contextmanager
def forked_random(devices: Sequence[Any] = ()) -> Iterator[None]:
    """Let torch's global random state, on the CPU and on `devices`, go on after the block as if nothing had been drawn."""
    with LOCK, torch.random.fork_rng(devices=list(devices)):
        yield


_flags: dict[int, tuple[nn.Module, bool, int]] = {}  # by id: a module, its own flag, the blocks that it is in
_flags_lock = threading.Lock()


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode for a while; every module's own flag comes back after the last thread's block."""
    modules = list(model.modules())
    with _flags_lock:
        for module in modules:
            _, flag, count = _flags.get(id(module), (module, module.training, 0))
            _flags[id(module)] = module, flag, count + 1
            module.training = False
    try:
        yield
    finally:
        with _flags_lock:
            for module in modules:
                _, flag, count = _flags.pop(id(module))
                if count > 1:
                    _flags[id(module)] = module, flag, count - 1
                else:
                    module.training = flag


_counts: list[int] = []  # of the blocks of `threads` under way, in all threads
_counts_lock = threading.Lock()
_count_before = 1
_own = threading.local()  # `depth`: the blocks that this thread is in


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch's kernels on `count` threads inside the block, and on as many as before after it.

    A thread that has not used torch yet takes the number that was set last, wherever that was: one within another
    thread's block goes back to the number before all blocks.
    """
    global _count_before
    with _counts_lock:
        before = torch.get_num_threads()
        if not _counts:
            _count_before = before
        elif before in _counts and not getattr(_own, "depth", 0):
            before = _count_before
        _counts.append(count)
        _own.depth = getattr(_own, "depth", 0) + 1
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _counts_lock:
            _counts.remove(count)
            _own.depth -= 1
            torch.set_num_threads(before)
