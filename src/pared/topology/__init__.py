"""Which weights of a network live: where they are at the start, when they change, and by what they are judged."""

from pared.topology.compressed import Compressed
from pared.topology.connections import Carry, Connections, Masked
from pared.topology.distributions import Distribution, spread
from pared.topology.schedules import Constant, Cosine, Cubic, Linear, Schedule

__all__ = [
    "Carry",
    "Compressed",
    "Connections",
    "Constant",
    "Cosine",
    "Cubic",
    "Distribution",
    "Linear",
    "Masked",
    "Schedule",
    "spread",
]
