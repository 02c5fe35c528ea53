"""Methods that decide over single weights: which are there at the start, and when some die and others grow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError
from pared.methods.binding import check_optimizer, check_total
from pared.methods.method import Method
from pared.methods.weight_session import WeightSession, find_layers
from pared.nn.sparse_layer import SparseLayer
from pared.ops.processes import Processes
from pared.optim.base import SphereOptimizer
from pared.surgery import Example
from pared.topology import Compressed, Distribution, Masked, spread

#: Which weights can die: of every linear and convolutional layer, or without the first, the last, or both; or what is
#: told of a name and a weight.
Where = Literal["all", "but first", "but last", "hidden"] | Callable[[str, nn.Parameter], bool]
#: Whether weights compete over the whole network, or within each layer.
Scope = Literal["network", "layer"]


@dataclass(frozen=True)
class WeightMethod(Method):
    """What methods of single weights share; one of your own says what it does in `look`, `press`, `due` and `update`.

    Args:
        sparsity: the share of zeros among the weights that can die, in [0, 1).
        distribution: how it is spread over layers, see `pared.topology.spread`.
        where: which weights can die: "all" of linear and convolutional layers, "but first", "but last", "hidden" (both
            left out), or a function of a name and a weight. Biases and norms never do, nor weights that are frozen or that
            the optimizer does not hold.
        rescale: whether weights that live at the start are multiplied by sqrt(inputs / living inputs) of their neuron, so
            that signals pass as in the dense network; without norms they die in a sparse one otherwise. Weights on a
            sphere have their size.
    """

    sparsity: float = 0.9
    distribution: Distribution = "uniform"
    where: Where = "all"
    rescale: bool = False
    #: It has to know the steps of the run.
    timed: ClassVar[bool] = False
    #: It changes connections instead of a step.
    instead: ClassVar[bool] = False
    #: It looks at the gradients of all weights at every step; or at none, not even when connections change.
    looks: ClassVar[bool] = False
    blind: ClassVar[bool] = False
    #: It moves weights itself.
    presses: ClassVar[bool] = False
    #: The number of a layer's connections stays.
    steady: ClassVar[bool] = False

    def __post_init__(self) -> None:
        spread({"": (1, 1)}, self.sparsity, self.distribution)
        if not callable(self.where) and self.where not in ("all", "but first", "but last", "hidden"):
            raise ConfigError(
                f'where must be "all", "but first", "but last", "hidden" or a function of a name and a weight; '
                f"got {self.where!r}"
            )

    @property
    def dense(self) -> bool:
        """Whether it keeps a number for every weight, dead ones too."""
        return False

    @property
    def needs_loss(self) -> bool:
        """Whether it asks for a loss on rows held out."""
        return False

    @property
    def start(self) -> float:
        """The sparsity that training starts with."""
        return self.sparsity

    def bind(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example: Example = (),
        *,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
        loss: Callable[[], float | Tensor] | None = None,
    ) -> WeightSession:
        """Set the weights that are dead at the start to 0, and return the session; see `Method.bind`.

        Layers that are sparse already (`pared.nn.SparseLinear`, `SparseConv2d`) start with the connections they have,
        whatever `sparsity` says, and stay sparse: nothing is ever as large as the whole weight, but for the gradients that
        a change looks at, which are made in blocks.

        Which ones is drawn at random, the same in all processes. These are those of a `DistributedDataParallel`, else all of
        the process group that was initialised, if there is one: the network may be wrapped later, all have to bind it, with
        equal weights, and choose by the mean of their gradients. Nothing is put into the network, and its forward pass is
        not looked at: `example` and `steps_per_epoch` are not needed.

        `loss` computes the loss of `model` on rows held out, a number, for methods that ask for it. It is called with the
        network in evaluation mode and without gradients, in every process, of which the mean counts.
        A copy of the session goes on asking the same function.

        Raises:
            ConfigError: the optimizer is another network's, no weight can die, the number of steps or a loss is missing, or
                processes hold different weights.
            SurgeryError: the network is bound already, or the optimizer's step is not each weight's own.
        """
        del example, steps_per_epoch
        check_total(self.timed, total_steps, type(self).__name__)
        if self.needs_loss and loss is None:
            raise ConfigError(f"{self} needs bind(..., loss=...), the loss on rows held out")
        net = surgery.bare(model, distributed=True)
        check_optimizer(net, optimizer)
        weights = self._chosen(net, optimizer)
        layers = {id(m.values): m for m in net.modules() if isinstance(m, SparseLayer)}
        masked = {name: weight for name, weight in weights.items() if id(weight) not in layers}
        if len(layers) < sum(isinstance(module, SparseLayer) for module in net.modules()):
            raise ConfigError(
                "two sparse layers have the same values, whose connections cannot change apart; give each its own"
            )
        if self.dense and len(masked) < len(weights):
            raise ConfigError(
                f"{self} keeps a number for every weight, dead ones too, which sparse layers do not; use dense layers or "
                "another method"
            )
        if self.presses and isinstance(optimizer, SphereOptimizer) and any(map(optimizer.holds, weights.values())):
            raise ConfigError(
                f"{type(self).__name__} moves weights itself, off the sphere that the optimizer keeps them on"
            )
        processes = Processes.of(model)
        _check_alike(processes, net)
        if (processes.wrapped or processes.several) and len(masked) < len(weights) and not self.steady:
            raise ConfigError(
                f"{type(self).__name__} changes how many weights a layer has, and DistributedDataParallel holds on to the "
                "size of sparse layers; use dense layers or another method"
            )
        device = next(net.parameters()).device
        seed = processes.first(int(torch.randint(2**31, (), generator=generator)), device)
        drawn = _draw(masked, spread({n: w.shape for n, w in masked.items()}, self.start, self.distribution), seed)
        connections = {n: drawn[n] if n in drawn else Compressed(layers[id(w)]) for n, w in weights.items()}
        session = WeightSession(model, optimizer, self, connections, total_steps=total_steps, seed=seed + 1, loss=loss)
        for one in drawn.values() if self.rescale else ():
            if not (isinstance(optimizer, SphereOptimizer) and optimizer.holds(one.weight)):
                _rescale(one)
        self.begin_session(session)
        session.look_ahead()
        return session

    def _chosen(self, net: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
        layers = find_layers(net)
        ends = {"but first": layers[:1], "but last": layers[-1:], "hidden": layers[:1] + layers[-1:]}
        spared = [] if callable(self.where) else [id(weight) for _, weight in ends.get(self.where, [])]
        trained = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        chosen: dict[int, tuple[str, nn.Parameter]] = {}
        for name, weight in layers:
            if weight is None or id(weight) not in trained or id(weight) in spared:
                continue
            if not callable(self.where) or self.where(name, weight):
                chosen.setdefault(id(weight), (name, weight))
        if not chosen:
            names = [name for name, _ in layers]
            raise ConfigError(f"no weight of the network can die with where={self.where!r}; layers: {names}")
        return dict(chosen.values())

    # --- what a method does ---

    def begin_session(self, session: WeightSession) -> None:
        """Do what comes before the first step."""

    def due(self, session: WeightSession, step: int) -> bool:
        """Return whether connections change behind the step of this number, the first being 1."""
        del session, step
        return False

    def look(self, session: WeightSession) -> None:
        """Look at gradients and weights before the optimizer's step."""

    def press(self, session: WeightSession) -> None:
        """Do what comes behind every step, dead weights being 0."""

    def update(self, session: WeightSession) -> None:
        """Change connections; it is due."""


