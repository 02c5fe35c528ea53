"""Networks the papers use."""

from pared.models.mlp import mlp

__all__ = ["mlp"]
