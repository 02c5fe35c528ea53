"""How optimizers follow a removal."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pared.errors import SurgeryError
from pared.surgery.gather import Draft, Taker, Undo

#: One optimizer, several that share a network, or none.
Optimizers = Optimizer | Iterable[Optimizer] | None

#: Optimizers whose step depends on more than each entry's own gradient and state.
_WHOLE = ("LBFGS", "Adafactor", "Muon")


def listed(optimizer: Optimizers) -> list[Optimizer]:
    """Return the optimizers as a list.

    Raises:
        SurgeryError: one of them cannot follow a removal.
    """
    found = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    for one in found:
        refuse_optimizer(one)
    return found


def refuse_optimizer(optimizer: Optimizer | None) -> None:
    """Raise a SurgeryError for an optimizer whose updates of the survivors would change when others are removed."""
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer):  # one that is wrapped, as by a proximal step
        refuse_optimizer(inner)
    # One history over all parameters, factored moments, an update of the whole matrix: no per-axis gather can follow.
    name = next((kind.__name__ for kind in type(optimizer).__mro__ if kind.__name__ in _WHOLE), None)
    if name is not None and type(optimizer).__module__.startswith("torch."):
        raise SurgeryError(
            f"{name} updates each weight by more than its own gradient and history, which cannot follow a removal; "
            "use SGD, Adam or another optimizer"
        )
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        raise SurgeryError(
            "ZeroRedundancyOptimizer keeps its state in pieces on several ranks, which cannot follow a removal; "
            "use the optimizer it wraps"
        )


def draft_states(draft: Draft, optimizer: Optimizer, take: Taker) -> dict[int, dict[str, Any]]:
    """Return the new state of each parameter that changes, by the id of the old one.

    Raises:
        SurgeryError: state whose rule is not known.
    """
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    states: dict[int, dict[str, Any]] = {}
    for key in draft.parameters.keys() & held.keys():
        old = held[key]
        state = optimizer.state.get(old)
        if state is not None:
            cuts = draft.cuts[key]
            resize = getattr(optimizer, "resize", None)
            if resize is not None:
                states[key] = dict(resize(state, tuple(cuts), old))
            else:
                for part, value in state.items():
                    if isinstance(value, Tensor) and value.ndim and value.shape != old.shape:
                        raise SurgeryError(
                            f"{type(optimizer).__name__} keeps {part!r} of shape {tuple(value.shape)} for "
                            f"{draft.names[key]!r} of shape {tuple(old.shape)}; how it follows a removal is not known: "
                            "give it a method `resize`, or use another optimizer"
                        )
                states[key] = {
                    part: take(value, cuts) if isinstance(value, Tensor) and value.ndim else value
                    for part, value in state.items()
                }
    return states


def commit_optimizer(
    draft: Draft, states: dict[int, dict[str, Any]], optimizer: Optimizer, model: nn.Module, undo: list[Undo]
) -> None:
    """Put new parameters and states in the place of the old ones; how to take that back is added to `undo`."""
    weights = {
        f"{name}.bias": m._parameters[key]
        for name, m in model.named_modules()
        for key in ("weight", "weight_orig")  # the latter where torch.nn.utils.prune has put a mask
        if key in m._parameters
    }
    for group in optimizer.param_groups:
        before = list(group["params"])
        undo.append(partial(group["params"].__setitem__, slice(None), before))
        group["params"][:] = [draft.parameters.get(id(p), p) for p in before]
        # A bias that was created belongs where its layer's weight is.
        created = {n: bias for n, bias in draft.biases.items() if any(p is weights[n] for p in group["params"])}
        group["params"] += created.values()
        if "param_names" in group:
            undo.append(partial(group["param_names"].__setitem__, slice(None), list(group["param_names"])))
            group["param_names"] += created
        for old in before:
            state = optimizer.state.get(old) if id(old) in draft.parameters else None
            if state is not None:
                new = draft.parameters[id(old)]
                undo += [partial(optimizer.state.__setitem__, old, state), partial(optimizer.state.pop, new, None)]
                optimizer.state[new] = states[id(old)]
                del optimizer.state[old]
