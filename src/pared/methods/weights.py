"""Methods that decide over single weights: which are there at the start, and when some die and others grow."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError
from pared.measure.matrices import Matrices, Matrix, matrices, warn_unknown
from pared.methods.binding import check_optimizer, check_total
from pared.methods.method import Method
from pared.methods.pruned import takes_masks
from pared.methods.weight_session import WeightSession
from pared.nn.sparse_layer import SparseLayer
from pared.ops.processes import Processes
from pared.optim.base import SphereOptimizer
from pared.surgery import Example
from pared.surgery.prune_masks import living
from pared.topology import Compressed, Distribution, Masked, spread

#: Which weights can die: every matrix that the network multiplies by, or all without the first, the last, or both; or what
#: is told of a name and a weight.
Where = Literal["all", "but first", "but last", "hidden"] | Callable[[str, nn.Parameter], bool]
#: Whether weights compete over the whole network, or within each layer.
Scope = Literal["network", "layer"]


@dataclass(frozen=True)
class WeightMethod(Method):
    """What methods of single weights share; one of your own says what it does in `look`, `press`, `due` and `update`.

    Args:
        sparsity: the share of zeros among the weights that can die, in [0, 1).
        distribution: how it is spread over layers, see `pared.topology.spread`.
        where: which weights can die: "all" that the network multiplies by (see `bind`), "but first", "but last", "hidden"
            (both left out), or a function of a name and a weight. Biases and norms never do, nor weights that are frozen or
            that the optimizer does not hold; one that is an embedding's too only if a function says so.
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

    @takes_masks
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
        a change looks at, which are made in blocks. Weights with a mask of `torch.nn.utils.prune` start with what the mask
        leaves, too: `weight` is a plain parameter again, the one that the optimizer holds, and its dead are the session's.
        What is masked and not among the connections (a bias) stays as dead as it was.

        Which ones is drawn at random, the same in all processes. These are those of a `DistributedDataParallel`, else all of
        the process group that was initialised, if there is one: the network may be wrapped later, all have to bind it, with
        equal weights, and choose by the mean of their gradients. Nothing is put into the network; `steps_per_epoch` is not
        needed.

        The weights are those of torch's linear, bilinear, convolutional, recurrent and attention layers and of sparse ones.
        With an `example` a forward pass tells which others the network multiplies by, and along which axis their units are:
        layers of other libraries, `x @ self.w`, `einsum`. `session.skipped` says why the rest is left dense.

        `loss` computes the loss of `model` on rows held out, a number, for methods that ask for it. It is called with the
        network in evaluation mode and without gradients, in every process, of which the mean counts.
        A copy of the session goes on asking the same function.

        Raises:
            ConfigError: the optimizer is another network's, no weight can die, the forward pass does not take the example, the
                number of steps or a loss is missing, or processes hold different weights.
            SurgeryError: the network is bound already, or the optimizer's step is not each weight's own.

        Warns:
            UserWarning: without an example it is not known of some weights whether the network multiplies by them.
        """
        del steps_per_epoch
        check_total(self.timed, total_steps, type(self).__name__)
        if total_steps is not None and self.timed and not self.changes(total_steps):
            warnings.warn(
                f"connections never change in {total_steps} steps with {self}: no multiple of every lies between begin and "
                "end; take a smaller every",
                stacklevel=2,
            )
        if self.needs_loss and loss is None:
            raise ConfigError(f"{self} needs bind(..., loss=...), the loss on rows held out")
        net = surgery.bare(model, distributed=True)
        check_optimizer(net, optimizer)
        chosen, skipped = self._chosen(net, optimizer, example)
        weights = {name: weight for name, (weight, _) in chosen.items()}
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
        drawn = self._draw({name: chosen[name] for name in masked}, seed)
        connections = {n: drawn[n] if n in drawn else Compressed(layers[id(w)]) for n, w in weights.items()}
        session = WeightSession(model, optimizer, self, connections, total_steps=total_steps, seed=seed + 1, loss=loss)
        session.skipped = skipped
        for one in drawn.values() if self.rescale else ():
            if not (isinstance(optimizer, SphereOptimizer) and optimizer.holds(one.weight)):
                _rescale(one)
        self.begin_session(session)
        session.look_ahead()
        return session

    def _chosen(
        self, net: nn.Module, optimizer: Optimizer, example: Example
    ) -> tuple[dict[str, tuple[nn.Parameter, int]], dict[str, str]]:
        """Return the weights that can die, by name, with the axis of their units, and why all others cannot."""
        known = matrices(net, example)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        chosen: dict[str, tuple[nn.Parameter, int]] = {}
        skipped = dict(known.others)
        for one in known.found:
            reason = self._reason(one, known, trained)
            if one.weight is not None and not reason:
                chosen[one.name] = one.weight, one.axis
            else:
                skipped[one.name] = reason
        if not chosen:
            raise ConfigError(
                f"no weight of the network can die with where={self.where!r}; layers: {[one.name for one in known.found]}; "
                f"left out: {skipped}"
            )
        warn_unknown(known, stacklevel=4)
        return chosen, skipped

    def _reason(self, one: Matrix, known: Matrices, trained: set[int]) -> str:
        """Why a matrix stays dense, or nothing."""
        if one.weight is None:
            return "it is computed by a parametrization"
        if not one.weight.requires_grad:
            return "it is frozen"
        if id(one.weight) not in trained:
            return "the optimizer does not hold it"
        if callable(self.where):
            named = any(self.where(name, one.weight) for name in (one.name, *one.aliases))
            return "" if named else "where leaves it out"
        first, last = known.ends
        spared = {"but first": [first], "but last": [last], "hidden": [first, last]}.get(self.where, [])
        if any(end is not None and end.weight is one.weight for end in spared):
            return f"where={self.where!r} leaves it out"
        if id(one.weight) in known.tables:
            return "it is the table of an embedding as well; a function as where can name it"
        return ""

    def _draw(self, chosen: dict[str, tuple[nn.Parameter, int]], seed: int) -> dict[str, Masked]:
        begun = {name: alive for name, (weight, _) in chosen.items() if (alive := living(weight)) is not None}
        shapes = {n: weight.movedim(axis, 0).shape for n, (weight, axis) in chosen.items() if n not in begun}
        zeros, generator = spread(shapes, self.start, self.distribution), torch.Generator().manual_seed(seed)
        found: dict[str, Masked] = {}
        for name, (weight, axis) in chosen.items():
            if name in begun:
                found[name] = Masked(weight, begun[name], axis)
                continue
            mask = torch.ones(weight.numel(), dtype=torch.bool)
            mask[torch.randperm(weight.numel(), generator=generator)[: zeros[name]]] = False
            found[name] = Masked(weight, mask.view(weight.shape).to(weight.device), axis)
        return found

    # --- what a method does ---

    def begin_session(self, session: WeightSession) -> None:
        """Do what comes before the first step."""

    def changes(self, total_steps: int) -> bool:
        """Return whether connections change at any step of a run of this length."""
        del total_steps
        return True

    def settings(self) -> dict[str, str]:
        """Return what tells this method apart from others of its kind, for files; functions are not compared."""
        chosen = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: repr(value) for name, value in chosen.items() if not callable(value)}

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
    living = connections.mask.movedim(connections.axis, 0).flatten(1).sum(1).clamp(min=1)
    factors = (connections.columns / living).sqrt().to(connections.weight.dtype)
    connections.weight.movedim(connections.axis, -1).mul_(factors)


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


def meets(total_steps: int, every: int, begin: float, end: float) -> bool:
    """Return whether some step of `total_steps` is one of every `every` between the fractions of the run."""
    first = max(1, math.ceil(begin * total_steps / every)) * every
    return first <= end * total_steps


def within(session: WeightSession, step: int, every: int, begin: float, end: float) -> bool:
    """Return whether `step` is one of every `every` between the fractions `begin` and `end` of the run."""
    assert session.total_steps is not None
    return step % every == 0 and begin * session.total_steps <= step <= end * session.total_steps


def _check_alike(processes: Processes, net: nn.Module) -> None:
    name = None if processes.wrapped else processes.unlike(dict(net.named_parameters()))
    if name is not None:
        raise ConfigError(
            f"{name!r} differs between the {processes.size} processes, which would then choose different connections; bind "
            "the DistributedDataParallel, start all from the same weights, or bind networks that are a process's own before "
            "init_process_group"
        )
