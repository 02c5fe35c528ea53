"""A removal in several processes at once: rank 0 decides, all agree, and the wrapper is made again."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pared.errors import SurgeryError
from pared.surgery.apply import prepare
from pared.surgery.graph import Graph
from pared.surgery.operate import kept
from pared.surgery.optimizers import Optimizers
from pared.surgery.plan import Plan
from pared.surgery.planner import Living, make_plan
from pared.surgery.trace import tensors
from pared.surgery.whole import Whole, keeps_mode, remember

Wrap = Callable[[nn.Module], DistributedDataParallel]
Result = TypeVar("Result")


@keeps_mode
def remove_ddp(
    wrapped: DistributedDataParallel,
    entries: Mapping[str, Sequence[int] | Tensor],
    *,
    graph: Graph,
    optimizer: Optimizers = None,
    ema: Iterable[nn.Module] = (),
    living: Living = "refuse",
    wrap: Wrap | None = None,
) -> DistributedDataParallel:
    """Remove `entries` on all ranks and return the network wrapped anew; every rank has to call it.

    Rank 0's `entries` and constants hold for all. `graph` is of the network itself (`pared.graph(wrapped.module, …)`),
    made on each rank. Each rank prepares its part, and only when all have, and agree, is anything changed; where that
    fails on one, or is interrupted, all take it back. `wrap` makes the new wrapper; without it, it has the settings and
    hooks of the old one, which must not be used any more. If `wrap` itself fails, the removal stands: wrap
    the network by hand, on every rank.

    Raises:
        SurgeryError: on every rank alike, with nothing changed on any: what `pared.remove` refuses, gradients that differ
            between ranks (a half-done accumulation), networks or optimizers that differ, or a change that failed on a rank.
    """
    model, talk = wrapped.module, _Talk(wrapped)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    _agree(talk.everyone({"network": _fingerprint(model, optimizers, graph), "gradients": _gradients(wrapped)}))
    told = talk.everyone(_decide(graph, model, entries, living) if talk.rank == 0 else {})[0]
    if "error" in told:
        raise SurgeryError(told["error"])
    plan, keep = Plan.from_json(told["plan"]), told["keep"]
    commit = talk.together(lambda: prepare(plan, model, optimizer=optimizers, ema=ema), "cannot take part")
    with Whole() as undo:
        undo.append(remember(graph))

        def change() -> None:
            commit(undo)
            graph.follow(keep, ((item.bias, item.weight) for item in plan.constants))

        talk.together(change, "failed to change its part")
    return (wrap or (lambda module: _again(module, wrapped)))(model)


class _Talk:
    """JSON between the ranks of a wrapper's process group."""

    def __init__(self, wrapped: DistributedDataParallel) -> None:
        self.group = wrapped.process_group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.device = next(wrapped.module.parameters()).device

    def everyone(self, message: Mapping[str, Any]) -> list[Any]:
        """Return the messages of all ranks, in their order."""
        mine = torch.tensor(list(json.dumps(message).encode()), dtype=torch.uint8, device=self.device)
        sizes = self._gather(torch.tensor([len(mine)], device=self.device))
        most = max(int(size) for size in sizes)
        padded = torch.zeros(most, dtype=torch.uint8, device=self.device)
        padded[: len(mine)] = mine
        texts = self._gather(padded)
        return [json.loads(bytes(t[: int(n)].tolist())) for t, n in zip(texts, sizes, strict=True)]

    def together(self, part: Callable[[], Result], what: str) -> Result:
        """Return what this rank's `part` gives, if those of all ranks went well.

        Raises:
            SurgeryError: that of another rank did not; if it was this one's, its own error or interrupt.
        """
        result, error = None, None
        try:
            result = part()
        except BaseException as mine:  # whatever it is, the others are waiting to hear of it
            error = mine
        told = "" if error is None else f"{type(error).__name__}: {error}"
        problems = [other["problem"] for other in self.everyone({"problem": told})]
        if error is not None and not isinstance(error, Exception):
            raise error
        for rank, problem in enumerate(problems):
            if problem:
                raise SurgeryError(f"rank {rank} {what}: {problem}; nothing was changed on any rank") from error
        return cast("Result", result)

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor, group=self.group)
        return found


def _agree(reports: Sequence[Mapping[str, Any]]) -> None:
    for rank, report in enumerate(reports):
        if report["network"] != reports[0]["network"]:
            raise SurgeryError(
                f"rank {rank} has another network, optimizer or graph than rank 0; "
                "make them alike on all ranks and remove alike everywhere"
            )
    if any(report["gradients"] is None or report["gradients"] != reports[0]["gradients"] for report in reports):
        raise SurgeryError(
            "an accumulation of gradients is half done: they differ between ranks (no_sync); finish it with a backward "
            "pass outside no_sync and a step of the optimizer, then remove"
        )


def _gradients(wrapped: DistributedDataParallel) -> str | None:
    """Sums of the gradients as text (NaN is NaN), None within no_sync: what was not yet averaged differs."""
    if not wrapped.require_backward_grad_sync:
        return None
    grads = [p.grad.detach().double() for p in wrapped.module.parameters() if p.grad is not None]
    return str(torch.stack([total for g in grads for total in (g.sum(), g.abs().sum())]).tolist() if grads else [])


def _decide(
    graph: Graph, model: nn.Module, entries: Mapping[str, Sequence[int] | Tensor], living: Living
) -> dict[str, Any]:
    try:
        keep = kept(graph, entries)
        return {"keep": keep, "plan": make_plan(graph, model, keep, living=living).to_json()}
    except Exception as error:  # whatever it is, the others are waiting to hear of it
        return {"error": str(error) if isinstance(error, SurgeryError) else f"{type(error).__name__}: {error}"}


def _fingerprint(model: nn.Module, optimizers: Sequence[Optimizer], graph: Graph) -> str:
    told: list[Any] = [[name, list(t.shape), str(t.dtype), t.requires_grad] for name, t in tensors(model).items()]
    told.append([[space.name, space.size] for space in graph.spaces])
    for one in optimizers:
        groups = [[list(p.shape) for p in group["params"]] for group in one.param_groups]
        told.append([type(one).__qualname__, groups, len(one.state)])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _again(model: nn.Module, old: DistributedDataParallel) -> DistributedDataParallel:
    """Wrap `model` as `old` wrapped it."""
    names = ("device_ids", "output_device", "dim", "process_group", "find_unused_parameters", "gradient_as_bucket_view")
    settings: dict[str, Any] = {name: getattr(old, name) for name in (*names, "static_graph")}
    sync = "forward_sync_buffers"  # from torch 2.12 on in place of broadcast_buffers, which warns
    sync = sync if sync in inspect.signature(DistributedDataParallel).parameters else "broadcast_buffers"
    settings[sync] = getattr(old, sync)
    if getattr(old, "mixed_precision", None) is not None:
        settings["mixed_precision"] = old.mixed_precision
    if not old.bucket_bytes_cap_default:
        settings["bucket_cap_mb"] = max(old.bucket_bytes_cap // 2**20, 1)
    new = DistributedDataParallel(model, **settings)
    for hook, state in old._comm_hooks:
        new.register_comm_hook(state, hook)
    for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(new, kind, getattr(old, kind))
    new.training = old.training
    return new
