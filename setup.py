"""Builds the optional kernels of `pared.native`; without a compiler, or with PARED_NATIVE=0, pared installs without them."""

import os
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class BuildKernels(build_ext):
    """Try to compile with threads of OpenMP, then with those of the standard library."""

    def build_extension(self, ext: Extension) -> None:
        """Compile `ext`; what fails twice is left out, since the extension is optional."""
        if self.compiler.compiler_type == "msvc":
            raise_unsupported()
        plain = ext.extra_compile_args, ext.extra_link_args
        ext.extra_compile_args, ext.extra_link_args = [*plain[0], "-fopenmp"], [*plain[1], "-fopenmp"]
        try:
            super().build_extension(ext)
        except Exception:
            ext.extra_compile_args, ext.extra_link_args = [*plain[0], "-pthread"], [*plain[1], "-pthread"]
            super().build_extension(ext)


def raise_unsupported() -> None:
    """Say that the kernels are written in the vector types of GCC and Clang."""
    from setuptools.errors import CompileError

    raise CompileError("pared's kernels need GCC or Clang")


def extensions() -> list[Extension]:
    """Return the kernels, unless the environment says that none are wanted."""
    if os.environ.get("PARED_NATIVE") == "0":
        return []
    flags: dict[str, Any] = {
        "extra_compile_args": ["-std=c++17", "-O3", "-fvisibility=hidden"],
        "depends": ["src/pared/native/sweep.inc"],
    }
    return [
        Extension(
            "pared.native._kernels",
            ["src/pared/native/kernels.cpp"],
            language="c++",
            py_limited_api=True,  # the library is opened by ctypes and knows nothing of Python
            optional=True,
            **flags,
        )
    ]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
