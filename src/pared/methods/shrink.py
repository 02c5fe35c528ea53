"""ShrinkNets: learn the width of every layer with switches (arXiv 1806.03723)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError, SurgeryError
from pared.methods.binding import bind_switches, check_strength
from pared.methods.costs import Cost, Costs, check_cost
from pared.methods.method import UnitMethod
from pared.methods.parts import Parts
from pared.methods.rules import EachSwitch, Rule, SignVariance
from pared.methods.strengths import Strength
from pared.methods.switches import Switches, add_switches, refusals, switches_of, titles, whole
from pared.methods.unit_session import UnitSession
from pared.nn import KernelSwitch, Select, Switch, switch_kernels
from pared.nn.switch import Init, check_init
from pared.penalties import l1
from pared.surgery import Example


@dataclass(frozen=True)
class Shrink(UnitMethod):
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
        kernels: also switch the positions of kernels (the paper's section 6); they die while the network trains, and
            `realize` cuts kernels down to what is left.
        sums: also switch residual sums, each as one (`pared.add_switches`); the paper keeps their size.
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
    sums: bool = False
    kernels: bool = False
    inputs: bool = False
    input_sizes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if not 0.0 <= self.weight_strength < math.inf:
            raise ConfigError(f"weight_strength must be at least 0 and finite, got {self.weight_strength}")
        check_init(self.init)
        check_cost(self.cost)
        if self.weight_power not in (1, 2):
            raise ConfigError(f"weight_power must be 1 or 2, got {self.weight_power}")
        if not 0.0 < self.lr_scale < math.inf:
            raise ConfigError(f"lr_scale must be above 0 and finite, got {self.lr_scale}")
        if self.input_sizes is not None and not self.inputs:
            raise ConfigError("input_sizes groups switched inputs, so it needs inputs=True")

    def assemble(
        self, model: nn.Module, optimizer: Optimizer, example: Example, generator: torch.Generator | None
    ) -> Parts:
        """Put switches into the network, give them a group without weight decay, and return the parts.

        A network that holds switches already, by `pared.add_switches` or its own making, keeps those.
        """
        with whole(model):
            switches = self._switches(model, example, generator)
            costs = Costs(self.cost, model, switches.graph, example)
        found = {**switches.switches, **_kernels_of(model)}
        for switch in found.values():
            self.rule.attach(switch)
        bind_switches(found, optimizer, self.lr_scale)
        selected = replace(switches.selected(), selectors=found, layers=_titles(model, switches))
        return Parts(selected, _Penalty(self.weight_strength, self.weight_power), EachSwitch(self.rule), costs)

    def _switches(self, model: nn.Module, example: Example, generator: torch.Generator | None) -> Switches:
        """The switches that the network has, or is given."""
        if self.kernels:
            switch_kernels(model, init=self.init, generator=generator)
        own = list(switches_of(model))
        if self.inputs:
            self._switch_inputs(model, example, generator)
        if not own:
            return add_switches(model, example, init=self.init, sums=self.sums, generator=generator)
        graph, found = surgery.graph(model, example), switches_of(model)
        for name, reason in refusals(graph, model, own).items():
            raise SurgeryError(f"switch {name!r} cannot lose a factor: {reason}")
        return Switches(found, titles(found, model, graph), {}, graph)

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


@dataclass(frozen=True)
class _Penalty:
    """The penalty of equation 2; `weights` are all parameters but the switches."""

    weight_strength: float
    weight_power: int

    def penalty(self, session: UnitSession) -> Tensor:
        """Return strength · sum of |theta|, each weighed by what its units cost, and weight_strength · sum of |W|^p.

        Source: ShrinkNets (arXiv 1806.03723), equation 2; its p-th power as in equations 8 and 9.
        """
        thetas = [switch.theta for switch in session.switches.values()]
        weighed = [theta * session.weights.get(name, 1.0) for name, theta in zip(session.switches, thetas, strict=True)]
        total = session.strength * l1(weighed)
        mine = set(map(id, thetas))
        others = [p for p in session.model.parameters() if id(p) not in mine and p.requires_grad]
        if self.weight_strength and others:
            power = l1(others) if self.weight_power == 1 else torch.stack([p.square().sum() for p in others]).sum()
            total = total + self.weight_strength * power
        return total

    def press(self, session: UnitSession) -> None:
        """Do nothing: the optimizer's step is all."""


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


def _kernels_of(model: nn.Module) -> dict[str, KernelSwitch]:
    return {name: module for name, module in model.named_modules() if isinstance(module, KernelSwitch)}


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