@torch.no_grad()
def _rescale(connections: Masked) -> None:
    """Source: He et al. (2015), equation 10, with the inputs that live; Evci et al. (2022), Gradient flow in sparse networks."""
    living = connections.mask.flatten(1).sum(1).clamp(min=1)
    factors = (connections.columns / living).sqrt().to(connections.weight.dtype)
    connections.weight.mul_(factors.view(-1, *[1] * (connections.weight.ndim - 1)))


def check_scope(scope: str) -> None:
    """Make sure of where weights compete.

    Raises:
        ConfigError: an unknown word.
    """
    if scope not in get_args(Scope):
        raise ConfigError(f"scope must be one of {', '.join(get_args(Scope))}; got {scope!r}")


def check_window(every: int, begin: float, end: float) -> None:
    """Make sure of when connections change.

    Raises:
        ConfigError: a number below 1, or no window within the run.
    """
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ConfigError(f"every must be a number of steps >= 1, got {every!r}")
    if not 0.0 <= begin < end <= 1.0:
        raise ConfigError(f"begin and end must be fractions of the run, 0 <= begin < end <= 1; got {begin} and {end}")


def within(session: WeightSession, step: int, every: int, begin: float, end: float) -> bool:
    """Return whether `step` is one of every `every` between the fractions `begin` and `end` of the run."""
    assert session.total_steps is not None
    return step % every == 0 and begin * session.total_steps <= step <= end * session.total_steps


def _draw(weights: dict[str, nn.Parameter], zeros: dict[str, int], seed: int) -> dict[str, Masked]:
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, weight in weights.items():
        mask = torch.ones(weight.numel(), dtype=torch.bool)
        mask[torch.randperm(weight.numel(), generator=generator)[: zeros[name]]] = False
        found[name] = Masked(weight, mask.view(weight.shape).to(weight.device))
    return found


def _check_alike(processes: Processes, net: nn.Module) -> None:
    name = None if processes.wrapped else processes.unlike(dict(net.named_parameters()))
    if name is not None:
        raise ConfigError(
            f"{name!r} differs between the {processes.size} processes, which would then choose different connections; bind "
            "the DistributedDataParallel, start all from the same weights, or bind networks that are a process's own before "
            "init_process_group"
        )
