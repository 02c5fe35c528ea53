"""A paper assembled from the rooms below: one file each, one table of all of them."""

from pared.methods.group_lasso import GroupLasso
from pared.methods.l0 import L0
from pared.methods.method import Method
from pared.methods.prune import Prune
from pared.methods.rules import Rule, SignChange, SignVariance, Threshold
from pared.methods.session import Event, Session
from pared.methods.shrink import Shrink
from pared.methods.slimming import Slimming
from pared.methods.strengths import Geometric, Strength, TowardSize
from pared.methods.switches import Switches, add_switches

#: Every method by name; the contract test runs over this table.
METHODS: dict[str, type[Method]] = {
    "shrink": Shrink,
    "group lasso": GroupLasso,
    "slimming": Slimming,
    "prune": Prune,
    "l0": L0,
}

__all__ = [
    "L0",
    "METHODS",
    "Event",
    "Geometric",
    "GroupLasso",
    "Method",
    "Prune",
    "Rule",
    "Session",
    "Shrink",
    "SignChange",
    "SignVariance",
    "Slimming",
    "Strength",
    "Switches",
    "Threshold",
    "TowardSize",
    "add_switches",
]
