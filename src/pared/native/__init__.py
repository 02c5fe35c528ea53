"""The compiled kernels: optional, found and opened when the first operator is used."""

from pared.native.loading import disabled, library

__all__ = ["disabled", "library"]
