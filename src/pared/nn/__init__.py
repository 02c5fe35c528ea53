"""Layers that carry structure."""

from pared.nn.select import Select
from pared.nn.switch import Switch

__all__ = ["Select", "Switch"]
