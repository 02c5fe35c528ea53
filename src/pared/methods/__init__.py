"""A paper assembled from the rooms below: one file each, one table of all of them."""

from pared.methods.deep_r import DeepR
from pared.methods.gates import Gates
from pared.methods.gradual import GradualMagnitude
from pared.methods.group_lasso import GroupLasso
from pared.methods.l0 import L0
from pared.methods.lpss import LpSS
from pared.methods.method import Method, UnitMethod
from pared.methods.prune import Prune
from pared.methods.rigl import RigL
from pared.methods.rules import Rule, SignChange, SignVariance, Threshold
from pared.methods.sdr import SDR
from pared.methods.session import Event, Session
from pared.methods.set import SET
from pared.methods.shrink import Shrink
from pared.methods.slimming import Slimming
from pared.methods.snfs import SNFS
from pared.methods.snip import SNIP, SNIPDynamic
from pared.methods.static import Static
from pared.methods.strengths import Geometric, Strength, TowardSize
from pared.methods.switches import Switches, add_switches
from pared.methods.unit_session import UnitSession
from pared.methods.weight_session import Rewired, WeightSession
from pared.methods.weights import WeightMethod

#: Methods that remove units, and those that choose connections, by name; the contract tests run over these tables.
UNIT_METHODS: dict[str, type[UnitMethod]] = {
    "shrink": Shrink,
    "group lasso": GroupLasso,
    "slimming": Slimming,
    "prune": Prune,
    "l0": L0,
    "gates": Gates,
}
WEIGHT_METHODS: dict[str, type[WeightMethod]] = {
    "static": Static,
    "set": SET,
    "rigl": RigL,
    "snip": SNIP,
    "snip dynamic": SNIPDynamic,
    "deep r": DeepR,
    "snfs": SNFS,
    "sdr": SDR,
    "gradual magnitude": GradualMagnitude,
    "lpss": LpSS,
}
METHODS: dict[str, type[Method]] = {**UNIT_METHODS, **WEIGHT_METHODS}

__all__ = [
    "L0",
    "METHODS",
    "SDR",
    "SET",
    "SNFS",
    "SNIP",
    "UNIT_METHODS",
    "WEIGHT_METHODS",
    "DeepR",
    "Event",
    "Gates",
    "Geometric",
    "GradualMagnitude",
    "GroupLasso",
    "LpSS",
    "Method",
    "Prune",
    "Rewired",
    "RigL",
    "Rule",
    "SNIPDynamic",
    "Session",
    "Shrink",
    "SignChange",
    "SignVariance",
    "Slimming",
    "Static",
    "Strength",
    "Switches",
    "Threshold",
    "TowardSize",
    "UnitMethod",
    "UnitSession",
    "WeightMethod",
    "WeightSession",
    "add_switches",
]
