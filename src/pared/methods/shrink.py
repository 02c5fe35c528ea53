"""ShrinkNets: learn the width of every layer with switches (arXiv 1806.03723)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError, SurgeryError
from pared.methods.costs import Cost, Costs, check_cost
from pared.methods.rules import Rule, SignVariance
from pared.methods.session import Session, updates_per_removal
from pared.methods.strengths import Strength
from pared.methods.switches import Switches, add_switches, refusals, switches_of, whole
from pared.nn import Select, Switch
from pared.nn.switch import Init, check_init
from pared.surgery import Example


@dataclass(frozen=True)
class Shrink:
    """Switch layers, an L1 penalty on them, a rule of death, removal while training.

    Args:
        strength: lambda of equation 2, >= 0, which `session.strength` may change while training; or what moves it:
            `Geometric(start, stop)` raises it along the run, `TowardSize(params)` drives the network to a size.
        rule: the rule of death: `SignVariance`, `SignChange` or `Threshold`.
        every: remove dead units every so many steps, or each "epoch" as in the paper.
        init: how switches start; "ones" leaves the network's function as it was, "uniform" is the paper's experiments.
        cost: what the pressure on a unit is weighed by, mean 1 over all units: "none" as in the paper, the "parameters"
            or "macs" that leave with it, or its share of its layers' measured "latency".
        weight_strength: lambda_2 of equation 2, >= 0, on all parameters but the switches; 0 leaves it to the weight
            decay of the optimizer, as the paper's experiments did.
        weight_power: p of equation 2, 1 or 2.
        lr_scale: the learning rate of switches over that of the optimizer's first group, > 0; 1 as in the paper.
        inputs: also switch the inputs of an `nn.Sequential` of linear layers, which then are asked for no longer
            (`session.inputs`).
        input_sizes: neighbouring inputs that live and die together, as group sizes; one each when None.

    Source: ShrinkNets (arXiv 1806.03723), sections 2 and 3. Deviation: switches start at 1 unless told otherwise, so that
    binding changes no output.
    """

    strength: float | Strength = 1e-3
    rule: Rule = field(default_factory=SignVariance)
    every: int | str = "epoch"
    init: Init = "ones"
    cost: Cost = "none"
    weight_strength: float = 0.0
    weight_power: int = 2
    lr_scale: float = 1.0
    inputs: bool = False
    input_sizes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("strength", "weight_strength"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not 0.0 <= value < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite, got {value}")
        check_init(self.init)
        check_cost(self.cost)
        if self.weight_power not in (1, 2):
            raise ConfigError(f"weight_power must be 1 or 2, got {self.weight_power}")
        if not 0.0 < self.lr_scale < math.inf:
            raise ConfigError(f"lr_scale must be above 0 and finite, got {self.lr_scale}")
        if self.input_sizes is not None and not self.inputs:
            raise ConfigError("input_sizes groups switched inputs, so it needs inputs=True")

    def bind(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example: Example,
        *,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Session:
        """Put switches into `model`, give them a group of `optimizer` without weight decay, and return the session.

        A network that holds switches already, by `pared.add_switches` or its own making, is bound with those. Bind
        before any learning-rate scheduler is made.

        Args:
            model: any network that `torch.export` can follow.
            optimizer: over the model's parameters, without state yet or with.
            example: what the forward pass takes, as for `pared.graph`: one batch of its inputs, say.
            total_steps: optimizer steps of the whole run; a strength that moves needs it.
            steps_per_epoch: optimizer steps in an epoch; `every="epoch"` needs it.
            generator: where random factors are drawn from.

        Raises:
            SurgeryError: the network is not understood, or nothing in it can be removed; nothing was changed.
            ConfigError: a scheduler exists already, or a number of steps is missing.
        """
        every = updates_per_removal(self.every, steps_per_epoch)
        if not isinstance(self.strength, int | float) and (total_steps is None or total_steps < 1):
            raise ConfigError(f"a strength that moves needs total_steps in bind, at least 1; got {total_steps}")
        net = surgery.bare(model)
        _check(net, optimizer)
        with whole(net):
            switches = self._switches(net, example, generator)
            costs = Costs(self.cost, net, switches.graph, example)
        for switch in switches.switches.values():
            self.rule.attach(switch)
            switch.bound = True
        _give_group(optimizer, switches, self.lr_scale)
        return Session(
            model,
            optimizer,
            switches,
            strength=self.strength,
            rule=self.rule,
            every=every,
            costs=costs,
            weight_strength=self.weight_strength,
            weight_power=self.weight_power,
            total_steps=total_steps,
            features=example.shape[-1] if isinstance(example, Tensor) else 0,
        )

    def _switches(self, model: nn.Module, example: Example, generator: torch.Generator | None) -> Switches:
        """The switches that the network has, or is given."""
        own = list(switches_of(model))
        if self.inputs:
            self._switch_inputs(model, example, generator)
        if not own:
            return add_switches(model, example, init=self.init, generator=generator)
        graph, found = surgery.graph(model, example), switches_of(model)
        for name, reason in refusals(graph, model, own).items():
            raise SurgeryError(f"switch {name!r} cannot lose a factor: {reason}")
        return Switches(found, {name: graph.at(f"{name}.theta").name for name in found}, {}, graph)

    def _switch_inputs(self, model: nn.Module, example: Example, generator: torch.Generator | None) -> None:
        """Put a `Select` first, and a switch behind whatever precedes the first Linear, into which it can be folded."""
        surgery.check_sequential(model)
        assert isinstance(model, nn.Sequential)
        modules = surgery.leaves(model)
        place, linear = next((p, m) for p, (_, m) in enumerate(modules) if isinstance(m, nn.Linear))
        size = linear.in_features
        if not isinstance(example, Tensor) or example.shape[-1] != size:
            found = f"{example.shape[-1]} features" if isinstance(example, Tensor) else "no tensor"
            raise SurgeryError(f"the example has {found} and the network takes {size}; pass one batch of its inputs")
        like = linear.weight
        switch = Switch(
            size, init=self.init, sizes=self.input_sizes, generator=generator, device=like.device, dtype=like.dtype
        )
        _insert_at(*(_after(model, modules[place - 1][0]) if place else (model, 0)), switch, "switch")
        _insert_at(model, 0, Select(size, device=like.device), "select")


def _give_group(optimizer: Optimizer, switches: Switches, lr_scale: float) -> None:
    """Give the switches a group without weight decay; one made with the rest of the network leaves the rest's group."""
    thetas = [(f"{name}.theta", switch.theta) for name, switch in switches.switches.items()]
    mine = {id(theta) for _, theta in thetas}
    for group in optimizer.param_groups:
        stays = [id(parameter) not in mine for parameter in group["params"]]
        for key in ("params", "param_names"):
            if key in group:
                group[key][:] = [item for item, stay in zip(group[key], stays, strict=True) if stay]
    named = any("param_names" in group for group in optimizer.param_groups)
    group: dict[str, Any] = {"params": thetas if named else [theta for _, theta in thetas], "weight_decay": 0.0}
    if lr_scale != 1.0:
        group["lr"] = lr_scale * optimizer.param_groups[0]["lr"]
    optimizer.add_param_group(group)


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


def _check(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse what would fail later, before anything is changed."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise ConfigError(
            "a learning-rate scheduler already holds this optimizer's groups; bind the method before making "
            "the scheduler"
        )
    if any(switch.bound for switch in switches_of(model).values()):
        raise SurgeryError("the network is bound already; bind a network once, or use session.load_state_dict to go on")
    surgery.refuse_optimizer(optimizer)
