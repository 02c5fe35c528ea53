"""ShrinkNets: learn the width of every layer with switches (arXiv 1806.03723)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError, SurgeryError
from pared.methods.rules import SignVariance
from pared.methods.session import Session, updates_per_removal
from pared.nn import Select, Switch
from pared.nn.switch import Init


@dataclass(frozen=True)
class Shrink:
    """Switch layers, an L1 penalty on them, the sign-variance rule of death, removal while training.

    Args:
        strength: lambda of equation 2, >= 0; `session.strength` may be changed while training.
        rule: the rule of death.
        every: remove dead channels every so many steps, or each "epoch" as in the paper.
        init: how switches start; "ones" leaves the network's function as it was, "uniform" is the paper's experiments.
        inputs: also switch the network's inputs, which then are asked for no longer (`session.inputs`).
        input_sizes: neighbouring inputs that live and die together, as group sizes; one each when None.

    Source: ShrinkNets (arXiv 1806.03723), sections 2 and 3. Weight decay (lambda_2) is the optimizer's own, on
    everything except switches. Deviation: switches start at 1 unless told otherwise, so that binding changes no output.
    """

    strength: float = 1e-3
    rule: SignVariance = field(default_factory=SignVariance)
    every: int | str = "epoch"
    init: Init = "ones"
    inputs: bool = False
    input_sizes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength < math.inf:
            raise ConfigError(f"strength must be at least 0 and finite, got {self.strength}")
        if self.init not in get_args(Init):
            raise ConfigError(f"init must be one of {', '.join(get_args(Init))}; got {self.init!r}")
        if self.input_sizes is not None and not self.inputs:
            raise ConfigError("input_sizes groups switched inputs, so it needs inputs=True")

    def bind(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example: Tensor,
        *,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Session:
        """Insert switches into `model`, give them a group of `optimizer` without weight decay, and return the session.

        Shapes: `example` is one batch, (n, inputs). Bind before any learning-rate scheduler is made.

        Raises:
            SurgeryError: the network is not understood; nothing was changed.
            ConfigError: a scheduler exists already, or `every` needs `steps_per_epoch`.
        """
        del total_steps
        every = updates_per_removal(self.every, steps_per_epoch)
        surgery.check_sequential(model)
        assert isinstance(model, nn.Sequential)
        _check(model, optimizer, example)
        places = self._places(model, generator)
        before = [(parent._modules, dict(parent._modules)) for parent in {id(p): p for p, _, _ in places}.values()]
        before.append((model._modules, dict(model._modules)))
        self._insert(model, places)
        switches = {name: module for name, module in surgery.leaves(model) if isinstance(module, Switch)}
        try:
            graph = self._graph(model, switches, example)
        except SurgeryError:
            for modules, old in before:
                modules.clear()
                modules.update(old)
            raise
        for switch in switches.values():
            self.rule.attach(switch)
        thetas = [(f"{name}.theta", switch.theta) for name, switch in switches.items()]
        named = any("param_names" in group for group in optimizer.param_groups)
        params = thetas if named else [theta for _, theta in thetas]
        optimizer.add_param_group({"params": params, "weight_decay": 0.0})
        return Session(model, optimizer, switches, graph, strength=self.strength, rule=self.rule, every=every)

    def _graph(self, model: nn.Sequential, switches: Mapping[str, Switch], example: Tensor) -> surgery.Graph:
        """The graph of the network with its switches, every one of which must be able to lose factors."""
        graph = surgery.graph(model, example)
        for name in switches:
            space = graph.at(f"{name}.theta")
            if space.dim.fixed is not None:
                raise SurgeryError(f"switch {name!r} cannot lose a factor: {space.dim.fixed}")
        return graph

    def _places(
        self, model: nn.Sequential, generator: torch.Generator | None
    ) -> list[tuple[nn.Sequential, int, Switch]]:
        """Where switches go, last place first: after each hidden Linear or its BatchNorm1d, before the activation.

        The inputs' switch goes behind whatever precedes the first Linear, into which it can then always be folded.
        """
        modules = surgery.leaves(model)
        linears = [place for place, (_, module) in enumerate(modules) if isinstance(module, nn.Linear)]
        places = []
        for place in reversed(linears[:-1]):
            linear = modules[place][1]
            assert isinstance(linear, nn.Linear)
            anchor = place + 1 if isinstance(modules[place + 1][1], nn.BatchNorm1d) else place
            switch = self._switch(linear.out_features, linear.weight, None, generator)
            places.append((*_after(model, modules[anchor][0]), switch))
        if self.inputs:
            first = modules[linears[0]][1]
            assert isinstance(first, nn.Linear)
            where = _after(model, modules[linears[0] - 1][0]) if linears[0] else (model, 0)
            places.append((*where, self._switch(first.in_features, first.weight, self.input_sizes, generator)))
        if not places:
            raise SurgeryError("the network has no hidden layer to shrink; add one, or use inputs=True")
        return places

    def _insert(self, model: nn.Sequential, places: list[tuple[nn.Sequential, int, Switch]]) -> None:
        for parent, position, switch in places:  # backwards, so that earlier positions stay true
            _insert_at(parent, position, switch, "switch")
        if self.inputs:
            switch = places[-1][-1]
            _insert_at(model, 0, Select(switch.channels, device=switch.theta.device), "select")

    def _switch(
        self, size: int, like: Tensor, sizes: Sequence[int] | None, generator: torch.Generator | None
    ) -> Switch:
        return Switch(size, init=self.init, sizes=sizes, generator=generator, device=like.device, dtype=like.dtype)


def _after(model: nn.Module, name: str) -> tuple[nn.Sequential, int]:
    """The parent of the module `name` and the position right behind it."""
    path, _, key = name.rpartition(".")
    parent = model.get_submodule(path)
    assert isinstance(parent, nn.Sequential)
    return parent, list(parent._modules).index(key) + 1


def _insert_at(parent: nn.Sequential, position: int, module: nn.Module, name: str) -> None:
    """Insert `module`; neighbours known by number are renumbered, those with names keep them."""
    keys = list(parent._modules)
    if keys == [str(i) for i in range(len(keys))]:
        parent.insert(position, module)
        return
    while name in keys:
        name += "_"
    items = list(parent._modules.items())
    items.insert(position, (name, module))
    parent._modules.clear()
    parent._modules.update(items)


def _check(model: nn.Sequential, optimizer: Optimizer, example: Tensor) -> None:
    """Refuse what would fail later, before anything is changed."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise ConfigError(
            "a learning-rate scheduler already holds this optimizer's groups; bind the method before making "
            "the scheduler"
        )
    if any(isinstance(module, Switch) for module in model.modules()):
        raise SurgeryError(
            "the network already holds switches; bind a network once, or use session.load_state_dict to go on"
        )
    inputs = next(module.in_features for _, module in surgery.leaves(model) if isinstance(module, nn.Linear))
    if example.shape[-1] != inputs:
        raise SurgeryError(
            f"the example has {example.shape[-1]} features and the network takes {inputs}; pass one batch of its inputs"
        )
    surgery.refuse_optimizer(optimizer)
