"""ShrinkNets: learn the width of every layer with switches (arXiv 1806.03723)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
        if not self.strength >= 0.0:
            raise ConfigError(f"strength must be at least 0, got {self.strength}")
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
        graph = surgery.sequential_graph(model)
        assert isinstance(model, nn.Sequential)
        surgery.check_optimizer(optimizer)
        if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            raise ConfigError(
                "a learning-rate scheduler already holds this optimizer's groups; bind the method before making "
                "the scheduler"
            )
        if graph.switched():
            raise SurgeryError(
                "the network already holds switches; bind a network once, or use session.load_state_dict to go on"
            )
        if example.shape[-1] != graph.spaces[0].size:
            raise SurgeryError(
                f"the example has {example.shape[-1]} features and the network takes {graph.spaces[0].size}; "
                "pass one batch of its inputs"
            )
        self._insert(model, graph, generator)
        switches = {name: module for name, module in surgery.leaves(model) if isinstance(module, Switch)}
        for switch in switches.values():
            self.rule.attach(switch)
        optimizer.add_param_group({"params": [s.theta for s in switches.values()], "weight_decay": 0.0})
        return Session(model, optimizer, switches, strength=self.strength, rule=self.rule, every=every)

    def _insert(self, model: nn.Sequential, graph: surgery.Graph, generator: torch.Generator | None) -> None:
        """Put a switch after each hidden space's Linear or BatchNorm1d (paper: linear, norm, switch, activation)."""
        for space in reversed(graph.spaces[1:-1]):  # backwards, so that earlier names stay true while inserting
            anchor = space.slots[0].tensor.rpartition(".")[0]
            after = [name for name in space.chain if isinstance(model.get_submodule(name), nn.BatchNorm1d)]
            if after and after[0] == space.chain[0]:
                anchor = after[0]
            path, _, name = anchor.rpartition(".")
            parent = model.get_submodule(path)
            assert isinstance(parent, nn.Sequential)
            position = list(parent._modules).index(name)
            parent.insert(position + 1, self._switch(space.size, _weight(model, space), None, generator))
        if self.inputs:
            first = graph.spaces[0]
            weight = _weight(model, graph.spaces[1])
            model.insert(0, self._switch(first.size, weight, self.input_sizes, generator))
            model.insert(0, Select(first.size, device=weight.device))

    def _switch(
        self, size: int, like: Tensor, sizes: Sequence[int] | None, generator: torch.Generator | None
    ) -> Switch:
        return Switch(size, init=self.init, sizes=sizes, generator=generator, device=like.device, dtype=like.dtype)


def _weight(model: nn.Module, space: surgery.Space) -> Tensor:
    """The weight of the Linear that produces `space`."""
    return model.get_parameter(space.slots[0].tensor)
