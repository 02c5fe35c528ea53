"""SNIP: connections are chosen once, by what the loss would feel of their loss."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pared.methods.rewiring import Rewiring
from pared.methods.weight_session import WeightSession
from pared.methods.weights import Scope, WeightMethod, check_scope
from pared.topology import Connections, Cosine, Schedule, spread


@dataclass(frozen=True)
class SNIP(WeightMethod):
    """At the first step the weights with the largest |gradient · weight| stay, and all others die for good.

    Args:
        scope: whether weights compete over the whole "network", or within each "layer" under `distribution`.

    Source: Lee, Ajanthan and Torr (2019), SNIP, equations 4 to 6. Deviations: biases do not compete; the gradient that
    chooses is that of the first training batch, whose step is then taken by the weights that stay.
    """

    scope: Scope = "network"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scope(self.scope)

    @property
    def start(self) -> float:
        """All weights live until the first gradient."""
        return 0.0

    @torch.no_grad()
    def look(self, session: WeightSession) -> None:
        """Choose, at the first step."""
        if session.steps > 0 or self.sparsity == 0.0:
            return
        session.check_alike()
        sizes = {name: connections.shape for name, connections in session.connections.items()}
        saliency = {name: _saliency(connections, session) for name, connections in session.connections.items()}
        if self.scope == "network":
            together = torch.cat(list(saliency.values()))
            stay = max(1, round((1.0 - self.sparsity) * sum(map(math.prod, sizes.values()))))
            kept = torch.zeros_like(together, dtype=torch.bool)
            kept[together.topk(min(stay, len(together))).indices] = True
            dead = (~kept).split([len(values) for values in saliency.values()])
            places = {name: which.nonzero().flatten() for name, which in zip(saliency, dead, strict=True)}
        else:
            zeros = spread(sizes, self.sparsity, self.distribution)
            more = {n: max(0, zeros[n] - math.prod(sizes[n]) + len(values)) for n, values in saliency.items()}
            places = {n: values.topk(more[n], largest=False).indices for n, values in saliency.items()}
        for name, place in places.items():
            drop = session.connections[name].live()[place].sort().values
            session.rewire(name, drop, drop[:0])


def _saliency(connections: Connections, session: WeightSession) -> Tensor:
    """Return |gradient · weight| of the living, (count,), by the mean gradient of all processes."""
    weight = connections.weight
    grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
    felt = (session.processes.mean_(grad) * weight).abs()
    return felt[connections.places(connections.live())]


@dataclass(frozen=True)
class SNIPDynamic(Rewiring):
    """Every `every` steps the connections of least gradient die, and the dead of largest gradient grow.

    The arguments are those of `Rewiring`.

    Source: what the L_p sphere's paper (its table 1, "drop min, grow max" of the gradient) compares with as SNIP.
    Deviation: both are judged by the gradient of the batch before the step.
    """

    every: int = 40
    begin: float = 0.2
    end: float = 0.8
    fraction: Schedule = field(default_factory=lambda: Cosine(0.2))

    def strength_of(self, connections: Connections) -> Tensor:
        """Return the gradient's magnitude at living connections, (count,)."""
        return connections.gradient_at(connections.live()).abs()

    def growing(self, session: WeightSession, connections: Connections, k: int, also: Tensor) -> Tensor:
        """Return those of largest gradient."""
        del session
        return connections.steepest(k, also)
