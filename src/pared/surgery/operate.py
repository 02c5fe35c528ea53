"""The doors of surgery: make a graph, remove entries."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.process import LOCK
from pared.surgery.advice import advise
from pared.surgery.apply import bare, prepare
from pared.surgery.graph import Graph, build, finish
from pared.surgery.optimizers import Optimizers
from pared.surgery.plan import Plan
from pared.surgery.planner import Living, make_plan, numbers
from pared.surgery.prune_masks import plain_view
from pared.surgery.rehearse import Rehearsal
from pared.surgery.trace import Example
from pared.surgery.whole import Whole, keeps_mode, remember


def graph(model: nn.Module, example: Example, *, inputs: bool = False) -> Graph:
    """Return which axes of which tensors of `model` are tied, from one `torch.export` and a proof of it.

    `example` is what the forward pass takes: a tensor, a sequence of positional arguments, or a mapping of keyword
    arguments; content is no matter, shapes are. The graph stays true through every `remove` that is given it.
    The proof traces the network again with every space grown by some entries: what does not follow is fixed, with the
    reason (`print(graph)` shows it). With `inputs`, features of the network's inputs can be removed like units, once
    nothing reads them: the network then takes narrower inputs, and `graph.find("input[1]").kept` says which features.

    Raises:
        SurgeryError: `torch.export` cannot follow the forward pass.
    """
    with LOCK:  # no other thread may trace the network while it is copied
        model = plain_view(bare(model))
        builder = build(model, example, inputs=inputs)
        if not _plain(model):
            Rehearsal(model, example, builder).run()
    made = finish(builder)
    advise(made, model)
    return made


#: torch's own modules whose forward pass uses no size but those of its tensors.
_PLAIN = ("linear", "conv", "batchnorm", "instancenorm", "activation", "dropout", "pooling", "flatten", "padding")


def _plain(model: nn.Module) -> bool:
    """Whether no code but torch's and ours runs, so that there is nothing to prove."""
    known = {"torch.nn.modules.container", "pared.nn.gate", "pared.nn.switch", "pared.nn.select"}
    known |= {f"torch.nn.modules.{name}" for name in _PLAIN}
    return all(
        type(module).__module__ in known
        and not isinstance(module, nn.MultiheadAttention | nn.Unflatten)
        and not (isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups > 1)
        for module in model.modules()
    )


@keeps_mode
def remove(
    model: nn.Module,
    entries: Mapping[str, Sequence[int] | Tensor],
    *,
    graph: Graph,
    optimizer: Optimizers = None,
    ema: Iterable[nn.Module] = (),
    living: Living = "refuse",
) -> Plan:
    """Remove `entries` of spaces or layers, by name, from `model` and all that follows it; return the plan.

    Entries are numbers, or a mask of booleans over all of the space. `optimizer` may be one or several.
    Call it between `optimizer.step()` and the next forward pass. What the network computes in evaluation stays as it
    is: constants that dead channels emit are folded into what reads them. With `living="cut"` entries may be alive,
    and their contribution is dropped. All or nothing: after an error or an interrupt model, optimizers, copies and graph
    are all as they were, or all done.

    Raises:
        SurgeryError: an unknown or fixed space, an entry out of range or alive, all entries of a space, a constant
            that cannot be folded exactly, or optimizer state that cannot follow.
    """
    model, keep = bare(model), kept(graph, entries)
    plan = make_plan(graph, model, keep, living=living)
    commit = prepare(plan, model, optimizer=optimizer, ema=ema)
    with Whole() as undo:
        undo.append(remember(graph))
        commit(undo)
        graph.follow(keep, ((item.bias, item.weight) for item in plan.constants))
    return plan


def kept(graph: Graph, entries: Mapping[str, Sequence[int] | Tensor]) -> dict[str, list[int]]:
    """Return what is left of each named space without `entries`."""
    keep: dict[str, list[int]] = {}
    for name, gone in entries.items():
        space = graph.find(name)
        lost = set(numbers(space.name, space.size, gone))
        if lost and (min(lost) < 0 or max(lost) >= space.size):
            raise SurgeryError(f"entries of {space.name!r} are numbered 0..{space.size - 1}; got {sorted(lost)[:8]}")
        before = keep.get(space.name, range(space.size))
        keep[space.name] = [entry for entry in before if entry not in lost] if lost else list(before)
    return keep
