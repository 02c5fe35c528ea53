"""LpSS: connections below a share of their neuron's mean die, and grow by the gradient toward a sparsity."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.methods.weight_session import WeightSession
from pared.methods.weights import WeightMethod, check_window, meets, within
from pared.topology import Connections, Cosine, Schedule

Scope = Literal["neuron", "layer"]
Regrow = Literal["zero", "keep", "threshold"]


@dataclass(frozen=True)
class LpSS(WeightMethod):
    """Every `every` steps the weights below `threshold` · their neuron's mean magnitude die; growth steers to `sparsity`.

    Of n that die, growth · n come to life where the gradient is largest; growth is (1 - tau) · s / sparsity while the
    network's sparsity s is below the one expected, else (1 + tau) · s / sparsity. So `sparsity` is where it steers to, not what
    it cuts to: how near it gets depends on how many weights fall below the threshold at how many changes. Meant for
    `pared.optim.LpSGD`, whose exponent makes weights small; with other optimizers far fewer die.

    Args:
        sparsity: the sparsity expected in the end, in [0, 1).
        initial: the sparsity at the start, in [0, 1).
        every: steps between two changes, >= 1.
        begin: the fraction of the run at which changes begin.
        end: the fraction at which they end.
        threshold: the share of the mean magnitude below which weights die, falling along the window.
        tau: how fast sparsity is steered, in (0, 1).
        scope: whether connections compete for growth within their "neuron" (the paper) or their "layer" (its code).
        regrow: what a new weight starts with: "zero" (the paper; for p near 1 it then takes dozens of steps on the sphere
            before such a weight counts), what it died with ("keep"; the code, which lets it decay meanwhile), or the
            "threshold" it will be judged by, against its gradient.
        grace: whether a connection that grew cannot die at the next change.

    Source: the L_p sphere's paper, equations 3 and 4. Deviations: growth is judged by the gradient of the batch before
    the step; a neuron keeps at least one connection; a neuron without any is left alone; s counts the weights that can die
    only; what neurons gain is rounded so that the sum is right.
    """

    initial: float = 0.2
    every: int = 40
    begin: float = 0.2
    end: float = 0.8
    threshold: Schedule = field(default_factory=lambda: Cosine(0.1))
    tau: float = 0.05
    scope: Scope = "neuron"
    regrow: Regrow = "zero"
    grace: bool = False
    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.every, self.begin, self.end)
        for name, kind in (("scope", Scope), ("regrow", Regrow)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        if not 0.0 < self.tau < 1.0:
            raise ConfigError(f"tau must be between 0 and 1, got {self.tau}")
        if not 0.0 <= self.initial < 1.0:
            raise ConfigError(f"initial must be in [0, 1), got {self.initial}")

    @property
    def start(self) -> float:
        """The initial sparsity; 0 for a dense network."""
        return self.initial if self.sparsity > 0.0 else 0.0

    @property
    def dense(self) -> bool:
        """Whether it keeps a number for every weight: what it died with."""
        return self.regrow == "keep"

    def changes(self, total_steps: int) -> bool:
        """Return whether a change falls within the run; without sparsity none is due."""
        return self.sparsity == 0.0 or meets(total_steps, self.every, self.begin, self.end)

    def due(self, session: WeightSession, step: int) -> bool:
        """Return whether it is time."""
        return self.sparsity > 0.0 and within(session, step, self.every, self.begin, self.end)

    def growth(self, sparsity: float) -> float:
        """Return how many grow for one that dies, at a sparsity of now (equation 3)."""
        return (1.0 - self.tau if sparsity < self.sparsity else 1.0 + self.tau) * sparsity / self.sparsity

    @torch.no_grad()
    def update(self, session: WeightSession) -> None:
        """Drop and grow."""
        growth = self.growth(session.sparsity)
        share = self.threshold.at(session.done(self.begin, self.end))
        for name, connections in session.connections.items():
            mean = mean_of_rows(connections)
            drop = self._below(session, name, share * mean)
            if self.regrow == "keep":
                last = session.memory.get(f"{name}.last", torch.zeros(connections.shape.numel(), device=drop.device))
                last[drop] = connections.values()[torch.isin(connections.live(), drop)].to(last.dtype)
                session.memory[f"{name}.last"] = last
            each = torch.bincount(drop // connections.columns, minlength=connections.rows)
            k = rounded(growth * each) if self.scope == "neuron" else round(growth * len(drop))
            grow = connections.steepest(k, also=drop)
            session.rewire(name, drop, grow, self._values(session, name, grow, share * mean), returning=False)
            if self.grace:
                session.memory[f"{name}.young"] = grow

    def _below(self, session: WeightSession, name: str, bar: Tensor) -> Tensor:
        connections = session.connections[name]
        live, values = connections.live(), connections.values().abs()
        row = live // connections.columns
        weak = values < bar[row]
        if f"{name}.young" in session.memory:
            weak &= ~torch.isin(live, session.memory[f"{name}.young"])
        top = torch.full_like(bar, -torch.inf).scatter_reduce(0, row, values, "amax")
        return live[weak & (values < top[row])]  # the largest of a neuron never is below its mean, but for rounding

    def _values(self, session: WeightSession, name: str, grow: Tensor, bar: Tensor) -> Tensor | float:
        connections = session.connections[name]
        if self.regrow == "keep":
            return session.memory[f"{name}.last"][grow]
        if self.regrow == "threshold":
            return -connections.gradient_at(grow).sign() * bar[grow // connections.columns]
        return 0.0


def mean_of_rows(connections: Connections) -> Tensor:
    """Return the mean magnitude of the living weights of each row, (rows,); 0 where none lives."""
    values, row = connections.values().abs(), connections.live() // connections.columns
    total = torch.zeros(connections.rows, dtype=values.dtype, device=values.device).index_add_(0, row, values)
    return total / torch.bincount(row, minlength=connections.rows).clamp(min=1)


def rounded(each: Tensor) -> Tensor:
    """Return whole numbers, int64 (rows,), whose running sums are the rounded running sums of `each`.

    Rounding each by itself would give a neuron that loses one connection never one back.
    """
    sums = each.double().cumsum(0).add(0.5).floor().long()
    return sums.diff(prepend=sums.new_zeros(1))
