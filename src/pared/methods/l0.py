"""L0 regularisation with hard concrete gates."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared.errors import ConfigError
from pared.methods.binding import bind_switches, check_strength
from pared.methods.costs import Cost, Costs, check_cost
from pared.methods.method import UnitMethod
from pared.methods.parts import Parts
from pared.methods.rules import EachSwitch, leave_alive
from pared.methods.strengths import Strength
from pared.methods.switches import place_switches, whole
from pared.methods.unit_session import UnitSession
from pared.nn import HardConcrete, Switch
from pared.surgery import Example


@dataclass(frozen=True)
class L0(UnitMethod):
    """strength · the expected number of open gates, a hard concrete gate on every unit; one that is closed dies.

    Args:
        strength: >= 0, or what moves it along the run.
        open: the probability that a gate is open at the start, in (0, 1).
        cost: what a gate is weighed by, see `Shrink`; the source weighs by the weights a gate holds, "parameters".
        lr_scale: the learning rate of gates over that of the optimizer's first group, > 0.
        every: remove dead units every so many steps, or each "epoch".

    Source: Louizos, Welling and Kingma (2018), Learning sparse neural networks through L0 regularization. Deviation:
    gates stand behind a unit, after its norm, and start so far open that evaluation is as it was.
    """

    strength: float | Strength = 1e-3
    open: float = 0.95
    cost: Cost = "none"
    lr_scale: float = 1.0
    every: int | str = "epoch"

    def __post_init__(self) -> None:
        check_strength(self.strength)
        check_cost(self.cost)
        for name, most in (("open", 1.0), ("lr_scale", float("inf"))):
            if not 0.0 < getattr(self, name) < most:
                raise ConfigError(f"{name} must be above 0 and below {most:g}, got {getattr(self, name)}")

    def assemble(
        self, model: nn.Module, optimizer: Optimizer, example: Example, generator: torch.Generator | None
    ) -> Parts:
        """Put gates into the network, give them a group without weight decay, and return the parts."""

        def gate(units: int, dim: int, like: Tensor) -> HardConcrete:
            place = {"device": like.device, "dtype": like.dtype}
            return HardConcrete(units, dim=dim, open=self.open, generator=generator, **place)

        with whole(model):
            gates = place_switches(model, example, gate)
            if not all(isinstance(switch, HardConcrete) for switch in gates.switches.values()):
                raise ConfigError("the network holds switches of another kind; bind one without")
            costs = Costs(self.cost, model, gates.graph, example)
        bind_switches(gates.switches, optimizer, self.lr_scale)
        seed = int(torch.randint(2**31, (), generator=generator))
        return Parts(gates.selected(), _Expected(), EachSwitch(_Closed()), costs, seed)


class _Expected:
    """The expected number of open gates."""

    def penalty(self, session: UnitSession) -> Tensor:
        """Return strength · the sum of the probabilities that gates are open, each weighed by its cost."""
        gates = session.switches.items()
        expected = [g.expected().sum() * session.weights[n] for n, g in gates if isinstance(g, HardConcrete)]
        return session.strength * torch.stack(expected).sum()

    def press(self, session: UnitSession) -> None:
        """Draw the noise of the next step, which depends on the session's seed and the step only."""
        generator = torch.Generator().manual_seed((session.seed * 1_000_003 + session.steps) % 2**63)
        for gate in session.switches.values():
            if isinstance(gate, HardConcrete):
                gate.refresh(generator)


class _Closed:
    """A gate dies when it is 0 in evaluation."""

    def attach(self, switch: Switch) -> None:
        """Remember nothing."""

    @torch.no_grad()
    def update(self, switch: Switch) -> None:
        """Kill what is closed."""
        leave_alive(switch, switch.factors() > 0, switch.theta)
