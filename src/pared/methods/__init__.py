"""A paper assembled from the rooms below: one file each, one table of all of them."""

from pared.methods.session import Event, Session
from pared.methods.shrink import Shrink

#: Every method by name; the contract test runs over this table.
METHODS = {"shrink": Shrink}

__all__ = ["METHODS", "Event", "Session", "Shrink"]
