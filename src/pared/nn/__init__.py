"""Layers that carry structure."""

from pared.nn.select import Select
from pared.nn.switch import Switch, Switched
from pared.nn.zero import Zero

__all__ = ["Select", "Switch", "Switched", "Zero"]
