"""A paper assembled from the rooms below: one file each, one table of all of them."""

from pared.methods.rules import Rule, SignChange, SignVariance, Threshold
from pared.methods.session import Event, Session
from pared.methods.shrink import Shrink
from pared.methods.strengths import Geometric, Strength, TowardSize
from pared.methods.switches import Switches, add_switches

#: Every method by name; the contract test runs over this table.
METHODS = {"shrink": Shrink}

__all__ = [
    "METHODS",
    "Event",
    "Geometric",
    "Rule",
    "Session",
    "Shrink",
    "SignChange",
    "SignVariance",
    "Strength",
    "Switches",
    "Threshold",
    "TowardSize",
    "add_switches",
]
