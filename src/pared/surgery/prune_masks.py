"""Masks of `torch.nn.utils.prune`: what they leave out is dead, in every copy, plan and session."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from pared.errors import RunError, SurgeryError
from pared.surgery.computed import made_by_forward
from pared.surgery.gather import Draft, Taker, Undo
from pared.surgery.plan import Gather

Network = TypeVar("Network", bound=nn.Module)
#: What torch adds to the name of a tensor with a mask: the parameter and the mask that it is computed from.
ORIGINAL, MASK = "_orig", "_mask"
_TIED = (
    "{0!r} and {1!r} are one parameter with different masks of torch.nn.utils.prune, and {2}; untie them, or make the masks "
    "permanent with torch.nn.utils.prune.remove"
)
#: The mask of a plain parameter, kept on it, that a bound method of units has taken over.
_HELD = "_pared_held"


@dataclass(frozen=True, eq=False)
class Mask:
    """A tensor of `module` that a forward hook of torch's computes as `original` times `mask`; `name` is its full name."""

    name: str
    module: nn.Module
    key: str
    hooks: tuple[int, ...]

    @property
    def original(self) -> nn.Parameter:
        """The parameter that learns, which the optimizer holds."""
        found = self.module._parameters[self.key + ORIGINAL]
        assert found is not None
        return found

    @property
    def mask(self) -> Tensor:
        """Factors of the parameter's shape, 0 where it is dead."""
        found = self.module._buffers[self.key + MASK]
        assert found is not None
        return found

    @torch.no_grad()
    def effective(self) -> Tensor:
        """Return what the network computes with, as the hook does."""
        return self.mask.to(self.original.dtype) * self.original


def masks_of(model: nn.Module) -> list[Mask]:
    """Return the masks of `torch.nn.utils.prune` that are on in `model`, those of a module in several places once."""
    found = []
    for path, module in model.named_modules():
        hooks: dict[str, list[int]] = {}
        for number, hook in module._forward_pre_hooks.items():
            if isinstance(hook, BasePruningMethod):
                hooks.setdefault(str(hook._tensor_name), []).append(number)
        for key, numbers in hooks.items():
            if module._parameters.get(key + ORIGINAL) is not None and module._buffers.get(key + MASK) is not None:
                found.append(Mask(f"{path}.{key}" if path else key, module, key, tuple(numbers)))
    return found


