"""Functions on tensors: no modules, no state."""

from pared.ops.prox import group_soft_threshold, soft_threshold
from pared.ops.signs import update_sign_statistics_

__all__ = ["group_soft_threshold", "soft_threshold", "update_sign_statistics_"]
