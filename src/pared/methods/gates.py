"""Differentiable sparsification: components compete for shares that become exactly zero (arXiv 1910.03201)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError, SurgeryError
from pared.methods.binding import bind_switches, check_strength
from pared.methods.components import (
    Groups,
    Members,
    add_gates,
    competing_in,
    explained,
    loser_of,
    members_of,
    why_remains,
)
from pared.methods.costs import Cost, check_cost
from pared.methods.gate_costs import GateCosts
from pared.methods.method import UnitMethod
from pared.methods.parts import Parts
from pared.methods.selectors import Competing, Selected
from pared.methods.strengths import Strength
from pared.methods.switches import place_switches, refusals, whole
from pared.methods.unit_session import UnitSession
from pared.nn import Gate
from pared.nn.gate import DeadGrad, Positive
from pared.nn.top_k import TopKGate
from pared.surgery import Example, Slot


@dataclass(frozen=True)
class Gates(UnitMethod):
    """strength · the p-norm of the shares of each group of components; one whose share stays exactly 0 is removed.

    Args:
        strength: lambda of equation 5, >= 0, or what moves it along the run.
        groups: who competes with whom: by title, the names of modules whose results are scaled (residual branches, attention,
            whole layers), or `Channels`. Without, the gates that the network holds are used (those of a `Competition`, say);
            where there are none, the units of each layer compete, at a scale that leaves its function as it was. The edges of
            a `pared.nn.SparseAdjacency` count as gates of the network's own.
        p: of the p-norm, in (0, 1).
        cost: what a group is weighed by: nothing, or the "parameters", "macs" or "latency" of one of its components, of an
            edge those of its messages; mean 1 over all components. The paper gives each stage a strength of its own.
        null: whether all components of a group may die, see `pared.nn.Gate`; of the gates made here, as the next four.
        positive: "sigmoid" or "exp".
        dead_grad: what gradient a share of 0 passes on: "none", "elu" or "leaky".
        slope: of the latter two.
        scaled: whether the shares of n components are multiplied by n, so that all begin at 1 and not at 1 / n.
        lr_scale: the learning rate of gates over that of the optimizer's first group, > 0.
        every: remove what is dead every so many steps, or each "epoch": what had a share of 0 behind every step since the
            last time.

    Source: differentiable sparsification (arXiv 1910.03201), equations 1 to 5. Deviations: a component that was removed does
    not come back, and gates take no weight decay, which would pull gamma to one half.
    """

    strength: float | Strength = 1e-2
    groups: Groups | None = None
    p: float = 0.5
    cost: Cost = "none"
    null: bool = False
    positive: Positive = "sigmoid"
    dead_grad: DeadGrad = "none"
    slope: float = 0.1
    scaled: bool = False
    lr_scale: float = 1.0
    every: int | str = "epoch"

    def __post_init__(self) -> None:
        check_strength(self.strength)
        check_cost(self.cost)
        self._gate(2)
        if not isinstance(self.p, int | float) or not 0.0 < self.p < 1.0:
            raise ConfigError(f"p must be a number between 0 and 1, got {self.p!r}")
        if self.groups is not None and not isinstance(self.groups, Mapping):
            raise ConfigError(f"groups must name modules by title, {{title: [names]}}; got {self.groups!r}")
        if not 0.0 < self.lr_scale < math.inf:
            raise ConfigError(f"lr_scale must be above 0 and finite, got {self.lr_scale}")

    def assemble(
        self, model: nn.Module, optimizer: Optimizer, example: Example, generator: torch.Generator | None
    ) -> Parts:
        """Put gates into the network where it has none, give them a group without weight decay, and return the parts.

        Raises:
            SurgeryError: the network cannot be traced, or segments of channels cannot be removed.
            ConfigError: a group names a module that is not there, or that is in use twice; or p is too small for so many.
        """
        del generator
        with explained(model, self.groups or {}, example), whole(model):
            titles = add_gates(model, self.groups or {}, self._gate)
            skipped: dict[str, str] = {}
            if not competing_in(model, titles):
                skipped |= place_switches(model, example, self._unit_gate).skipped
            gates, graph = competing_in(model, titles), surgery.graph(model, example)
            if any(isinstance(gate, TopKGate) and int(gate.alive.sum()) > gate.k for gate in gates.values()):
                raise ConfigError(
                    "the network holds gates that keep a given number of components, of whom a share of 0 says nothing; "
                    "train it without Gates, call their discretize() at the end, and bind Gates to remove what that killed"
                )
            _check_norms(gates, self.p)
            paths = {id(module): name for name, module in model.named_modules()}
            others = [t for t, gate in gates.items() if members_of(model, gate) or loser_of(model, gate) is not None]
            alone = {title: paths[id(gate)] for title, gate in gates.items() if title not in others}
            for path, reason in refusals(graph, model, list(alone.values())).items():
                raise SurgeryError(f"gate {path!r} cannot lose a component: {reason}")
            slots = {title: Slot(f"{path}.theta", 0) for title, path in alone.items()}
            members = [name for gate in gates.values() for name in members_of(model, gate)]
            skipped |= {name: why for name in members if (why := why_remains(graph, model, name)) is not None}
            costs = GateCosts(self.cost, model, graph, example, gates)
        for gate in gates.values():
            gate.awake.zero_()
        surgery.unnest(model)
        bind_switches(gates, optimizer, self.lr_scale)
        selected = Selected(gates, slots, {title: title for title in gates}, skipped, graph)
        return Parts(selected, _Norms(self.p), _AtZero(), costs, components=Members(example))

    def _gate(self, n: int, **options: Any) -> Gate:
        scale = float(n) if self.scaled else 1.0
        mine = {"null": self.null, "positive": self.positive, "dead_grad": self.dead_grad, "slope": self.slope}
        return Gate(n, **{"scale": scale, **mine, **options})

    def _unit_gate(self, units: int, dim: int, like: Tensor) -> Gate:
        return self._gate(units, dim=dim, scale=float(units), device=like.device, dtype=like.dtype)


@torch.no_grad()
def _check_norms(gates: Mapping[str, Competing], p: float) -> None:
    """Refuse norms that have no room in float32."""
    for title, gate in gates.items():
        try:
            gate.penalty(p)
        except ConfigError as error:
            raise ConfigError(f"gate {title!r}: {error}") from None


@dataclass(frozen=True)
class _Norms:
    """The p-norm of each group's shares."""

    p: float

    def penalty(self, session: UnitSession) -> Tensor:
        """Return strength · the sum of the norms, each weighed by what a component of the group costs."""
        weights = session.weights
        norms = [gate.penalty(self.p) * weights[title] for title, gate in session.competing.items() if title in weights]
        return session.strength * sum(norms, start=torch.zeros((), device=next(session.model.parameters()).device))

    def press(self, session: UnitSession) -> None:
        """Do nothing: the optimizer's step is all."""


class _AtZero:
    """A component dies when its share was 0 behind every step between two removals."""

    def look(self, session: UnitSession) -> None:
        """Nothing depends on gradients."""

    @torch.no_grad()
    def judge(self, session: UnitSession) -> None:
        """Note who has a share, and kill who had none for long enough."""
        due = session.steps % session.every == 0
        for gate in session.competing.values():
            gate.awake |= gate.dead().logical_not()
            if due:
                _kill(session, gate, gate.awake.logical_not())
                gate.awake.zero_()

    @torch.no_grad()
    def settle(self, session: UnitSession) -> None:
        """Kill who has no share now."""
        for gate in session.competing.values():
            _kill(session, gate, gate.dead())


def _kill(session: UnitSession, gate: Competing, dead: Tensor) -> None:
    """Kill components here and in averaged copies, whose others keep by that the thresholds that they have there."""
    gate.kill(dead)
    names = [name for name, module in session.net.named_modules() if module is gate and session.followers]
    for copy in session.followers if names else ():
        twin = surgery.bare(copy).get_submodule(names[0])
        assert isinstance(twin, Competing)
        twin.kill(dead.to(twin.alive.device))
