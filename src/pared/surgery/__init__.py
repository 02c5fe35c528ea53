"""Remove structure from a network while it trains: graph, plan, apply, fold."""

from pared.surgery.apply import apply
from pared.surgery.blocks import remove_blocks
from pared.surgery.ddp import remove_ddp
from pared.surgery.declared import declare
from pared.surgery.files import load, save
from pared.surgery.fold import fold
from pared.surgery.graph import Graph, Slot, Space
from pared.surgery.operate import graph, remove
from pared.surgery.optimizers import refuse_optimizer
from pared.surgery.plan import Constant, Gather, Plan, Resize
from pared.surgery.planner import Living, make_plan
from pared.surgery.sequential import check_sequential, leaves

__all__ = [
    "Constant",
    "Gather",
    "Graph",
    "Living",
    "Plan",
    "Resize",
    "Slot",
    "Space",
    "apply",
    "check_sequential",
    "declare",
    "fold",
    "graph",
    "leaves",
    "load",
    "make_plan",
    "refuse_optimizer",
    "remove",
    "remove_blocks",
    "remove_ddp",
    "save",
]
