"""The few hooks through which every method is driven, by our loop or a person's own."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from pared import surgery
from pared.errors import ConfigError, RunError
from pared.methods.rules import SignVariance
from pared.nn import Select, Switch
from pared.penalties import l1

FORMAT = 1


@dataclass(frozen=True)
class Event:
    """`removed` channels left layer `layer` at optimizer step `step`; `index` are their numbers before this removal."""

    step: int
    layer: str
    removed: int
    left: int
    index: tuple[int, ...]


class Session:
    """A method bound to a model and its optimizer.

    Inside a step: `with session.batch(y)`, add `session.penalty()` to the loss, backward, `session.step()`, then
    `optimizer.zero_grad()`. `strength` may be changed at any time. `events` says what died, when, and
    `on_event` is called with each; `steps` counts optimizer steps.
    """

    def __init__(
        self,
        model: nn.Sequential,
        optimizer: Optimizer,
        switches: Mapping[str, Switch],
        *,
        strength: float,
        rule: SignVariance,
        every: int,
    ) -> None:
        self.model, self.optimizer, self.switches = model, optimizer, dict(switches)
        self.strength, self.rule, self.every = strength, rule, every
        self.averaged: list[nn.Module] = []
        self.steps = 0
        self.events: list[Event] = []
        self.created: list[str] = []
        self.on_event: Callable[[Event], None] = _ignore

    @property
    def inputs(self) -> Tensor:
        """The indices of the network's original inputs that are still in use, int64 (kept,)."""
        first = surgery.leaves(self.model)[0][1]
        if isinstance(first, Select):
            return first.index
        return torch.arange(surgery.sequential_graph(self.model).spaces[0].size)

    def follow(self, averaged: nn.Module) -> None:
        """Let every later removal also happen in `averaged`, a copy of the bound model or an `AveragedModel` of it.

        Raises:
            ConfigError: its tensors have other names or shapes than the bound model's.
        """
        module = averaged.module if isinstance(averaged, AveragedModel) else averaged
        mine, other = self.model.state_dict(), module.state_dict()
        for name in mine.keys() | other.keys():
            if name not in mine or name not in other or mine[name].shape != other[name].shape:
                raise ConfigError(
                    f"the averaged network differs from the bound one in {name!r}; make the copy after binding"
                )
        self.averaged.append(module)

    def batch(self, y: Tensor | None = None) -> AbstractContextManager[None]:
        """Open a batch; labels `y` matter to other methods and are free here."""
        del y
        return nullcontext()

    def penalty(self) -> Tensor:
        """Return strength times the sum of |theta| over all switches, a scalar to add to the loss (equation 2)."""
        return self.strength * l1(switch.theta for switch in self.switches.values())

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Take the optimizer's step, judge the switches, and remove what is dead when a removal is due.

        With `scaler` the step is taken through it, so that it can be left out when gradients overflowed; call its
        `update` afterwards, as usual.
        """
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
        self.steps += 1
        for switch in self.switches.values():
            self.rule.update(switch)
        if self.steps % self.every == 0:
            self.remove()

    def remove(self) -> None:
        """Remove every dead channel now, in one transaction over model, optimizer and averaged copies."""
        graph = surgery.sequential_graph(self.model)
        keep = {
            space.name: self.switches[name].alive.nonzero().flatten()
            for name, space in graph.switched().items()
            if not bool(self.switches[name].alive.all())
        }
        if not keep:
            return
        plan = surgery.make_plan(graph, self.model, keep)
        sizes = {space.name: space.size for space in graph.spaces}
        live = {space.name: self.switches[name].live_channels().tolist() for name, space in graph.switched().items()}
        before = {name for name, _ in self.model.named_parameters()}
        surgery.apply(plan, self.model, optimizer=self.optimizer, ema=self.averaged)
        self.created += [item.bias for item in plan.constants if item.bias not in before]
        for name in keep:
            dead = tuple(sorted(set(range(sizes[name])) - set(live[name])))
            self.events.append(Event(self.steps, name, len(dead), len(live[name]), dead))
            self.on_event(self.events[-1])

    def realize(self) -> nn.Sequential:
        """Return a new, plain dense network of the size reached, switches folded in, taking the inputs `inputs`."""
        self.remove()
        return surgery.fold(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit-equally: model, optimizer, steps, strength, events."""
        return {
            "format": FORMAT,
            "steps": self.steps,
            "strength": self.strength,
            "events": [asdict(event) for event in self.events],
            "created": list(self.created),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resize this freshly bound session's model and optimizer to the saved sizes and fill them.

        Raises:
            RunError: the state comes from another network or another format.
        """
        if state.get("format") != FORMAT:
            raise RunError(
                f"expected session format {FORMAT}, got {state.get('format')!r}; use the pared version that wrote it"
            )
        plan = self._resize_to(state["model"], state["created"])
        surgery.apply(plan, self.model, optimizer=self.optimizer, ema=self.averaged)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would share tensors with `state`
        self.steps, self.strength = state["steps"], state["strength"]
        self.created[:] = state["created"]
        self.events[:] = [Event(**{**event, "index": tuple(event["index"])}) for event in state["events"]]

    def _resize_to(self, saved: Mapping[str, Tensor], created: Sequence[str]) -> surgery.Plan:
        """The plan that cuts every tensor to its saved shape; what it keeps is no matter, it is overwritten."""
        mine = self.model.state_dict()
        missing = mine.keys() ^ (saved.keys() - set(created))
        if missing:
            raise RunError(
                f"the saved session does not fit this network: {min(missing)!r} is in one of them only; "
                "build the network it was saved from"
            )
        gathers = []
        for name, old in mine.items():
            new = saved[name]
            if old.ndim != new.ndim or any(n > o for n, o in zip(new.shape, old.shape, strict=True)):
                raise RunError(
                    f"the saved session does not fit this network: {name!r} is {tuple(new.shape)} there "
                    f"and {tuple(old.shape)} here; "
                    "build the network it was saved from"
                )
            gathers += [
                surgery.Gather(name, axis, tuple(range(n)))
                for axis, (n, o) in enumerate(zip(new.shape, old.shape, strict=True))
                if n < o
            ]
        resizes = []
        for space in surgery.sequential_graph(self.model).spaces:
            for module, attribute in space.attributes:
                slot = next(slot for slot in space.slots)
                resizes.append(surgery.Resize(module, attribute, saved[slot.tensor].shape[slot.axis]))
        # Biases that folding made are made again, empty and in the same order, which is the optimizer's.
        biases = [surgery.Constant(f"{name.removesuffix('bias')}weight", name, (), ()) for name in created]
        return surgery.Plan(tuple(gathers), tuple(biases), tuple(resizes))


def _ignore(event: Event) -> None:
    pass


def updates_per_removal(every: int | str, steps_per_epoch: int | None) -> int:
    """Return how many optimizer steps lie between two removals; `every` is a number of steps or "epoch"."""
    if every == "epoch":
        if steps_per_epoch is None:
            raise ConfigError('every="epoch" needs steps_per_epoch in bind; pass it, or give a number of steps')
        if steps_per_epoch < 1:
            raise ConfigError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
        return steps_per_epoch
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ConfigError(f'every must be "epoch" or a number of steps >= 1, got {every!r}')
    return every
