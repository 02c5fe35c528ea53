"""What is added to the task loss."""

from pared.penalties.l1 import l1

__all__ = ["l1"]
