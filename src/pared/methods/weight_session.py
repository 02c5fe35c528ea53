"""A method bound to a network whose single weights it lets die and live."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared.errors import ConfigError, RunError
from pared.methods.session import Session, check_format
from pared.nn.dense import dense
from pared.ops.processes import Processes
from pared.optim.base import SphereOptimizer
from pared.sparsifying import sparsify
from pared.surgery.prune_masks import plain_copy
from pared.surgery.trace import Example, evaluating
from pared.topology import Carry, Compressed, Connections, Masked

if TYPE_CHECKING:
    from pared.methods.weights import WeightMethod

FORMAT = 2


@dataclass(frozen=True)
class Rewired:
    """At optimizer step `step` `dropped` connections of `layer` died and `grown` came to life; `live` are there now."""

    step: int
    layer: str
    dropped: int
    grown: int
    live: int


class WeightSession(Session):
    """A method that decides over single weights, bound to a model and its optimizer.

    Dead weights are exactly 0 after every step, have no gradient after any backward pass, and no optimizer state, so that
    gradients are clipped and logged as those of a sparse network are; methods that look at the dead's keep them aside.
    Gradients that a loop writes itself are held at the step. `connections` say who
    lives, by the weight's name; `events` say what changed, when, and `on_event` is called with each. `memory` is what a
    method remembers, (weight's shape) each; `generator` is where it draws from. `skipped` says of parameters of two and more
    axes that are not among the `connections`, by name, why they are not; printing the session tells both.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        method: "WeightMethod",
        connections: Mapping[str, Connections],
        *,
        total_steps: int | None,
        seed: int,
        loss: Callable[[], float | Tensor] | None = None,
    ) -> None:
        super().__init__(model, optimizer, total_steps)
        self.method, self.connections = method, dict(connections)
        self.memory: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.loss = loss
        self.events: list[Rewired] = []
        self.skipped: dict[str, str] = {}
        self.on_event: Callable[[Rewired], None] = _ignore
        for name, one in self.connections.items():
            self._carry(name, one.begin(), one.weight.shape)
            self._tell(name, one.live()[:0])
            one.attach()
            if self.processes.several:
                one.reduce = self._mean

    @property
    def processes(self) -> Processes:
        """The processes that train the network together."""
        return Processes.of(self.model)

    @property
    def sparsity(self) -> float:
        """The share of zeros among the weights that can die."""
        live = sum(connections.count for connections in self.connections.values())
        return 1.0 - live / sum(connections.shape.numel() for connections in self.connections.values())

    @property
    def params(self) -> int:
        """The parameters of the network that are not dead."""
        dead = sum(connections.weight.numel() - connections.count for connections in self.connections.values())
        return sum(p.numel() for p in self.model.parameters()) - dead

    @property
    def covered(self) -> tuple[int, int]:
        """How many weights can die, and how many there are; biases and norms are none."""
        held = sum(connections.shape.numel() for connections in self.connections.values())
        sizes = {name: p.numel() for name, p in self.net.named_parameters(remove_duplicate=False)}
        return held, held + sum(sizes.get(name, 0) for name in self.skipped)

    def __str__(self) -> str:
        """Say what the method is at work on, and what it leaves alone."""
        held, every = self.covered
        lines = [
            f"{self.method}",
            f"step {self.steps}: sparsity {self.sparsity:.3f} of {held:,} of {every:,} weights; biases and norms stay dense",
            *(f"  {name} {tuple(one.shape)}: {one.count:,} live" for name, one in self.connections.items()),
            *(f"  not covered: {name}: {reason}" for name, reason in self.skipped.items()),
        ]
        return "\n".join(lines)

    def done(self, begin: float, end: float) -> float:
        """Return how much of the run's part between the fractions `begin` and `end` has passed, in [0, 1]."""
        assert self.total_steps is not None
        return min(max((self.steps / self.total_steps - begin) / max(end - begin, 1e-12), 0.0), 1.0)

    def masked(self, name: str) -> Masked:
        """Return the connections of a weight that is kept whole."""
        found = self.connections[name]
        assert isinstance(found, Masked)
        return found

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Take the optimizer's step, with what the method does before and behind it.

        A method that changes connections instead of taking a step (RigL) leaves the step out where it can: not with a
        `scaler`, and not in a loop that calls `optimizer.step()` itself.
        """
        if scaler is None and self.method.instead and self.method.due(self, self.steps + 1):
            self._left_out = False
            self.before_step()
            self._on_stepped()
        else:
            super().step(scaler)

    def before_step(self) -> None:
        """Let the method look at all gradients, then take those of dead weights away."""
        if self._looks_next():
            for connections in self.connections.values():
                connections.keep_gradient()
        self.method.look(self)
        for connections in self.connections.values():
            connections.hold_gradient()

    def after_step(self) -> None:
        """Hold dead weights at 0, and change connections if it is time."""
        for connections in self.connections.values():
            connections.hold()
        self.method.press(self)
        if self.method.due(self, self.steps):
            self.check_alike()
            self.method.update(self)
        for connections in self.connections.values():
            connections.forget_gradient()
        self.look_ahead()

    def check_alike(self) -> None:
        """Make sure, before a change, that all processes have the same weights, where no wrapper of torch's sees to it.

        Raises:
            RunError: they differ.
        """
        if self.processes.wrapped:
            return
        held = {name: connections.weight for name, connections in self.connections.items()}
        name = self.processes.unlike(held | self.memory)
        if name is not None:
            raise RunError(
                f"connections cannot change alike in {self.processes.size} processes: {name!r} differs between them at step "
                f"{self.steps}; average gradients, as DistributedDataParallel does, or train a network that is a process's "
                "own before init_process_group"
            )

    def look_ahead(self) -> None:
        """Let connections keep what the next step's changes need, before its forward pass."""
        for connections in self.connections.values():
            connections.attach()
            if self._looks_next():
                connections.watch()

    def _looks_next(self) -> bool:
        return self.method.looks or (not self.method.blind and self.method.due(self, self.steps + 1))

    def rewire(
        self, name: str, drop: Tensor, grow: Tensor, values: Tensor | float = 0.0, *, returning: bool = True
    ) -> None:
        """Let the living entries `drop` die, and the dead entries `grow` live with `values` and no optimizer state.

        Entries in both stay as they are when `returning`, else they begin anew.
        """
        if returning and len(drop):
            both = torch.isin(grow, drop)
            values = values[~both] if isinstance(values, Tensor) and values.ndim else values
            drop, grow = drop[~torch.isin(drop, grow)], grow[~both]
        connections = self.connections[name]
        if not connections.weight.requires_grad:  # frozen since
            return
        shape = connections.weight.shape
        self._carry(name, connections.change(drop, grow, values), shape)
        self._tell(name, grow)
        self._mirror(name)
        if len(drop) or len(grow):
            self.events.append(Rewired(self.steps, name, len(drop), len(grow), connections.count))
            self.on_event(self.events[-1])

    @torch.no_grad()
    def loss_without(self, drops: Mapping[str, Tensor]) -> float:
        """Return the `loss` that `bind` was given, the mean of all processes, as if these living entries were dead."""
        assert self.loss is not None
        before = {name: self.connections[name].weight.clone() for name in drops}
        try:
            for name, drop in drops.items():
                connections = self.connections[name]
                connections.weight[connections.places(drop)] = 0.0
            with evaluating(self.net):
                value = torch.as_tensor(float(self.loss()), dtype=torch.float64)
        finally:
            for name, weight in before.items():
                self.connections[name].weight.copy_(weight)
        if self.processes.several:
            value = self.processes.mean_(value.to(next(self.net.parameters()).device))
        return float(value)

    def _mean(self, value: Tensor) -> None:
        self.processes.mean_(value)

    @torch.no_grad()
    def _carry(self, name: str, carry: Carry, shape: torch.Size) -> None:
        """Let the optimizer's state of a weight follow a change, as if new entries had never been there."""
        weight = self.connections[name].weight
        group = next((g for g in self.optimizer.param_groups if any(p is weight for p in g["params"])), None)
        if group is None:
            raise RunError(
                f"the optimizer does not hold {name!r} any more, as when a state was loaded with assign=True; bind again"
            )
        # Rprop's rates start at the group's, Adagrad's sums where it says, all else at 0.
        fresh = {"step_size": float(group["lr"]), "sum": group.get("initial_accumulator_value", 0.0)}
        known = self.optimizer.state.get(weight, {})
        for key, state in list(known.items()):
            if isinstance(state, Tensor) and state.ndim and state.shape == shape:
                known[key] = carry(state, fresh.get(key, 0.0))

    def _tell(self, name: str, grow: Tensor) -> None:
        """Tell an optimizer that depends on which weights live."""
        connections = self.connections[name]
        if isinstance(self.optimizer, SphereOptimizer) and self.optimizer.holds(connections.weight):
            connections.tell(self.optimizer, grow)

    def _mirror(self, name: str) -> None:
        for averaged in self.averaged:
            self.connections[name].mirror(averaged, name)

    def follow(self, averaged: nn.Module) -> None:
        """Let all that dies later also die in `averaged`, a copy of the bound model or an `AveragedModel` of it.

        Raises:
            ConfigError: its tensors have other names or shapes, or it averages where sparse layers have their weights.
        """
        sparse = any(isinstance(connections, Compressed) for connections in self.connections.values())
        if sparse and getattr(averaged, "use_buffers", False):
            raise ConfigError("use_buffers=True would average where the weights of sparse layers are; leave it out")
        super().follow(averaged)

    def detach(self) -> None:
        """Let go of model and optimizer: steps are not followed any more, and the model may be bound again."""
        super().detach()
        for connections in self.connections.values():
            connections.detach()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._attached:
            self.look_ahead()  # a copied layer has forgotten that it is watched

    def realize(self, *, sparse: bool | Example = False) -> nn.Module:
        """Return a copy of the network, plain and dense, with exact zeros where no connection is.

        If `sparse` is True, layers that are sparse already stay so. An example of what the network takes instead makes layers
        sparse where `pared.sparsify` measures that they are faster with as many rows; that copy is in evaluation mode.
        """
        small = plain_copy(self.net)
        small.zero_grad(set_to_none=True)
        if sparse is True:
            return small
        return dense(small) if sparse is False else sparsify(dense(small), sparse).model

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit-equally: model, optimizer, masks, memory, random state, events.

        Tensors are the live ones, as in torch's own `state_dict`: save it, or make a deep copy, before going on.
        """
        return {
            "format": FORMAT,
            "method": type(self.method).__name__,
            "settings": self.method.settings(),
            "total_steps": self.total_steps,
            "steps": self.steps,
            "shapes": {name: list(connections.shape) for name, connections in self.connections.items()},
            "masks": {
                n: connections.mask for n, connections in self.connections.items() if isinstance(connections, Masked)
            },
            "memory": dict(self.memory),
            "generator": self.generator.get_state(),
            "events": [asdict(event) for event in self.events],
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state in this freshly bound session.

        Raises:
            RunError: the state comes from another network, another format, a method with other settings, or, where the method
                counts on that, a run of another length.
        """
        check_format(state, FORMAT)
        if state["method"] != type(self.method).__name__:
            raise RunError(f"the saved session is of {state['method']}, this one of {type(self.method).__name__}")
        shapes = {name: list(connections.shape) for name, connections in self.connections.items()}
        saved = dict(state["shapes"])
        for name in sorted(shapes.keys() | saved.keys()):
            if shapes.get(name) != saved.get(name):
                raise RunError(
                    f"the saved session does not fit this network: {name!r} is {saved.get(name)} there and "
                    f"{shapes.get(name)} here; build the network it was saved from"
                )
        self._check_settings(state)
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would share tensors with `state`
        for name, connections in self.connections.items():
            connections.forget_gradient()
            if isinstance(connections, Masked):
                connections.mask.copy_(state["masks"][name])
            self._mirror(name)
        device = next(self.net.parameters()).device
        self.memory = {name: tensor.to(device, copy=True) for name, tensor in state["memory"].items()}
        self.generator.set_state(state["generator"])
        self.steps = state["steps"]
        self.events[:] = [Rewired(**event) for event in state["events"]]
        self.look_ahead()

    def _check_settings(self, state: Mapping[str, Any]) -> None:
        mine, saved = self.method.settings(), state.get("settings", {})
        for name in sorted(mine.keys() & saved.keys()):
            if mine[name] != saved[name]:
                raise RunError(
                    f"the saved session is of {type(self.method).__name__} with {name}={saved[name]}, this one has "
                    f"{name}={mine[name]}; bind the method that it was saved with"
                )
        total = state.get("total_steps", self.total_steps)
        if self.method.timed and total != self.total_steps:
            raise RunError(
                f"the saved session is of a run of {total} steps, this one of {self.total_steps}; bind with "
                f"total_steps={total}"
            )


def _ignore(event: Rewired) -> None:
    pass
