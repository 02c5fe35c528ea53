"""What pared runs on here."""

from dataclasses import dataclass

import torch

from pared._version import __version__
from pared.native.loading import INSTRUCTIONS, library, why_not


@dataclass(frozen=True)
class Config:
    """Versions, and which kernels sparse layers and steps on the sphere use on this processor; printed as two lines."""

    pared: str
    torch: str
    threads: int
    #: "native", or "torch" where the compiled kernels are missing or switched off.
    kernels: str
    #: The instruction set of the native kernels, and what makes their threads; for torch's, why they are used.
    detail: str

    def __str__(self) -> str:
        return (
            f"pared {self.pared}, torch {self.torch}, {self.threads} threads\nkernels: {self.kernels} ({self.detail})"
        )

    __repr__ = __str__


def show_config() -> Config:
    """Return which kernels are in use; the first call opens them, after which PARED_NATIVE is not read again.

    A notebook shows the answer as text; a script prints it.
    """
    opened = library()
    detail = why_not() if opened is None else f"{INSTRUCTIONS[opened.isa]}, {opened.threading}"
    kind = "torch" if opened is None else "native"
    return Config(__version__, torch.__version__, torch.get_num_threads(), kind, detail)
