"""Cutting a network to a size at given moments, the worst units of all layers first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.methods.unit_session import UnitSession

#: What a selector's units are worth, (units,), comparable over all selectors.
Worth = Callable[[UnitSession, str], Tensor]


def check_cuts(params: int, at: Sequence[float]) -> None:
    """Make sure of a size and moments.

    Raises:
        ConfigError: a size below 1, or moments that are not rising fractions of the run.
    """
    if params < 1:
        raise ConfigError(f"params must be at least 1, got {params}")
    if not at or any(not 0.0 < moment <= 1.0 for moment in at) or list(at) != sorted(set(at)):
        raise ConfigError(f"at must be rising fractions of the run in (0, 1], such as (0.25, 0.5); got {tuple(at)}")


def _nothing(session: UnitSession) -> None:
    del session


@dataclass(frozen=True)
class Cuts:
    """At the fractions `at` of the run the network is cut toward `params` parameters, by equal factors.

    `after` is called after each cut.
    """

    params: int
    at: tuple[float, ...]
    worth: Worth
    after: Callable[[UnitSession], None] = _nothing

    def look(self, session: UnitSession) -> None:
        """Nothing depends on gradients."""

    def judge(self, session: UnitSession) -> None:
        """Cut, if it is time."""
        moments = self._moments(session)
        if session.steps not in moments:
            return
        done = (moments.index(session.steps) + 1) / len(moments)
        goal = session.start_params * (max(self.params, session.least_params) / session.start_params) ** done
        cut_to(session, goal, self.worth)
        session.remove()
        self.after(session)

    def settle(self, session: UnitSession) -> None:
        """Do nothing: what is dead was killed."""

    def over(self, session: UnitSession) -> bool:
        """Whether the last cut is done."""
        return session.steps >= self._moments(session)[-1]

    def _moments(self, session: UnitSession) -> list[int]:
        assert session.total_steps is not None
        return [max(1, round(moment * session.total_steps)) for moment in self.at]


@torch.no_grad()
def cut_to(session: UnitSession, params: float, worth: Worth) -> None:
    """Kill the units worth least until the network has at most `params` parameters, the best of each selector spared."""
    names = list(session.selectors)
    worths = [worth(session, name).double().cpu() for name in names]
    for values in worths:
        values[values.argmax()] = torch.inf
    owner = torch.cat([torch.full((len(values),), place) for place, values in enumerate(worths)])
    entry = torch.cat([torch.arange(len(values)) for values in worths])
    together = torch.cat(worths)
    order = together.argsort(stable=True)[: int((together < torch.inf).sum())]

    def left(killed: int) -> dict[str, list[int]]:
        dead = order[:killed]
        gone = [set(entry[dead][owner[dead] == place].tolist()) for place in range(len(names))]
        sizes = [len(values) for values in worths]
        return {
            name: [unit for unit in range(size) if unit not in out]
            for name, out, size in zip(names, gone, sizes, strict=True)
        }

    low, high = 0, len(order)  # the fewest deaths that suffice
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if session.params_with(left(middle)) <= params else (middle + 1, high)
    for name, kept in left(low).items():
        selector = session.selectors[name]
        selector.alive.fill_(False)
        selector.alive[kept] = True
        selector.silence()
