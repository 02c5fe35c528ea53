"""A proximal step behind any optimizer's own: penalties whose zeros are exact."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from pared.errors import ConfigError
from pared.ops.prox import exclusive_soft_threshold, group_soft_threshold, soft_threshold
from pared.optim.base import SphereOptimizer
from pared.optim.kernels import Number

#: The penalties whose proximal operators have a name: those of `pared.penalties`.
Named = Literal["l1", "group_lasso", "exclusive_lasso"]
#: A proximal operator: weights and threshold to weights.
Prox = Named | Callable[[Tensor, Number], Tensor]

#: What a group has besides the options of the wrapped optimizer.
_OPTIONS = ("prox", "strength", "dim")
#: Of these there is one, the wrapped optimizer's.
_SHARED = ("param_groups", "state", "defaults")


class Proximal(Optimizer):
    """Let any optimizer take its step, and take the proximal step of strength · penalty behind it: zeros are exact.

    Parameter groups, state and defaults are those of the wrapped `optimizer`, which from then on is only stepped through
    this one; its other attributes can be read through it. Groups hold `prox`, `strength` and `dim`, where they have none
    those given here, so that each may have its own: biases, say, a `strength` of 0, which leaves a group as it is. What
    has no gradient does not move. `state_dict` does not hold a `prox` that is a callable; what a loaded state does not
    say stays as it is.

    The threshold is the group's `lr` · `strength`. For SGD without momentum that is proximal gradient descent, which comes
    to the minimum of loss + strength · penalty. With momentum mu, steps are 1 / (1 - mu) times as long as `lr` says, so the
    penalty counts 1 - mu times as much. Optimizers that scale gradients (Adam) have another length for each weight, of
    which this knows nothing: zeros are exact, but what is minimised depends on the gradients' size.

    Args:
        optimizer: any but `LBFGS`, whose memory of steps would be wrong, and optimizers that hold weights on a sphere.
        prox: "l1"; "group_lasso" or "exclusive_lasso" with groups that run over the axes `dim`, which leave vectors and
            scalars as they are; or a function of weights and threshold, a projection for one.
        strength: of the penalty, >= 0 and finite.
        dim: the axes of a group; of weights (out, in), columns are 0 and rows 1.

    Raises:
        ConfigError: an option is out of range, a weight has no such axis, or the optimizer is of a wrong kind.

    Source: Parikh and Boyd (2014), Proximal algorithms, section 4.2; as in differentiable sparsification
    (arXiv 1910.03201), related work, whose step for the exclusive lasso is not its proximal operator: for that, give
    `lambda w, t: exclusive_soft_threshold(w, t, dim, printed=True)`.
    """

    #: `GradScaler` takes the scale out of gradients, and leaves out steps, before this one is called.
    _step_supports_amp_scaling = False

    def __init__(
        self, optimizer: Optimizer, prox: Prox, strength: float, *, dim: int | Sequence[int] | None = None
    ) -> None:
        if isinstance(optimizer, (LBFGS, SphereOptimizer, Proximal)):
            raise ConfigError(
                f"{type(optimizer).__name__} cannot be followed by a proximal step; wrap SGD, Adam or another optimizer "
                "whose steps depend on gradients only"
            )
        # Not the base class's own, which would make groups and state anew.
        self.__setstate__({"optimizer": optimizer})
        options: dict[str, Any] = {"prox": prox, "strength": strength, "dim": dim}
        for group in optimizer.param_groups:
            _check(options | group)
        optimizer.defaults.update(options)
        for group in optimizer.param_groups:
            group.update(options | group)

    def __getattr__(self, name: str) -> Any:
        if "optimizer" not in vars(self):
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SHARED:
            setattr(self.optimizer, name, value)
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer}

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.optimizer!r}"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not say is as it was given first.

        Raises:
            ConfigError: an option is out of range; nothing was added.
        """
        before = len(self.param_groups)
        self.optimizer.add_param_group(param_group)
        try:
            _check(self.param_groups[before])
        except ConfigError:
            del self.param_groups[before]
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients."""
        self.optimizer.zero_grad(set_to_none)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take both steps, and return the loss that `closure` gives, if there is one."""
        loss = self.optimizer.step(closure)
        self._press()
        return loss

    @torch.no_grad()
    def _press(self) -> None:
        """Take the proximal step."""
        for group in self.param_groups:
            if group["strength"] == 0:
                continue
            threshold = group["lr"] * group["strength"]
            for p in group["params"]:
                if p.grad is not None and p.numel() and (p.ndim > 1 or not _grouped(group)):
                    p.copy_(_apply(group["prox"], p, threshold, group["dim"]))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped optimizer, with the groups' options that are not functions."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = self.optimizer.state_dict()
        for group in state["param_groups"]:
            if callable(group["prox"]):
                del group["prox"]
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as `state_dict` gave it, or as the wrapped optimizer did before it was wrapped."""
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        held = [{key: group[key] for key in _OPTIONS} for group in self.param_groups]
        self.optimizer.load_state_dict(state_dict)
        for group, options in zip(self.param_groups, held, strict=True):
            group.update(options | group)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)


def _grouped(group: dict[str, Any]) -> bool:
    """Whether the penalty is one of groups of weights."""
    return group["prox"] in ("group_lasso", "exclusive_lasso")


def _apply(prox: Prox, x: Tensor, threshold: Number, dim: int | Sequence[int]) -> Tensor:
    """Return what the proximal operator makes of `x`."""
    if prox == "l1":
        return soft_threshold(x, threshold)
    if prox == "group_lasso":
        return group_soft_threshold(x, threshold, dim)
    return exclusive_soft_threshold(x, threshold, dim) if isinstance(prox, str) else prox(x, threshold)


def _check(group: dict[str, Any]) -> None:
    """Refuse a group whose options are out of range, or whose weights have no such groups."""
    prox, strength, dim = (group[key] for key in _OPTIONS)
    if not (callable(prox) or prox in get_args(Named)):
        raise ConfigError(f"prox must be one of {', '.join(get_args(Named))}, or a function; got {prox!r}")
    if not 0.0 <= strength < math.inf:
        raise ConfigError(f"strength must be at least 0 and finite, got {strength}")
    if strength == 0:
        return
    if "lr" not in group:
        raise ConfigError("a proximal step is as long as the group's lr, and this optimizer has none")
    if any(not p.is_floating_point() for p in group["params"]):
        raise ConfigError("parameters must be real floating-point tensors; give others a group with strength 0")
    if not _grouped(group):
        return
    axes = () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if not axes:
        raise ConfigError(
            f"{prox} needs dim, the axes that a group runs over: of weights (out, in), 0 for columns, say"
        )
    for p in group["params"]:
        if p.ndim > 1 and not all(-p.ndim <= axis < p.ndim for axis in axes):
            raise ConfigError(
                f"a weight of shape {tuple(p.shape)} has no axes {axes}; give it a group with a dim of its own, or with "
                "strength 0"
            )
