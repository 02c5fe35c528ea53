"""Carry a plan out on a model and everything that follows it, whole or not at all."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pared.errors import SurgeryError
from pared.surgery.gather import Draft, Taker, Undo
from pared.surgery.optimizers import Optimizers, commit_optimizer, draft_states, listed
from pared.surgery.plan import Constant, Gather, Plan
from pared.surgery.prune_masks import cut_masks, plain_view, refresh_masked, successor
from pared.surgery.trace import tensors
from pared.surgery.whole import Whole, keeps_mode, trains


@keeps_mode
@trains
def apply(plan: Plan, model: nn.Module, *, optimizer: Optimizers = None, ema: Iterable[nn.Module] = ()) -> None:
    """Apply `plan` to `model`, to the state of `optimizer`, and to each averaged copy in `ema`.

    Parameters are replaced by new `nn.Parameter`s at every place that held the old one, so tied weights stay tied;
    `requires_grad`, hooks, gradients, attributes and training flags are kept, and masks of `torch.nn.utils.prune` are cut
    with their weights. `param_groups` are rewritten in place,
    and every optimizer state tensor of the parameter's shape is gathered alike; scalars are kept. An optimizer whose
    state has other shapes says how it follows with a method `resize(state, gathers, old)`: it takes one parameter's
    state, its cuts in order (`axis`, `index`) and the parameter as it was, changes none of them, and returns the new
    state. Call it between `optimizer.step()` and the next forward pass, before or after `zero_grad()`.

    Raises:
        SurgeryError: a name or shape that does not fit, or optimizer state whose rule is unknown. Nothing was changed.
    """
    commit = prepare(plan, model, optimizer=optimizer, ema=ema)
    with Whole() as undo:
        commit(undo)


@keeps_mode
@trains
def prepare(
    plan: Plan, model: nn.Module, *, optimizer: Optimizers = None, ema: Iterable[nn.Module] = ()
) -> Callable[[list[Undo]], None]:
    """Make everything that `apply` puts in place, and return the call that does so; until then nothing is changed.

    The call appends to a list how to take back what it does, each before it is done.
    """
    optimizers = listed(optimizer)
    model, averaged = bare(model), [bare(copy) for copy in ema]
    take = Taker()
    drafts = [(target, _draft(plan, target, take)) for target in (model, *averaged)]
    states = [draft_states(drafts[0][1], one, take) for one in optimizers]

    def commit(undo: list[Undo]) -> None:
        for target, draft in drafts:
            _commit_model(plan, target, draft, undo)
        for one, state in zip(optimizers, states, strict=True):
            commit_optimizer(drafts[0][1], state, one, model, undo)

    return commit


def bare(model: nn.Module, *, distributed: bool = False) -> nn.Module:
    """Return the network itself of a compiled or averaged one; of one in several processes if `distributed`.

    Raises:
        SurgeryError: it is wrapped for training in several processes, where a removal takes more.
    """
    if isinstance(model, DataParallel | DistributedDataParallel):
        if distributed:
            return bare(model.module, distributed=True)
        raise SurgeryError(
            f"{type(model).__name__} holds on to the parameters it was made with; use pared.remove_ddp, which agrees "
            "between processes and wraps the network again"
        )
    compiled = getattr(model, "_orig_mod", None)  # torch.compile's wrapper, whose class has no public name
    inner = model.module if isinstance(model, AveragedModel) else compiled
    return bare(inner, distributed=distributed) if isinstance(inner, nn.Module) else model


def _by_tensor(plan: Plan) -> dict[str, list[Gather]]:
    grouped: dict[str, list[Gather]] = {}
    for item in plan.gathers:
        grouped.setdefault(item.tensor, []).append(item)
    return grouped


@torch.no_grad()
def _draft(plan: Plan, model: nn.Module, take: Taker) -> Draft:
    view = plain_view(model)
    draft, named, cuts = Draft(), tensors(view), _by_tensor(plan)
    _check_names(plan, view, named)
    _check_ties(plan, named)
    folded = _folded(plan.constants, named)
    done: dict[int, list[Gather]] = {}
    for name, items in cuts.items():
        old = named.get(name)
        if old is None:
            raise SurgeryError(f"the plan names {name!r}, which the model does not have; make the plan from this model")
        _check_fit(name, old, items, take)
        previous = done.setdefault(id(old), items)
        if previous is not items:
            # A tied tensor is reached under two names: both must ask for the same cut.
            if [(g.axis, g.index) for g in previous] != [(g.axis, g.index) for g in items]:
                raise SurgeryError(f"{name!r} is tied to {previous[0].tensor!r}, and the plan cuts the two differently")
            continue
        _record(draft, name, old, take(folded.pop(name, old), items), items, take)
    for name, new in folded.items():
        if name in named:
            _record(draft, name, named[name], new, [], take)
        else:
            # Created where there was none: it follows the units of its layer's weight.
            weight, axis = next((item.weight, int(not item.axis)) for item in plan.constants if item.bias == name)
            new = take(new, [replace(item, axis=0) for item in cuts.get(weight, []) if item.axis == axis])
            frozen = not named[weight].requires_grad
            draft.biases[name] = nn.Parameter(new, requires_grad=not frozen)
    if view is not model:
        cut_masks(draft, model, view, take)
    return draft


def _check_names(plan: Plan, model: nn.Module, named: Mapping[str, Tensor]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted = [(item.weight, item.weight in named) for item in plan.constants]
    wanted += [(item.bias, item.bias.rpartition(".")[0] in modules) for item in plan.constants]
    wanted += [(f"{r.module}.{r.attribute}", hasattr(modules.get(r.module), r.attribute)) for r in plan.resizes]
    for name, there in wanted:
        if not there:
            raise SurgeryError(f"the plan names {name!r}, which the model does not have; make the plan from this model")


def _check_ties(plan: Plan, named: Mapping[str, Tensor]) -> None:
    """A tensor under several names changes at all of them: the plan must ask for that at each, and fold into none."""
    biases = {item.bias for item in plan.constants}
    meant = {item.tensor for item in plan.gathers} | biases
    changed = {id(old): name for name, old in named.items() if name in meant}
    for name, old in named.items():
        other = changed.get(id(old), name)
        if other != name and (name not in meant or biases & {name, other}):
            raise SurgeryError(f"{name!r} is tied to {other!r}, which the plan changes differently; untie the two")


def _check_fit(name: str, old: Tensor, items: list[Gather], take: Taker) -> None:
    for item in items:
        least, most = take.ends(item.index)
        if not (0 <= item.axis < old.ndim and -1 <= least <= most < old.shape[item.axis]):
            raise SurgeryError(
                f"the plan takes entries up to {most} of axis {item.axis} of {name!r}, "
                f"whose shape is {tuple(old.shape)}; make the plan from this model"
            )


def _record(draft: Draft, name: str, old: Tensor, new: Tensor, items: list[Gather], take: Taker) -> None:
    draft.old.append(old)
    draft.cuts[id(old)], draft.names[id(old)] = items, name
    if not isinstance(old, nn.Parameter):
        draft.buffers[id(old)] = new
        return
    if type(old) is not nn.Parameter:
        raise SurgeryError(
            f"a parameter is a {type(old).__name__}, whose storage is not understood; use plain nn.Parameter"
        )
    draft.parameters[id(old)] = successor(old, new, items, take)


def _folded(constants: Iterable[Constant], named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The biases after the dead channels' constants went into them, by name; float64 on the way."""
    biases: dict[str, Tensor] = {}
    for item in constants:
        weight = named[item.weight].detach()
        add = _emitted(item, weight)
        before = biases.get(item.bias, named.get(item.bias))
        total = add if before is None else before.detach().double() + add
        biases[item.bias] = total.to(weight.dtype)
    return biases