def with_masks(parameters: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return named `parameters` of `model` with masked tensors, which gradients pass through, in their originals' place."""
    masks = {one.name + ORIGINAL: one for one in masks_of(model)}
    named = {name: masks.get(name) for name in parameters}
    return {
        name if one is None else one.name: parameters[name]
        if one is None
        else one.mask.to(one.original.dtype) * one.original
        for name, one in named.items()
    }


# --- copies ---


def plain_copy(model: Network) -> Network:
    """Return a deep copy of `model` in which masked tensors are plain parameters again, 0 where the mask is."""
    twin = copy.deepcopy(model, made_by_forward(model))
    _fold(masks_of(twin))
    return twin


def plain_view(model: Network) -> Network:
    """Return `model`, or where masks are on, a copy with `plain_copy`'s parameters in their place that shares all others."""
    if not masks_of(model):
        return model
    memo = made_by_forward(model)
    memo |= {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, memo)
    _fold(masks_of(twin))
    return twin


def _fold(masks: Sequence[Mask]) -> None:
    """Put plain parameters where masks were; what was tied stays so if the masks are equal."""
    made: dict[int, list[tuple[Tensor, nn.Parameter]]] = {}
    for one in masks:
        known = made.setdefault(id(one.original), [])
        same = next((new for mask, new in known if mask.shape == one.mask.shape and mask.equal(one.mask)), None)
        new = nn.Parameter(one.effective(), requires_grad=one.original.requires_grad) if same is None else same
        known.append((one.mask, new))
        _take_off(one, new, [])


def _take_off(one: Mask, weight: nn.Parameter, undo: list[Undo]) -> None:
    """Let `weight` be a plain parameter where a mask was."""
    module, hooks = one.module, one.module._forward_pre_hooks
    tables: list[dict[Any, Any]] = [module._parameters, module._buffers, hooks]
    undo += [partial(_restore, table, dict(table)) for table in tables]
    if one.key in vars(module):
        undo.append(partial(vars(module).__setitem__, one.key, vars(module)[one.key]))
    for number in one.hooks:
        del hooks[number]
    vars(module).pop(one.key, None)
    del module._parameters[one.key + ORIGINAL], module._buffers[one.key + MASK]
    module._parameters[one.key] = weight
    _flatten(module, undo)


def _flatten(module: nn.Module, undo: list[Undo]) -> None:
    """Recurrent layers read their weights from a list of their own."""
    if isinstance(module, nn.RNNBase):
        undo.append(partial(setattr, module, "_flat_weights", module._flat_weights))
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _restore(table: dict[Any, Any], before: Mapping[Any, Any]) -> None:
    table.clear()
    table.update(before)


# --- surgery in place: originals and masks are cut together ---


def cut_masks(draft: Draft, model: nn.Module, view: nn.Module, take: Taker) -> None:
    """Let what `draft` has for the plain parameters of `view` be for the originals and masks of `model` in their place.

    Raises:
        SurgeryError: an original has several places, and not all of them change alike.
    """
    masks = masks_of(model)
    places = dict(view.named_parameters(remove_duplicate=False))
    drafted = {id(places[one.name]): draft.parameters.pop(id(places[one.name]), None) for one in masks}
    uses = _uses(masks, places)
    for one in masks:
        weight, original = places[one.name], one.original
        new, items = drafted[id(weight)], draft.cuts.get(id(weight), [])
        for name, other in uses[id(original)].items():
            if _axes(draft.cuts.get(id(other), [])) != _axes(items):
                raise SurgeryError(_TIED.format(one.name, name, "the plan changes the two differently"))
        if new is None:
            continue
        folded = new.detach() != take(weight.detach(), items)  # a constant brings a dead bias to life
        if len(uses[id(original)]) > 1 and bool(folded.any()):
            raise SurgeryError(
                _TIED.format(*list(uses[id(original)])[:2], "the plan folds a constant into one of them")
            )
        value = torch.where(folded, new.detach(), take(original.detach(), items))
        draft.parameters[id(original)] = successor(original, value, items, take)
        mask = 1 - take(1 - one.mask, items)  # what is new lives
        draft.buffers[id(one.mask)] = torch.where(folded, torch.ones_like(mask), mask)
        draft.old += [original, one.mask]
        draft.cuts[id(original)], draft.names[id(original)] = items, one.name + ORIGINAL


def successor(old: nn.Parameter, value: Tensor, items: Sequence[Gather], take: Taker) -> nn.Parameter:
    """Return the parameter of this value that takes the place of `old`, with its gradient, hooks and attributes."""
    made = nn.Parameter(value, requires_grad=old.requires_grad)
    vars(made).update(vars(old))
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if getattr(old, hooks, None) is not None:
            setattr(made, hooks, getattr(old, hooks))
    if old.grad is not None:
        made.grad = take(old.grad, items)
    alive = vars(old).get(_HELD)
    if alive is not None:
        setattr(made, _HELD, ~take(~alive, items) | (value != 0))  # what is new, or got a constant, lives
    return made


def _uses(masks: Sequence[Mask], places: Mapping[str, nn.Parameter]) -> dict[int, dict[str, nn.Parameter]]:
    """Where each original is, by its `id`: the parameters of a plain view by name."""
    uses: dict[int, dict[str, nn.Parameter]] = {}
    for one in masks:
        uses.setdefault(id(one.original), {})[one.name] = places[one.name]
    for name, parameter in places.items():
        if id(parameter) in uses:
            uses[id(parameter)][name] = parameter
    return uses


def _axes(items: Sequence[Gather]) -> list[tuple[int, tuple[int, ...]]]:
    return [(item.axis, item.index) for item in items]


def refresh_masked(model: nn.Module, undo: list[Undo], *, always: bool = False) -> None:
    """Compute masked tensors anew where their originals have got other shapes, or `always`, as the next forward pass would."""
    for one in masks_of(model):
        before = vars(one.module).get(one.key)
        if not always and isinstance(before, Tensor) and before.shape == one.original.shape:
            continue
        with torch.enable_grad():
            now = one.mask.to(one.original.dtype) * one.original
        undo.append(partial(vars(one.module).__setitem__, one.key, before))
        vars(one.module)[one.key] = now


# --- bound methods: the mask is theirs now ---


@contextmanager
def taken_over(model: nn.Module, optimizer: Any) -> Iterator[set[int]]:
    """Let masked tensors be plain parameters from the block on, the very ones that `optimizer` holds, 0 where they are dead.

    Inside the block `living` says of them who lives. An error there takes everything back. After it the parameters keep their
    dead at 0, through surgery too: no gradient reaches them, and the optimizer remembers nothing of them; but for those whose
    `id` the block adds to the set that it is given.

    Raises:
        SurgeryError: a masked parameter has several places.
    """
    masks, undo = masks_of(model), list[Undo]()
    refuse_tied(masks, model)
    weights = [one.original for one in masks]
    try:
        for one, weight in zip(masks, weights, strict=True):
            alive, now = one.mask != 0, one.effective()
            undo.append(partial(_fill, weight, weight.detach().clone()))
            _fill(weight, now)
            _take_off(one, weight, undo)
            undo.append(partial(vars(weight).pop, _HELD, None))
            setattr(weight, _HELD, alive)
        others = set[int]()
        yield others
        for weight in weights:
            alive = vars(weight).pop(_HELD)
            if id(weight) not in others:
                keep_dead(weight, alive, optimizer)
    except BaseException:
        while undo:
            undo.pop()()
        raise


def living(weight: Tensor) -> Tensor | None:
    """Return which entries of a parameter live whose mask was taken over, boolean of its shape; None if it had none."""
    return vars(weight).get(_HELD)


def refuse_masks(model: nn.Module, what: str) -> None:
    """Refuse masks where nothing would keep the dead at 0.

    Raises:
        SurgeryError: there is one, by name.
    """
    for one in masks_of(model):
        raise SurgeryError(
            f"{one.name!r} has a mask of torch.nn.utils.prune, which {what} does not follow; make the mask permanent with "
            f"torch.nn.utils.prune.remove, on a copy if this network is to keep it"
        )


def refuse_tied(masks: Sequence[Mask], model: nn.Module) -> None:
    """Refuse masked parameters that have several places, of which some may have no mask.

    Raises:
        SurgeryError: there is one, by name.
    """
    owners: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            owners.setdefault(id(parameter), set()).add(f"{path}.{key}".lstrip("."))
    for one in masks:
        names = sorted(owners[id(one.original)])
        if len(names) > 1:
            told = [name.removesuffix(ORIGINAL) for name in names]
            raise SurgeryError(_TIED.format(told[0], told[1], "one parameter cannot be dead and alive"))


@torch.no_grad()
def _fill(weight: Tensor, values: Tensor) -> None:
    weight.copy_(values)


@torch.no_grad()
def keep_dead(weight: nn.Parameter, alive: Tensor, optimizer: Any = None) -> None:
    """Keep at 0 what is not `alive` of a parameter, through surgery too, as long as the parameter lives; copies forget it."""
    weight.masked_fill_(~alive, 0.0)
    if weight.grad is not None:
        weight.grad.masked_fill_(~alive, 0.0)
    for one in optimizer if isinstance(optimizer, list | tuple) else [optimizer]:
        for state in getattr(one, "state", {}).get(weight, {}).values():
            if isinstance(state, Tensor) and state.shape == weight.shape:
                state.masked_fill_(~alive, 0.0)
    if _HELD not in vars(weight) and weight.requires_grad:
        weight.register_post_accumulate_grad_hook(_hold)
    setattr(weight, _HELD, alive)


@torch.no_grad()
def _hold(weight: Tensor) -> None:
    alive = vars(weight)[_HELD]
    if weight.grad is not None and weight.grad.shape == alive.shape:
        weight.grad = (
            weight.grad.where(alive, 0.0) if weight.grad.requires_grad else weight.grad.masked_fill_(~alive, 0.0)
        )


def hold_zeros(model: nn.Module, names: Collection[str]) -> None:
    """Keep at 0 what is 0 now in those parameters of these names that there are, as `keep_dead` does."""
    for name, weight in model.named_parameters():
        if name in names:
            keep_dead(weight, weight.detach() != 0)


# --- files ---


def folded_file(
    held: Mapping[str, Tensor], aliases: Mapping[str, str], mine: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and ties of a file such that those with masks there, and none among the names `mine`, are plain.

    `aliases` say of further names which of `held` they are.
    """
    sources = {**{name: name for name in held}, **aliases}
    bases = [name.removesuffix(ORIGINAL) for name in sources if name.endswith(ORIGINAL) and name not in mine]
    bases = [name for name in bases if name in mine and name not in sources and f"{name}{MASK}" in sources]
    if not bases:
        return dict(held), dict(aliases)
    tensors = {name: held[source] for name, source in sources.items()}
    made: dict[tuple[str, bytes], str] = {}
    for base in bases:
        original, mask = tensors.pop(base + ORIGINAL), tensors.pop(base + MASK)
        tensors[base] = mask.to(original.dtype) * original
        source = sources.pop(base + ORIGINAL)
        del sources[base + MASK]
        sources[base] = made.setdefault((source, mask.contiguous().view(torch.uint8).numpy().tobytes()), base)
    first: dict[str, str] = {}
    new = {name: first.setdefault(source, name) for name, source in sources.items()}
    return {n: tensors[n] for n, s in new.items() if s == n}, {n: s for n, s in new.items() if s != n}


def refuse_plain_file(path: Any, model: nn.Module, names: Iterable[str]) -> None:
    """Refuse to load plain tensors into a network that has masks on.

    Raises:
        RunError: there are some, by name.
    """
    names = set(names)
    for one in masks_of(model):
        if one.name in names:
            raise RunError(
                f"{path} does not fit this network: {one.name!r} has a mask of torch.nn.utils.prune here and none in the file; "
                "load the file into a network without masks, or make this one's permanent with torch.nn.utils.prune.remove"
            )
