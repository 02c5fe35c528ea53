"""Finding and opening the compiled kernels."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

#: What `pared_version` of kernels.cpp must return: a library built from older sources is left alone.
VERSION = 7
#: The instruction sets that kernels.cpp knows, by its numbers for them.
INSTRUCTIONS = ("portable", "AVX2", "AVX-512")

_SIZES, _POINTER, _INT, _NUMBER = [ctypes.c_int64] * 4, ctypes.c_void_p, ctypes.c_int, ctypes.c_double
#: The arguments of every function: sizes, pointers, numbers and switches, instruction set (-1 for the best) and threads.
_ARGUMENTS = {
    **{f"pared_product_{t}": [*_SIZES, *[_POINTER] * 7, _INT, _INT, _INT] for t in ("f32", "f64")},
    **{f"pared_stack_{t}": [_POINTER, *_SIZES[:2], _POINTER, _POINTER, _INT, _INT, _INT] for t in ("f32", "f64")},
    **{f"pared_dots_{t}": [*_SIZES, *[_POINTER] * 6, _INT, _INT] for t in ("f32", "f64")},
    **{f"pared_backward_{t}": [*_SIZES, *[_POINTER] * 8, _INT, _INT] for t in ("f32", "f64")},
    **{f"pared_turn_{t}": [*_SIZES[:2], _POINTER, _POINTER, _INT, _INT] for t in ("f32", "f64")},
    **{f"pared_conv_{t}": [_POINTER, ctypes.c_int64, *[_POINTER] * 6, _INT, _INT] for t in ("f32", "f64")},
    **{f"pared_conv_backward_{t}": [_POINTER, ctypes.c_int64, *[_POINTER] * 8, _INT, _INT] for t in ("f32", "f64")},
    **{
        f"pared_sphere_{t}": [*_SIZES[:2], *[_POINTER] * 6, *[_NUMBER] * 4, *[_INT] * 3, _INT, _INT]
        for t in ("f32", "f64")
    },
}


@dataclass(frozen=True)
class Library:
    """The opened kernels: their functions by name, the best instruction set of this processor, what makes threads."""

    functions: dict[str, "ctypes._NamedFuncPointer"]
    isa: int
    threading: str


_OFF: ContextVar[bool] = ContextVar("pared_native_off", default=False)


def library() -> Library | None:
    """Return the kernels, or None where there are none or none are wanted; `why_not` says which."""
    return None if _OFF.get() else _opened()[0]


def why_not() -> str:
    """Return in a few words why `library` returns None, or "" if it does not."""
    return "switched off in this block" if _OFF.get() else _opened()[1]


@contextmanager
def disabled() -> Iterator[None]:
    """Use torch's own kernels inside the block, to compare with them; in this thread only."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


@cache
def _opened() -> tuple[Library | None, str]:
    """Return the kernels and "", or None and the reason; the environment is read once, at the first use."""
    if os.environ.get("PARED_NATIVE") == "0":
        return None, "PARED_NATIVE=0 in the environment"
    spec = find_spec("pared.native._kernels")
    if spec is None or spec.origin is None:
        return None, "not built: pared was installed without a compiler"
    try:
        opened = ctypes.CDLL(spec.origin)
        version = int(opened.pared_version())
    except (OSError, AttributeError) as error:
        return None, f"{spec.origin} cannot be opened: {error}"
    if version != VERSION:
        return None, f"{spec.origin} is of version {version}, not {VERSION}: install pared again"
    functions = {}
    for name, arguments in _ARGUMENTS.items():
        function = getattr(opened, name)
        function.argtypes, function.restype = arguments, _INT
        functions[name] = function
    threading = "OpenMP" if opened.pared_threading() else "std::thread"
    return Library(functions, int(opened.pared_best_isa()), threading), ""
