"""What is added to the task loss."""

from pared.penalties.groups import group_lasso
from pared.penalties.l1 import l1

__all__ = ["group_lasso", "l1"]
