"""Functions on tensors: no modules, no state."""

from pared.ops.hoyer import cross_correlation, expected_hoyer, hoyer
from pared.ops.lp import dual_direction, dual_exponent, lp_norm, signed_power
from pared.ops.pattern import Pattern
from pared.ops.prox import exclusive_soft_threshold, group_soft_threshold, soft_threshold
from pared.ops.signs import update_sign_statistics_
from pared.ops.sinkhorn import sinkhorn
from pared.ops.sparse import sparse_linear

__all__ = [
    "Pattern",
    "cross_correlation",
    "dual_direction",
    "dual_exponent",
    "exclusive_soft_threshold",
    "expected_hoyer",
    "group_soft_threshold",
    "hoyer",
    "lp_norm",
    "signed_power",
    "sinkhorn",
    "soft_threshold",
    "sparse_linear",
    "update_sign_statistics_",
]
