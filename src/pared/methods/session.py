"""The few hooks through which every method is driven, by our loop or a person's own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError, RunError
from pared.optim import ClassRateSGD


@dataclass(frozen=True)
class Event:
    """`removed` channels left layer `layer` at optimizer step `step`; `index` are their numbers before this removal.

    With `removed` 0 those have died that cannot leave: `session.skipped` says why.
    """

    step: int
    layer: str
    removed: int
    left: int
    index: tuple[int, ...]


class Session(ABC):
    """A method bound to a model and its optimizer.

    Inside a step: `with session.batch(y)`, add `session.penalty()` to the loss, backward, `session.step()`, then
    `optimizer.zero_grad()`. A loop that calls `optimizer.step()` itself, or lets a wrapper of it do so, does the same:
    the method is at work right before and behind the optimizer's step, wherever that is called. `steps` counts optimizer
    steps, `total_steps` are those of the whole run where they are known.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, total_steps: int | None) -> None:
        self.model, self.optimizer, self.total_steps = model, optimizer, total_steps
        self.averaged: list[nn.Module] = []
        self.steps = 0
        self._attached = True
        self._left_out = False  # whether the step under way is one that overflowed
        self._follow_steps()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_handles"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._attached:
            self._follow_steps()  # a copied optimizer has lost the hooks

    def _follow_steps(self) -> None:
        optimizer = self.optimizer
        before, after = optimizer.register_step_pre_hook(self._on_step), self._on_stepped
        self._handles = before, optimizer.register_step_post_hook(after)

    @surgery.keeps_mode
    def _on_step(self, _: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        self._left_out = not self._unscaled()
        if self._left_out:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first is the optimizer
        if closure is None:
            self.before_step()
            return None

        def closed() -> Any:  # gradients are those that the closure makes
            loss = closure()
            with torch.no_grad():
                self.before_step()
            return loss

        return (args[0], closed), {key: value for key, value in kwargs.items() if key != "closure"}

    @surgery.keeps_mode
    def _on_stepped(self, *_: object) -> None:
        if not self._left_out:
            self.steps += 1
            self.after_step()

    def _unscaled(self) -> bool:
        """Whether gradients have not overflowed; `GradScaler` leaves scale and overflow to a fused optimizer's own step.

        The scale is taken out of the gradients here, so that methods see them as they are.
        """
        scale, overflow = (getattr(self.optimizer, name, None) for name in ("grad_scale", "found_inf"))
        if isinstance(overflow, Tensor) and bool(overflow):
            return False
        if isinstance(scale, Tensor):
            for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
                if parameter.grad is not None:
                    parameter.grad.div_(scale.to(parameter.grad.device))
            vars(self.optimizer)["grad_scale"] = None
        return True

    @property
    def net(self) -> nn.Module:
        """The model without what wraps it."""
        return surgery.bare(self.model, distributed=True)

    def follow(self, averaged: nn.Module) -> None:
        """Let all that dies later also die in `averaged`, a copy of the bound model or an `AveragedModel` of it.

        Raises:
            ConfigError: its tensors have other names or shapes than the bound model's.
        """
        module = surgery.bare(averaged, distributed=True)
        mine, other = self.net.state_dict(), module.state_dict()
        for name in mine.keys() | other.keys():
            if name not in mine or name not in other or mine[name].shape != other[name].shape:
                raise ConfigError(
                    f"the averaged network differs from the bound one in {name!r}; make the copy after binding"
                )
        self.averaged.append(module)

    def batch(self, y: Tensor | None = None) -> AbstractContextManager[None]:
        """Open a batch of the classes `y`, (samples,) of integers, for the forward and the backward pass.

        They matter to an optimizer with rates by class (`pared.optim.ClassRateSGD`), and are free for others.
        """
        if y is not None and isinstance(self.optimizer, ClassRateSGD):
            return self.optimizer.classes(y)
        return nullcontext()

    def penalty(self) -> Tensor:
        """Return what to add to the loss, a scalar; 0 where nothing is pressed upon by the loss."""
        return torch.zeros((), device=next(self.model.parameters()).device)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Take the optimizer's step, with what the method does before and behind it.

        With `scaler` the step is taken through it, so that it can be left out when gradients overflowed; nothing dies
        then. Call its `update` afterwards, as usual.
        """
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)

    @abstractmethod
    def before_step(self) -> None:
        """Do what a method does while gradients and weights belong together, before the optimizer's step."""

    @abstractmethod
    def after_step(self) -> None:
        """Do what a method does behind the optimizer's step, which has been counted."""

    def parameter(self, name: str) -> nn.Parameter:
        """Return a parameter of the network by its name."""
        return self.net.get_parameter(name)

    def learning_rates(self) -> dict[int, float]:
        """Return the learning rate of each parameter the optimizer has, by its id."""
        return {id(p): float(group["lr"]) for group in self.optimizer.param_groups for p in group["params"]}

    def detach(self) -> None:
        """Let go of model and optimizer: steps are not followed any more, and the model may be bound again."""
        for handle in self._handles if self._attached else ():
            handle.remove()
        self._attached = False

    @abstractmethod
    def realize(self) -> nn.Module:
        """Return a new network as it is now, that needs no pared to load or run."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit-equally, model and optimizer included."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state in this freshly bound session.

        Raises:
            RunError: the state comes from another network or another format.
        """


def check_format(state: Mapping[str, Any], expected: int) -> None:
    """Make sure that a saved session can be read.

    Raises:
        RunError: it has another format.
    """
    if state.get("format") != expected:
        raise RunError(
            f"expected session format {expected}, got {state.get('format')!r}; use the pared version that wrote it"
        )


def sessions_of(optimizer: Optimizer) -> list[Session]:
    """Return the sessions that follow the steps of `optimizer`."""
    owners = [getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_post_hooks.values()]
    return [owner for owner in owners if isinstance(owner, Session)]
