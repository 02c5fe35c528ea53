"""Functions on tensors: no modules, no state."""

from pared.ops.signs import update_sign_statistics_

__all__ = ["update_sign_statistics_"]
