"""Which weights an experiment of the dynamic prior selects: its readings, and each of them drawn as the paper writes it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.ops.lp import widened
from pared.penalties.candidates import Candidates, mixed

#: What the probability of weight w grows with: |w|, w, -w as printed in equation 4, or nothing of it.
Prior = Literal["magnitude", "signed", "printed", "uniform"]
#: A weight is selected as one of so many, or for a probability above T, or above T / N of N weights.
Select = Literal["count", "absolute", "relative"]


#: Up to so many weights an experiment is drawn as the paper writes it, softmaxes' denominators included.
SMALL = 2**14


@dataclass(frozen=True)
class Sampling:
    """How weights are selected; the options are those of `DynamicPrior`."""

    density: float = 0.01
    momentum: float = 0.9
    prior: Prior = "magnitude"
    shared: bool = False
    select: Select = "count"
    threshold: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in (("prior", Prior), ("select", Select)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(allowed))}; got {getattr(self, name)!r}")
        if not isinstance(self.density, Real) or not 0.0 < self.density <= 1.0:
            raise ConfigError(f"sampling_density must be above 0 and at most 1, got {self.density}")
        if not 0.0 <= self.momentum <= 1.0:
            raise ConfigError(f"momentum must be in [0, 1], where 1 is none of it; got {self.momentum}")
        if not 0.0 <= self.threshold < math.inf:
            raise ConfigError(f"threshold must be at least 0 and finite, got {self.threshold}")
        if self.shared and self.prior == "uniform":
            raise ConfigError("shared=True with prior='uniform' selects all or none; use another prior or shared=False")

    @property
    def remembers(self) -> bool:
        """Whether the weights of the step before matter."""
        return self.momentum < 1.0 and self.prior != "uniform"

    def count(self, n: int) -> int:
        """Return how many of `n` weights are selected, density · n rounded up: of 0.07 · 100, exactly 7."""
        return math.ceil(Fraction(str(self.density)) * n)

    def scores(self, x: Tensor) -> Tensor:
        """Return what the probability of `x` grows with."""
        return x.abs() if self.prior == "magnitude" else -x if self.prior == "printed" else x


class Pool(Protocol):
    """Weights that an experiment may select, (m,), and experiments on them: masks (m,), good until the next one."""

    @property
    def index(self) -> Tensor | None:
        """Which of all weights they are, int64 and ascending; None for all."""
        ...

    @property
    def weight(self) -> Tensor:
        """Their values."""
        ...

    def draw(self) -> Tensor:
        """Return which weights an experiment selects."""
        ...


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return all entries as one vector, without a gradient, in float32 at least."""
    return torch.cat([widened(x.detach()).reshape(-1) for x in tensors])


class Plain:
    """Experiments over all weights as algorithm 1 writes them, in float64; the twin that `Candidates` is held against."""

    def __init__(
        self, weights: Sequence[Tensor], before: Sequence[Tensor] | None, sampling: Sampling, generator: torch.Generator
    ) -> None:
        self.index: Tensor | None = None
        self.weight, self._sampling, self._generator = flat(weights), sampling, generator
        self._scores = sampling.scores(self.weight).double()
        self._before = None if before is None else sampling.scores(flat(before)).double()

    def probabilities(self) -> Tensor:
        """Return the probabilities P' of one experiment, (N,): of weights by their size they add up to 1."""
        u = self._uniform()
        if self._sampling.prior == "uniform":
            return u
        found, share = (u * self._scores).softmax(0), self._sampling.momentum
        if self._before is None:
            return found
        return share * found + (1.0 - share) * (u * self._before).softmax(0)

    def _keys(self) -> Tensor:
        """Return what grows with the probabilities of one experiment, (N,), and tells them apart where they are all 1 / N."""
        u = self._uniform()
        if self._sampling.prior == "uniform":
            return u
        now, share = u * self._scores, self._sampling.momentum
        if self._before is None:
            return now
        then = u * self._before
        ratio = float((now.logsumexp(0) - then.logsumexp(0)).clamp(-700.0, 700.0).exp())
        return mixed(now, then, share / (share + (1.0 - share) * ratio))

    def _uniform(self) -> Tensor:
        size = (1,) if self._sampling.shared else self._scores.shape
        return torch.rand(size, dtype=torch.float64, device=self.weight.device, generator=self._generator)

    def draw(self) -> Tensor:
        """Return which weights an experiment selects, (N,)."""
        n = len(self.weight)
        if self._sampling.select != "count":
            return self.probabilities() > self._sampling.threshold / (n if self._sampling.select == "relative" else 1)
        hits = torch.zeros(n, dtype=torch.bool, device=self.weight.device)
        hits[self._keys().topk(self._sampling.count(n), sorted=False).indices] = True
        return hits


class Subset:
    """Uniform subsets of one size: numbers are drawn until as many different ones are there; of more than half, the rest."""

    def __init__(self, weights: Sequence[Tensor], count: int, generator: torch.Generator) -> None:
        self.index: Tensor | None = None
        self.weight, self._generator = flat(weights), generator
        n = len(self.weight)
        self._rest, self._wanted = 2 * count > n, min(count, n - count)
        self._hits = torch.empty(n, dtype=torch.bool, device=self.weight.device)

    def draw(self) -> Tensor:
        """Return which weights an experiment selects, (N,)."""
        hits, missing = self._hits.zero_(), self._wanted
        while missing:
            at = torch.randint(len(hits), (missing,), device=hits.device, generator=self._generator)
            hits.index_fill_(0, at, value=True)
            missing = self._wanted - int(torch.count_nonzero(hits))
        return hits.logical_not_() if self._rest else hits


def pool_of(
    weights: Sequence[Tensor], before: Sequence[Tensor] | None, sampling: Sampling, generator: torch.Generator
) -> Pool:
    """Return the cheapest pool that draws as `sampling` says."""
    n = sum(w.numel() for w in weights)
    if sampling.select == "count" and not sampling.shared:
        count = sampling.count(n)
        if sampling.prior == "uniform" or count == n:
            return Subset(weights, count, generator)
        held = [*weights, *(before or ())]
        finite = all(map(_finite, held))  # else the norms are not, either
        if sampling.prior == "magnitude" and n > SMALL and finite:
            return Candidates(weights, before, sampling.momentum, count, generator)
    return Plain(weights, before, sampling, generator)


def _finite(weight: Tensor) -> bool:
    """Whether all entries are, by the norm, whose range is that of float32 at least."""
    dtype = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else None
    return math.isfinite(torch.linalg.vector_norm(weight.detach(), dtype=dtype))
