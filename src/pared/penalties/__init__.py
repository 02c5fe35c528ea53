"""What is added to the task loss."""

from pared.penalties.base import Penalty
from pared.penalties.dynamic import DynamicPrior
from pared.penalties.groups import exclusive_lasso, group_lasso
from pared.penalties.l1 import l1
from pared.penalties.lp import lp_penalty
from pared.penalties.norms import L1, L2, ElasticNet, HoyerSquare
from pared.penalties.sampling import Sampling

__all__ = [
    "L1",
    "L2",
    "DynamicPrior",
    "ElasticNet",
    "HoyerSquare",
    "Penalty",
    "Sampling",
    "exclusive_lasso",
    "group_lasso",
    "l1",
    "lp_penalty",
]
