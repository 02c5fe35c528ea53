"""What is added to the task loss."""

from pared.penalties.groups import exclusive_lasso, group_lasso
from pared.penalties.l1 import l1
from pared.penalties.lp import lp_penalty

__all__ = ["exclusive_lasso", "group_lasso", "l1", "lp_penalty"]
