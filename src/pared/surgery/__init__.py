"""Remove structure from a network while it trains: graph, plan, apply, fold."""

from pared.surgery.apply import apply, bare, prepare
from pared.surgery.axes import find, locate
from pared.surgery.axes import leaves as leaves_of
from pared.surgery.blocks import remove_blocks, results_of, why_stays
from pared.surgery.ddp import remove_ddp
from pared.surgery.declared import declare
from pared.surgery.edges import Edges, edges_plan, remove_edges
from pared.surgery.files import load, save
from pared.surgery.fold import fold, fold_, fold_by
from pared.surgery.gather import Undo
from pared.surgery.graph import Graph, Slot, Space
from pared.surgery.idle import leading_to, remove_idle
from pared.surgery.operate import graph, remove
from pared.surgery.optimizers import refuse_optimizer
from pared.surgery.plan import Constant, Gather, Plan, Resize
from pared.surgery.planner import Living, make_plan
from pared.surgery.sequential import check_sequential, leaves
from pared.surgery.stand_in import stand_in, unnest
from pared.surgery.trace import Example, Step, Value, tensors
from pared.surgery.whole import Whole, keeps_mode, remember, trains
from pared.surgery.zeros import remove_dead

__all__ = [
    "Constant",
    "Edges",
    "Example",
    "Gather",
    "Graph",
    "Living",
    "Plan",
    "Resize",
    "Slot",
    "Space",
    "Step",
    "Undo",
    "Value",
    "Whole",
    "apply",
    "bare",
    "check_sequential",
    "declare",
    "edges_plan",
    "find",
    "fold",
    "fold_",
    "fold_by",
    "graph",
    "keeps_mode",
    "leading_to",
    "leaves",
    "leaves_of",
    "load",
    "locate",
    "make_plan",
    "prepare",
    "refuse_optimizer",
    "remember",
    "remove",
    "remove_blocks",
    "remove_ddp",
    "remove_dead",
    "remove_edges",
    "remove_idle",
    "results_of",
    "save",
    "stand_in",
    "tensors",
    "trains",
    "unnest",
    "why_stays",
]
