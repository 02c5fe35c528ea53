"""What stands in the place of the task loss."""

from pared.losses.projected import ProjectedCrossEntropy

__all__ = ["ProjectedCrossEntropy"]
