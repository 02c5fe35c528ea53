"""Train, prune, retrain: the worst units are cut at given moments, and weights may be rewound."""

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError
from pared.methods.cuts import Cuts, check_cuts
from pared.methods.method import UnitMethod
from pared.methods.parts import NoPressure, Parts
from pared.methods.unit_session import UnitSession
from pared.methods.units import find_units
from pared.surgery import Example

#: What a unit is worth.
Score = Literal["magnitude", "taylor"]


@dataclass(frozen=True)
class Prune(UnitMethod):
    """No pressure; at the fractions `at` of the run the units worth least are cut, over all layers.

    Args:
        params: parameters to cut to, >= 1, by equal factors.
        score: "magnitude", the norm of the weights that make a unit over the mean of its layer's; or "taylor", the
            squared first-order change of the loss were the unit's values 0, summed over the steps since the last cut.
        at: when to cut, as fractions of the run, rising.
        rewind: after each cut let the surviving weights be those of this fraction of the run again, before the first
            cut, and the optimizer's state new; None goes on with those there are. A learning-rate schedule is its
            owner's to rewind.

    Source: magnitude: Li et al. (2017); Taylor: Molchanov et al. (2019), equation 8, as the gradient of a gate behind the
    unit; rewinding: Frankle et al. (2020), Renda et al. (2020).
    """

    params: int
    score: Score = "magnitude"
    at: tuple[float, ...] = (0.5,)
    rewind: float | None = None
    timed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_cuts(self.params, self.at)
        if self.score not in get_args(Score):
            raise ConfigError(f"score must be one of {', '.join(get_args(Score))}; got {self.score!r}")
        if self.rewind is not None and not 0.0 <= self.rewind < self.at[0]:
            raise ConfigError(f"rewind must be at least 0 and before the first cut at {self.at[0]}, got {self.rewind}")

    def assemble(
        self, model: nn.Module, optimizer: Optimizer, example: Example, generator: torch.Generator | None
    ) -> Parts:
        """Return the parts; nothing is put into the network."""
        del optimizer, generator
        worth = _importance if self.score == "taylor" else _magnitude
        judge = _Pruning(self.params, self.at, worth, _after_a_cut, rewind=self.rewind)
        return Parts(find_units(model, example), NoPressure(), judge)


@dataclass(frozen=True)
class _Pruning(Cuts):
    rewind: float | None = None

    @torch.no_grad()
    def look(self, session: UnitSession) -> None:
        """Remember the weights to rewind to, if it is time, and add to what the units have been worth."""
        assert session.total_steps is not None
        first = self._moments(session)[0] - 1  # before the first cut, however short the run
        if self.rewind is not None and session.steps == min(round(self.rewind * session.total_steps), first):
            session.copies["rewind"] = copy.deepcopy(surgery.bare(session.model))
        if self.worth is not _importance:
            return
        for units in session.units.values():
            pairs = zip(units.rows(), units.gradients(), strict=True)
            change = torch.stack([(row * grad).sum(1) for row, grad in pairs]).sum(0)
            before = units.state.get("importance", 0.0)
            units.state["importance"] = before + change.square()


def _magnitude(session: UnitSession, name: str) -> Tensor:
    norm = session.units[name].norm()
    return norm / norm.mean().clamp(min=torch.finfo(norm.dtype).tiny)


def _importance(session: UnitSession, name: str) -> Tensor:
    return session.units[name].state["importance"]


def _after_a_cut(session: UnitSession) -> None:
    """Count anew, and take the weights of the copy, if there is one: it has followed every removal."""
    for units in session.units.values():
        if "importance" in units.state:
            units.state["importance"].zero_()
    if "rewind" in session.copies:
        surgery.bare(session.model).load_state_dict(session.copies["rewind"].state_dict())
        session.optimizer.state.clear()
