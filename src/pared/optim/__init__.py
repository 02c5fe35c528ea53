"""Optimizers with rates by class, those that hold weights on a sphere, and proximal steps behind any other."""

from pared.optim.class_rate import ClassRateSGD
from pared.optim.groups import lp_groups
from pared.optim.lp_sgd import LpSGD
from pared.optim.proximal import Proximal
from pared.optim.schedules import piecewise_linear, triangular
from pared.optim.sphere_sgd import SphereSGD

__all__ = ["ClassRateSGD", "LpSGD", "Proximal", "SphereSGD", "lp_groups", "piecewise_linear", "triangular"]
