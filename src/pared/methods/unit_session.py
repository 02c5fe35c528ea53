"""A method bound to a network whose units it removes."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError, RunError
from pared.methods.costs import Costs
from pared.methods.parts import Parts
from pared.methods.selectors import Competing, Units
from pared.methods.session import Event, Session, check_format
from pared.methods.strengths import Progress, Strength
from pared.nn import Gate, Select, SparseAdjacency, Switch, crop_kernels, drop_branches, fix_adjacency
from pared.surgery.computed import made_by_forward

FORMAT = 5


class UnitSession(Session):
    """A method that decides over units, bound to a model and its optimizer.

    `strength` may be changed at any time, unless a schedule moves it. `events` says what died, when, and `on_event` is
    called with each. `selectors` say who is alive, and those with an entry in `slots` are removed while the network
    trains, every `every` steps; `copies` of the network, which follow its removals, are a method's own, as of weights
    to rewind to.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        parts: Parts,
        *,
        every: int,
        strength: float | Strength = 0.0,
        total_steps: int | None = None,
        features: int = 0,
    ) -> None:
        super().__init__(model, optimizer, total_steps)
        self.every = every
        self.pressure, self.judge, selected = parts.pressure, parts.judge, parts.selected
        self.components = parts.components
        self.selectors, self.slots = dict(selected.selectors), dict(selected.slots)
        self.titles, self.skipped = dict(selected.layers), dict(selected.skipped)
        self._graph = selected.graph
        self._outdated: surgery.Example | None = None
        self.kept = {name: list(range(len(selector.alive))) for name, selector in self.selectors.items()}
        self.schedule = None if isinstance(strength, int | float) else strength
        self.strength = float(strength) if isinstance(strength, int | float) else strength.start
        self.features, self.seed = features, parts.seed
        self.costs = parts.costs or Costs("none", self.net, selected.graph, ())
        self.weights = self.costs.weights(self.slots)
        self.params = self.start_params = self._count()
        self.least_params = self.params_with({name: [0] for name in self.slots})
        self.copies: dict[str, nn.Module] = {}
        self.events: list[Event] = []
        self.created: list[str] = []
        self.on_event: Callable[[Event], None] = _ignore

    @property
    def graph(self) -> surgery.Graph:
        """The tied axes of the network as it is now."""
        if self._outdated is not None:
            example, self._outdated = self._outdated, None
            self._graph = self.costs.graph = surgery.graph(self.net, example)
        return self._graph

    def outdate(self, example: surgery.Example) -> None:
        """Let the graph be made again from `example`, as for `pared.graph`, when it is next asked for."""
        self._outdated = example

    @property
    def switches(self) -> dict[str, Switch]:
        """The selectors that are switches."""
        return {name: selector for name, selector in self.selectors.items() if isinstance(selector, Switch)}

    @property
    def gates(self) -> dict[str, Gate]:
        """The switches that compete."""
        return {name: selector for name, selector in self.selectors.items() if isinstance(selector, Gate)}

    @property
    def competing(self) -> dict[str, Competing]:
        """The selectors whose factors compete: gates, and the edges of learned graphs."""
        return {name: selector for name, selector in self.selectors.items() if isinstance(selector, Competing)}

    @property
    def followers(self) -> list[nn.Module]:
        """The copies of the network that follow its removals."""
        return [*self.averaged, *self.copies.values()]

    @property
    def units(self) -> dict[str, Units]:
        """The selectors that are units of layers as they are."""
        return {name: selector for name, selector in self.selectors.items() if isinstance(selector, Units)}

    @property
    def inputs(self) -> Tensor:
        """The indices of the network's original inputs that are still in use, int64 (kept,)."""
        select = next((m for m in self.model.modules() if isinstance(m, Select)), None)
        return torch.arange(self.features) if select is None else select.index

    def penalty(self) -> Tensor:
        """Return what to add to the loss, a scalar."""
        return self.pressure.penalty(self)

    def before_step(self) -> None:
        """Let the judge look."""
        self.judge.look(self)

    def after_step(self) -> None:
        """Press, judge, and remove what is dead when a removal is due."""
        self.pressure.press(self)
        self.judge.judge(self)
        if self.steps % self.every == 0:
            self.remove()
        if self.schedule is not None and self.total_steps is not None:
            done, step = self.steps / self.total_steps, 1 / self.total_steps
            progress = Progress(done, step, self.params, self.start_params, self.least_params)
            self.strength = self.schedule.next(self.strength, progress)

    def _count(self) -> int:
        """The parameters of the network without its switches."""
        own = switch_parameters(self.net)
        return sum(p.numel() for name, p in self.net.named_parameters() if name not in own)

    def params_with(self, keep: Mapping[str, Sequence[int]]) -> int:
        """Return what `params` would be with the factors `keep` of each named selector only."""
        model = self.net
        shapes = {name: list(p.shape) for name, p in model.named_parameters()}
        for item in surgery.make_plan(self.graph, model, self._spaces(keep), living="cut").gathers:
            if item.tensor in shapes:
                shapes[item.tensor][item.axis] = len(item.index)
        own = switch_parameters(model)
        return sum(math.prod(shape) for name, shape in shapes.items() if name not in own)

    def _spaces(self, keep: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
        """The factors of named selectors under the names of their spaces."""
        slots = {name: self.slots[name] for name in keep}
        return {self.graph.at(s.tensor, s.axis, s.leaf).name: keep[name] for name, s in slots.items()}

    @surgery.keeps_mode
    def remove(self) -> None:
        """Remove every dead channel now, in one transaction over model, optimizer and averaged copies."""
        if self.components is not None:
            self.components.remove(self)
        keep = {
            name: selector.alive.nonzero().flatten().tolist()
            for name, selector in self.selectors.items()
            if name in self.slots and not bool(selector.alive.all())
        }
        if not keep:
            return
        channels = {
            name: (self.selectors[name].channels, self.selectors[name].live_channels().tolist()) for name in keep
        }
        before, told = {name for name, _ in self.net.named_parameters()}, len(self.events)
        with surgery.Whole() as undo:
            plan = self._apply(keep, undo)
            self.created += [item.bias for item in plan.constants if item.bias not in before]
            for name, (size, live) in channels.items():
                dead = tuple(sorted(set(range(size)) - set(live)))
                self.events.append(Event(self.steps, self.titles[name], len(dead), len(live), dead))
        for event in self.events[told:]:
            self.on_event(event)

    def tell(self, event: Event) -> None:
        """Note what was removed."""
        self.events.append(event)
        self.on_event(event)

    def recount(self) -> None:
        """Count again, after a removal; what was in a module that is gone is no longer asked for."""
        held = surgery.tensors(self.net)
        self.slots = {name: slot for name, slot in self.slots.items() if slot.tensor in held}
        self.weights, self.params = self.costs.weights(self.slots), self._count()

    def _apply(
        self,
        keep: Mapping[str, Sequence[int]],
        undo: list[surgery.Undo],
        created: Sequence[str] = (),
        living: surgery.Living = "refuse",
    ) -> surgery.Plan:
        """Keep the factors `keep` of each named switch only, in model, optimizer, averaged copies and graph.

        How to take it back is appended to `undo`. Biases `created` by an earlier removal are made again, empty and in the
        same order, which is the optimizer's.
        """
        spaces = self._spaces(keep)
        plan = surgery.make_plan(self.graph, self.net, spaces, living=living)
        empty = tuple(surgery.Constant(f"{name.removesuffix('bias')}weight", name, (), ()) for name in created)
        plan = replace(plan, constants=plan.constants + empty)
        commit = surgery.prepare(plan, self.model, optimizer=self.optimizer, ema=self.followers)
        undo += [surgery.remember(self.graph), *self._fields()]
        commit(undo)
        self.graph.follow(spaces, ((item.bias, item.weight) for item in plan.constants))
        for name, factors in keep.items():
            self.kept[name] = [self.kept[name][factor] for factor in factors]
            selector = self.selectors[name]
            if isinstance(selector, Units):
                selector.follow(factors)
        self.recount()
        return plan

    def _fields(self) -> list[surgery.Undo]:
        """How to put back what the session and its units remember of sizes."""
        fields: list[surgery.Undo] = [partial(vars(one).update, dict(vars(one))) for one in self.units.values()]
        mine: list[list[Any]] = [self.created, self.events]
        fields += [partial(one.__setitem__, slice(None), list(one)) for one in mine]
        fields.append(partial(self.kept.update, dict(self.kept)))
        names = ("slots", "weights", "params")
        return [*fields, partial(vars(self).update, {name: vars(self)[name] for name in names})]

    @surgery.keeps_mode
    @surgery.trains
    @torch.no_grad()
    def realize(self) -> nn.Module:
        """Return a new network of the size reached, switches folded in; where inputs died, it takes `inputs` only.

        The session goes on as if nothing had been asked: what is dead now, and was not yet due to be removed, is gone in
        the new network only. Inputs wait for `remove`, as data has to follow.

        It is of the model's own class, made of the model's own layers, and needs no pared to load or run. A switch
        that its user put where it cannot be folded exactly is still there.
        """
        twin = self._twin()
        twin.judge.settle(twin)
        twin.remove()
        model = twin.net
        if any(isinstance(module, Select) for module in model.modules()):
            model = surgery.fold(model)
        else:
            surgery.fold_(model, twin.graph)
        model.zero_grad(set_to_none=True)
        return fix_adjacency(drop_branches(crop_kernels(model)))

    def _twin(self) -> "UnitSession":
        """A copy of the session with the network and no one who follows it, where all inputs live that `inputs` names."""
        alone = {"model": self.net, "optimizer": None, "averaged": [], "copies": {}, "events": [], "on_event": _ignore}
        left_out = ("_handles", "schedule")
        twin, memo = object.__new__(type(self)), made_by_forward(self.net)
        vars(twin).update(copy.deepcopy({k: v for k, v in (vars(self) | alone).items() if k not in left_out}, memo))
        chosen = {f"{name}.index" for name, module in twin.net.named_modules() if isinstance(module, Select)}
        for name, slot in twin.slots.items() if chosen else ():
            if chosen & {tied.tensor for tied in twin.graph.at(slot.tensor, slot.axis, slot.leaf).slots}:
                twin.selectors[name].alive.fill_(True)
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit-equally: model, optimizer, selectors, copies, steps, strength, events."""
        return {
            "format": FORMAT,
            "steps": self.steps,
            "strength": self.strength,
            "events": [asdict(event) for event in self.events],
            "kept": {name: list(factors) for name, factors in self.kept.items()},
            "created": list(self.created),
            "rates": dict(self.costs.rates),
            "seed": self.seed,
            "units": {name: dict(units.state) for name, units in self.units.items()},
            "components": [] if self.components is None else self.components.saved(),
            "copies": {name: model.state_dict() for name, model in self.copies.items()},
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resize this freshly bound session's model and optimizer to the saved sizes and fill them.

        Raises:
            RunError: the state comes from another network or another format.
        """
        check_format(state, FORMAT)
        if self.components is not None:
            self.components.load(self, state["components"], state["kept"])
        model = self.net
        created = [name for name in state["created"] if name not in model.state_dict()]
        keep = self._still_kept(state["kept"])
        self._check_fit(state["model"], keep, created)
        self.costs.rates = dict(state["rates"])
        with surgery.Whole() as undo:
            self._apply(keep, undo, created, living="cut")
        model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would share tensors with `state`
        for name, units in self.units.items():
            units.state = {key: t.to(units.alive.device, copy=True) for key, t in state["units"][name].items()}
        self.copies = {}
        for name, tensors in state["copies"].items():
            self.copies[name] = copy.deepcopy(model)
            self.copies[name].load_state_dict(tensors)
        self.steps, self.strength, self.seed = state["steps"], state["strength"], state["seed"]
        self.recount()  # once more, as costs may depend on who is alive
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
        return {n: [places[n][factor] for factor in factors] for n, factors in kept.items() if n in self.slots}

    def _check_fit(
        self, saved: Mapping[str, Tensor], keep: Mapping[str, Sequence[int]], created: Sequence[str]
    ) -> None:
        """Compare names and shapes, as they will be after the removal, before anything is changed."""
        model = self.net
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        missing = shapes.keys() ^ (saved.keys() - set(created))
        if missing:
            raise RunError(_MISFIT.format(f"{min(missing)!r} is in one of them only"))
        for item in surgery.make_plan(self.graph, model, self._spaces(keep), living="cut").gathers:
            shapes[item.tensor][item.axis] = len(item.index)
        for name, shape in shapes.items():
            if list(saved[name].shape) != shape:
                raise RunError(_MISFIT.format(f"{name!r} is {tuple(saved[name].shape)} there and {tuple(shape)} here"))


_MISFIT = "the saved session does not fit this network: {}; build the network it was saved from"


def switch_parameters(model: nn.Module) -> set[str]:
    """Return the names of what the switches of `model` learn, and its graphs, but for a number for each edge."""
    held = ((p, m) for p, m in model.named_modules() if isinstance(m, Switch | SparseAdjacency))
    own = ((f"{p}." if p else "", m, key) for p, m in held for key, _ in m.named_parameters(recurse=False))
    return {prefix + key for prefix, module, key in own if isinstance(module, Switch) or key != "theta"}


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
