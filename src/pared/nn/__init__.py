"""Layers that carry structure."""

from pared.nn.hard_concrete import HardConcrete
from pared.nn.select import Select
from pared.nn.switch import Switch, Switched
from pared.nn.zero import Zero

__all__ = ["HardConcrete", "Select", "Switch", "Switched", "Zero"]
