"""Builds the optional kernels of `pared.native`; without a compiler, or with PARED_NATIVE=0, pared installs without them."""

import os

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = Extension(
    "pared.native._kernels",
    ["src/pared/native/kernels.cpp"],
    depends=[
        f"src/pared/native/{name}"
        for name in ("conv.h", "conv.inc", "conv_run.inc", "sphere.inc", "sweep.inc", "turn.inc")
    ],
    language="c++",
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"],
    py_limited_api=True,  # the library is opened by ctypes and knows nothing of Python
    optional=True,
)


class BuildKernels(build_ext):
    """Try to compile with threads of OpenMP, then with those of the standard library."""

    def build_extension(self, ext: Extension) -> None:
        """Compile `ext`; what fails twice is left out, since the extension is optional."""
        if self.compiler.compiler_type == "msvc":
            raise CompileError("pared's kernels are written in the vector types of GCC and Clang")
        compiling, linking = ext.extra_compile_args, ext.extra_link_args
        for number, flag in enumerate(("-fopenmp", "-pthread")):
            ext.extra_compile_args, ext.extra_link_args = [*compiling, flag], [*linking, flag]
            try:
                return super().build_extension(ext)
            except Exception:
                if number:
                    raise
        return None


setup(
    ext_modules=[] if os.environ.get("PARED_NATIVE") == "0" else [KERNELS],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
