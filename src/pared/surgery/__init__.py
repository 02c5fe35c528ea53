"""Remove structure from a network while it trains: graph, plan, apply, fold."""

from pared.surgery.apply import apply, refuse_optimizer
from pared.surgery.fold import fold
from pared.surgery.graph import Graph, Slot, Space, leaves, sequential_graph
from pared.surgery.plan import Constant, Gather, Plan, Resize, make_plan

__all__ = [
    "Constant",
    "Gather",
    "Graph",
    "Plan",
    "Resize",
    "Slot",
    "Space",
    "apply",
    "fold",
    "leaves",
    "make_plan",
    "refuse_optimizer",
    "sequential_graph",
]
