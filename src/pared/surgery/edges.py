"""Take dead edges out of learned graphs."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from pared.nn.adjacency import SparseAdjacency
from pared.surgery.apply import bare, prepare
from pared.surgery.optimizers import Optimizers
from pared.surgery.plan import Gather, Plan
from pared.surgery.whole import Whole, keeps_mode


class Edges:
    """The entries of a learned graph in `model`, as what can leave."""

    def __init__(self, model: nn.Module, adjacency: SparseAdjacency) -> None:
        self.adjacency = adjacency
        modules = model.named_modules(remove_duplicate=False)
        self.names = [name for name, module in modules if module is adjacency]

    def without(self, gone: Sequence[int], sizes: Sequence[int], name: str) -> Plan:
        """Return the plan by which the entries `gone`, of the `sizes` 1 each, leave the graph, under all its names."""
        del name
        lost = set(gone)
        index = tuple(entry for entry in range(len(sizes)) if entry not in lost)
        prefixes = [f"{name}." if name else "" for name in self.names]
        return Plan(tuple(Gather(f"{p}{part}", 0, index) for p in prefixes for part in self.adjacency.entry_state()))


def edges_plan(model: nn.Module) -> Plan:
    """Return what takes the dead edges out of every `SparseAdjacency` in `model`: an empty plan if none is dead."""
    gathers: list[Gather] = []
    model = bare(model)
    for name, module in model.named_modules():
        if isinstance(module, SparseAdjacency) and not bool(module.alive.all()):
            gone = module.alive.logical_not().nonzero().flatten().tolist()
            gathers += Edges(model, module).without(gone, [1] * len(module.alive), name).gathers
    return Plan(tuple(gathers))


@keeps_mode
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
    with Whole() as undo:
        commit(undo)
    return plan
