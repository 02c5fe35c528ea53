"""Take dead edges out of learned graphs."""

from collections.abc import Iterable

import torch
from torch import nn

from pared.nn.adjacency import SparseAdjacency
from pared.surgery.apply import bare, prepare
from pared.surgery.optimizers import Optimizers
from pared.surgery.plan import Gather, Plan


def edges_plan(model: nn.Module) -> Plan:
    """Return what takes the dead edges out of every `SparseAdjacency` in `model`: an empty plan if none is dead."""
    gathers: list[Gather] = []
    for name, module in bare(model).named_modules():
        if isinstance(module, SparseAdjacency) and not bool(module.alive.all()):
            index = tuple(module.alive.nonzero().flatten().tolist())
            prefix = f"{name}." if name else ""
            gathers += [Gather(f"{prefix}{part}", 0, index) for part in ("theta", "alive", "row", "col")]
    return Plan(tuple(gathers))


@torch.no_grad()
def remove_edges(model: nn.Module, *, optimizer: Optimizers = None, ema: Iterable[nn.Module] = ()) -> Plan:
    """Take edges that were killed out of `model`, the state of `optimizer` and averaged copies; return the plan.

    Call it between `optimizer.step()` and the next forward pass. Values of other edges stay as they are, as what the dead
    ones add to thresholds is kept; in averaged copies too, where the edges are killed first. All or nothing.

    Raises:
        SurgeryError: optimizer state that cannot follow.
    """
    copies, plan = list(ema), edges_plan(model)
    commit = prepare(plan, model, optimizer=optimizer, ema=copies)
    dead = {n: ~m.alive for n, m in bare(model).named_modules() if isinstance(m, SparseAdjacency)}
    for copy in copies:
        for name, gone in dead.items():
            module = bare(copy).get_submodule(name)
            if isinstance(module, SparseAdjacency):
                module.kill(gone.to(module.alive.device))
    commit()
    return plan