def _emitted(item: Constant, weight: Tensor) -> Tensor:
    """What the constants add to every unit of a layer, float64 (units,)."""
    index = torch.tensor(item.index, dtype=torch.long, device=weight.device)
    values = torch.tensor(item.values, dtype=torch.float64, device=weight.device)
    if item.groups > 1:  # each unit meets the channels of its group only
        kernels = weight.double().flatten(2).sum(-1).unflatten(0, (item.groups, -1))
        size = item.groups * kernels.shape[2 if item.axis else 1]
        by_group = values.new_zeros(size).index_copy(0, index, values).view(item.groups, -1)
        return torch.einsum("goi,gi->go" if item.axis else "gio,gi->go", kernels, by_group).flatten()
    columns = weight.index_select(item.axis, index).double()
    if columns.ndim > 2:
        columns = columns.flatten(2).sum(-1)
    return columns @ values if item.axis else columns.t() @ values


def _commit_model(plan: Plan, model: nn.Module, draft: Draft, undo: list[Undo]) -> None:
    for module in model.modules():
        tables: tuple[tuple[dict[str, Any], Mapping[int, Tensor]], ...] = (
            (module._parameters, draft.parameters),
            (module._buffers, draft.buffers),
        )
        for table, made in tables:
            for name, old in table.items():
                if old is not None and id(old) in made:
                    undo.append(partial(_put, table, name, old))
                    _put(table, name, made[id(old)])
    for path, bias in draft.biases.items():
        parent, _, name = path.rpartition(".")
        parameters = model.get_submodule(parent)._parameters
        undo.append(partial(_put, parameters, name, None))
        _put(parameters, name, bias)
    refresh_masked(model, undo)
    refresh_recurrent(model, undo)
    for item in plan.resizes:
        module = model.get_submodule(item.module)
        undo.append(partial(setattr, module, item.attribute, getattr(module, item.attribute)))
        setattr(module, item.attribute, item.value)


def refresh_recurrent(model: nn.Module, undo: list[Undo]) -> None:
    """Recurrent layers read their weights from a list of their own."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            undo.append(partial(setattr, module, "_flat_weights", module._flat_weights))
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _put(table: dict[str, Any], name: str, value: Tensor | None) -> None:
    table[name] = value
