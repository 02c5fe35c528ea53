"""The few hooks through which every method is driven, by our loop or a person's own."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError, RunError
from pared.methods.costs import Costs
from pared.methods.rules import Rule
from pared.methods.strengths import Progress, Strength
from pared.methods.switches import Switches
from pared.nn import Select
from pared.penalties import l1

FORMAT = 3


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
    `optimizer.zero_grad()`. A loop that calls `optimizer.step()` itself, or lets a wrapper of it do so, does the same:
    switches are judged, and what is dead removed, right behind the optimizer's step, wherever that is called.
    `strength` may be changed at any time, unless a schedule moves it. `events` says what died, when, and `on_event` is
    called with each; `steps` counts optimizer steps.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        switches: Switches,
        *,
        strength: float | Strength,
        rule: Rule,
        every: int,
        costs: Costs,
        weight_strength: float = 0.0,
        weight_power: int = 2,
        total_steps: int | None = None,
        features: int = 0,
    ) -> None:
        self.model, self.optimizer, self.rule, self.every = model, optimizer, rule, every
        self.switches, self.graph, self.skipped = dict(switches.switches), switches.graph, dict(switches.skipped)
        self.titles = _titles(surgery.bare(model), switches)
        self.kept = {name: list(range(switch.theta.shape[0])) for name, switch in self.switches.items()}
        self.schedule = None if isinstance(strength, int | float) else strength
        self.strength = float(strength) if isinstance(strength, int | float) else strength.start
        self.weight_strength, self.weight_power = weight_strength, weight_power
        self.total_steps, self.features = total_steps, features
        self.costs, self.weights = costs, costs.weights(self.switches)
        self.params = self.start_params = self._count()
        self.least_params = self._least()
        self.averaged: list[nn.Module] = []
        self.steps = 0
        self.events: list[Event] = []
        self.created: list[str] = []
        self.on_event: Callable[[Event], None] = _ignore
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handle = self.optimizer.register_step_post_hook(self._after_step)  # a copied optimizer has lost it

    @property
    def inputs(self) -> Tensor:
        """The indices of the network's original inputs that are still in use, int64 (kept,)."""
        select = next((m for m in self.model.modules() if isinstance(m, Select)), None)
        return torch.arange(self.features) if select is None else select.index

    def follow(self, averaged: nn.Module) -> None:
        """Let every later removal also happen in `averaged`, a copy of the bound model or an `AveragedModel` of it.

        Raises:
            ConfigError: its tensors have other names or shapes than the bound model's.
        """
        module = surgery.bare(averaged)
        mine, other = surgery.bare(self.model).state_dict(), module.state_dict()
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
        """Return what to add to the loss, a scalar: strength · sum of |theta|, and weight_strength · sum of |W|^p.

        Each switch is weighed by what its units cost, if the method says so. W are all parameters but the switches.

        Source: ShrinkNets (arXiv 1806.03723), equation 2; its p-th power as in equations 8 and 9.
        """
        thetas = [switch.theta * self.weights[name] for name, switch in self.switches.items()]
        total = self.strength * l1(thetas)
        if self.weight_strength:
            mine = {id(switch.theta) for switch in self.switches.values()}
            others = [p for p in self.model.parameters() if id(p) not in mine and p.requires_grad]
            power = l1(others) if self.weight_power == 1 else torch.stack([p.square().sum() for p in others]).sum()
            total = total + self.weight_strength * power
        return total

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Take the optimizer's step, judge the switches, and remove what is dead when a removal is due.

        With `scaler` the step is taken through it, so that it can be left out when gradients overflowed; nothing is
        judged then. Call its `update` afterwards, as usual.
        """
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)

    def _after_step(self, *_: object) -> None:
        self.steps += 1
        for switch in self.switches.values():
            self.rule.update(switch)
        if self.steps % self.every == 0:
            self.remove()
        if self.schedule is not None and self.total_steps is not None:
            done, step = self.steps / self.total_steps, 1 / self.total_steps
            progress = Progress(done, step, self.params, self.start_params, self.least_params)
            self.strength = self.schedule.next(self.strength, progress)

    def _count(self) -> int:
        """The parameters of the network without its switches."""
        thetas = sum(switch.theta.numel() for switch in self.switches.values())
        return sum(p.numel() for p in self.model.parameters()) - thetas

    def _least(self) -> int:
        """What `_count` is when every switch has one factor left."""
        keep = {self.graph.at(f"{name}.theta").name: [0] for name in self.switches}
        shapes = {name: list(p.shape) for name, p in surgery.bare(self.model).named_parameters()}
        for item in surgery.make_plan(self.graph, surgery.bare(self.model), keep, living="cut").gathers:
            if item.tensor in shapes:
                shapes[item.tensor][item.axis] = len(item.index)
        return sum(map(math.prod, shapes.values())) - len(self.switches)

    def detach(self) -> None:
        """Let go of model and optimizer: steps are not followed any more, and the model may be bound again."""
        self._handle.remove()
        for switch in self.switches.values():
            switch.bound = False

    def remove(self) -> None:
        """Remove every dead channel now, in one transaction over model, optimizer and averaged copies."""
        keep = {
            name: switch.alive.nonzero().flatten().tolist()
            for name, switch in self.switches.items()
            if not bool(switch.alive.all())
        }
        if not keep:
            return
        channels = {name: (self.switches[name].channels, self.switches[name].live_channels().tolist()) for name in keep}
        before = {name for name, _ in surgery.bare(self.model).named_parameters()}
        plan = self._apply(keep)
        self.created += [item.bias for item in plan.constants if item.bias not in before]
        for name, (size, live) in channels.items():
            dead = tuple(sorted(set(range(size)) - set(live)))
            self.events.append(Event(self.steps, self.titles[name], len(dead), len(live), dead))
            self.on_event(self.events[-1])

    def _apply(
        self, keep: Mapping[str, Sequence[int]], created: Sequence[str] = (), living: surgery.Living = "refuse"
    ) -> surgery.Plan:
        """Keep the factors `keep` of each named switch only, in model, optimizer, averaged copies and graph.

        Biases `created` by an earlier removal are made again, empty and in the same order, which is the optimizer's.
        """
        spaces = {self.graph.at(f"{name}.theta").name: factors for name, factors in keep.items()}
        plan = surgery.make_plan(self.graph, surgery.bare(self.model), spaces, living=living)
        empty = tuple(surgery.Constant(f"{name.removesuffix('bias')}weight", name, (), ()) for name in created)
        plan = replace(plan, constants=plan.constants + empty)
        surgery.apply(plan, self.model, optimizer=self.optimizer, ema=self.averaged)
        self.graph.follow(spaces, ((item.bias, item.weight) for item in plan.constants))
        for name, factors in keep.items():
            self.kept[name] = [self.kept[name][factor] for factor in factors]
        self.weights, self.params = self.costs.weights(self.switches), self._count()
        return plan

    def realize(self) -> nn.Module:
        """Return a new network of the size reached, switches folded in; where inputs died, it takes `inputs` only.

        It is of the model's own class, made of the model's own layers, and needs no pared to load or run. A switch
        that its user put where it cannot be folded exactly is still there.
        """
        self.remove()
        model = surgery.bare(self.model)
        selects = any(isinstance(module, Select) for module in model.modules())
        small = surgery.fold(model) if selects else surgery.fold_by(model, self.graph)
        small.zero_grad(set_to_none=True)
        return small

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit-equally: model, optimizer, steps, strength, events."""
        return {
            "format": FORMAT,
            "steps": self.steps,
            "strength": self.strength,
            "events": [asdict(event) for event in self.events],
            "kept": {name: list(factors) for name, factors in self.kept.items()},
            "created": list(self.created),
            "rates": dict(self.costs.rates),
            "model": surgery.bare(self.model).state_dict(),
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
        model = surgery.bare(self.model)
        created = [name for name in state["created"] if name not in model.state_dict()]
        keep = self._still_kept(state["kept"])
        self._check_fit(state["model"], keep, created)
        self.costs.rates = dict(state["rates"])
        self._apply(keep, created, living="cut")
        model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would share tensors with `state`
        self.steps, self.strength = state["steps"], state["strength"]
        self.created[:] = state["created"]
        self.events[:] = [Event(**{**event, "index": tuple(event["index"])}) for event in state["events"]]

    def _still_kept(self, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Where, among what each switch has now, the factors are that the saved session still had."""
        if kept.keys() != self.kept.keys():
            name = min(kept.keys() ^ self.kept.keys())
            raise RunError(_MISFIT.format(f"the switch {name!r} is in one of them only"))
        places = {name: {factor: place for place, factor in enumerate(mine)} for name, mine in self.kept.items()}
        for name, factors in kept.items():
            if not factors or any(factor not in places[name] for factor in factors):
                raise RunError(_MISFIT.format(f"the switch {name!r} has fewer factors here"))
        return {name: [places[name][factor] for factor in factors] for name, factors in kept.items()}

    def _check_fit(
        self, saved: Mapping[str, Tensor], keep: Mapping[str, Sequence[int]], created: Sequence[str]
    ) -> None:
        """Compare names and shapes, as they will be after the removal, before anything is changed."""
        model = surgery.bare(self.model)
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        missing = shapes.keys() ^ (saved.keys() - set(created))
        if missing:
            raise RunError(_MISFIT.format(f"{min(missing)!r} is in one of them only"))
        spaces = {self.graph.at(f"{name}.theta").name: factors for name, factors in keep.items()}
        for item in surgery.make_plan(self.graph, model, spaces, living="cut").gathers:
            shapes[item.tensor][item.axis] = len(item.index)
        for name, shape in shapes.items():
            if list(saved[name].shape) != shape:
                raise RunError(_MISFIT.format(f"{name!r} is {tuple(saved[name].shape)} there and {tuple(shape)} here"))


_MISFIT = "the saved session does not fit this network: {}; build the network it was saved from"


def _titles(model: nn.Module, switches: Switches) -> dict[str, str]:
    """What events call each switch: its layer; "inputs" and "hidden 1", ... in a plain stack of linear layers."""
    modules = list(model.modules())
    layers = [m for m in modules if not isinstance(m, nn.Sequential) and m is not model]
    first = next((place for place, m in enumerate(layers) if isinstance(m, nn.Linear)), len(layers))
    if not isinstance(model, nn.Sequential) or any(isinstance(m, nn.modules.conv._ConvNd) for m in modules):
        return dict(switches.layers)
    inputs = [name for name, switch in switches.switches.items() if any(switch is m for m in layers[:first])]
    hidden = [name for name in switches.switches if name not in inputs]
    return dict.fromkeys(inputs, "inputs") | {name: f"hidden {place}" for place, name in enumerate(hidden, 1)}


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
