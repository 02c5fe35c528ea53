"""Experiments of the magnitude prior at the price of the weights that can be selected.

A weight's probability in an experiment grows with the key log(b e^(u a) + (1 - b) e^(u a')), of its uniform number u, its
magnitude a = |w|, and a' one step before. Selected are the `count` largest keys. That takes three thoughts:

- As u <= 1, weights below a level are never selected. The level is found on a sample and proved on all.
- The largest keys of an experiment begin within a narrow band, known before it is drawn. The first 16 bits of u say of nearly
  all candidates on which side of the band they are, by comparing integers; the other bits are drawn within the band only.
- That the band was wide enough is seen afterwards; where not, with a probability below 1e-12, the experiment is repeated, and
  if that happens again and again, all bits of all candidates are drawn.

So counts are exact, and with momentum 1 the experiments have exactly the distribution of `Plain`. With momentum, b holds the
two softmaxes' denominators, sums of e^(u a) over all weights: here their expectations, which for |w| < 1 differ from them by a
relative 1 / sqrt(N) at most, N being all weights or, where they are more, the 2^15 that are looked at.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pared.ops.lp import widened

#: Weights looked at together: their temporaries stay in the cache.
CHUNK = 2**17
#: Weights in a sample, about.
SAMPLE = 2**15
#: The golden section of 2^32: multiples of it, modulo 2^32, are spread evenly.
GOLDEN = 2654435769
#: The level for all stands this much below that of the sample.
BELOW = 0.95
#: Half the width of a band, in deviations of how many keys are above it, and a few more.
DEVIATIONS, MORE = 8.0, 16.0
#: So often an experiment is repeated before all candidates are drawn in full.
REPEATS = 20
#: Values that 16 bits have.
VALUES = 2**16


class Candidates:
    """Experiments over all weights of which only those that can be selected are looked at; see `Pool`.

    Weights must be finite, and `count` at least 1.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        before: Sequence[Tensor] | None,
        momentum: float,
        count: int,
        generator: torch.Generator,
    ) -> None:
        n, now = sum(w.numel() for w in weights), _sample(weights)
        self._share = 1.0 if before is None else share_of(now, _sample(before), momentum)
        self._generator = generator
        level = BELOW * level_of(now, count * len(now) / n)
        while True:
            self.index, self.weight, self._before, inverse, most = self._above(level, weights, before)
            self._count = count if level > 0.0 else min(count, len(self.weight))
            least = most.reciprocal_()
            self._band = low, high = band(inverse, least, self._count, level)
            if low >= level:
                break
            level = BELOW * low
        # Of a weight on the band's lower edge u is at least low · least, of one on its upper edge at most high · inverse.
        self._enters = _bits(least.mul_(VALUES * low).floor_().sub_(1.0))
        self._leaves = _bits(inverse.mul_(VALUES * high).ceil_())
        self._words = torch.empty((len(self.weight) + 3) // 4, dtype=torch.int64, device=self.weight.device)
        self._hits, self._within = (torch.empty_like(self._leaves, dtype=torch.bool) for _ in range(2))

    def _above(
        self, level: float, weights: Sequence[Tensor], before: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Return which of all weights have a magnitude above `level` now or before, these weights, and magnitudes before.

        Then two numbers of each, so that its key lies between u / the one and u · the other.
        """
        found: list[tuple[Tensor, ...]] = []
        start = 0
        for now, then in _chunks(weights, before):
            size = now.abs()
            past = size if then is None else then.abs()
            index = places((size if then is None else torch.maximum(size, past)).gt(level))
            size, past = size.index_select(0, index), past.index_select(0, index)
            found.append((index + start, now.index_select(0, index), past, *self._slopes(size, past)))
            start += len(now)
        index, weight, past, inverse, most = (torch.cat(parts) for parts in zip(*found, strict=True))
        return index, weight, None if before is None else past, inverse, most

    def _slopes(self, now: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inverse of the slope of keys at u = 0, and that of the chord to u = 1: keys are convex, and 0 at 0."""
        tiny = torch.finfo(now.dtype).tiny
        slope, chord = torch.lerp(before, now, self._share), mixed(now, before, self._share)
        return slope.clamp_min_(tiny).reciprocal_(), chord.clamp_min_(tiny)

    def _keys(self, at: Tensor, first: Tensor) -> Tensor:
        """Return the keys of candidates `at`, in float64, whose u begin with the bits `first`."""
        rest = torch.rand(len(at), dtype=torch.float64, device=at.device, generator=self._generator)
        u = (rest + first + VALUES // 2) / VALUES
        now = u * self.weight.index_select(0, at).abs()
        if self._before is None:
            return now
        then = u * self._before.index_select(0, at)
        return mixed(now, then, self._share)

    def draw(self) -> Tensor:
        """Return which candidates an experiment selects, (m,); the same memory at each call."""
        for _ in range(REPEATS):
            first = self._first()
            hits = torch.gt(first, self._leaves, out=self._hits)
            missing = self._count - int(torch.count_nonzero(hits))
            if not self._count:
                return hits
            within = places(torch.ge(first, self._enters, out=self._within).gt_(hits))
            if 0 < missing <= len(within):
                keys = self._keys(within, first.index_select(0, within)).topk(missing)
                if self._band[0] <= float(keys.values[-1]) <= self._band[1]:
                    return hits.index_fill_(0, within.index_select(0, keys.indices), value=True)
        every = torch.arange(len(self.weight), device=self.weight.device)
        return self._hits.zero_().index_fill_(0, self._keys(every, self._first()).topk(self._count).indices, value=True)

    def _first(self) -> Tensor:
        """Return the first 16 bits of new u, (m,); the same memory at each call."""
        return self._words.random_(-(2**63), None, generator=self._generator).view(torch.int16)[: len(self.weight)]


def mixed(now: Tensor, then: Tensor, share: float) -> Tensor:
    """Return log(share · e^now + (1 - share) · e^then), also of numbers so small that their powers of e are 1."""
    gap = now - then
    if bool((gap.abs() <= 1.0).all()):
        return gap.expm1_().mul_(share).log1p_().add_(then)
    near = gap.clamp(-1.0, 1.0).expm1_().mul_(share).log1p_().add_(then)
    far = torch.logaddexp(now.double() + _log(share), then.double() + _log(1.0 - share)).to(now.dtype)
    return torch.where(gap.abs() <= 1.0, near, far)


def share_of(now: Tensor, before: Tensor, momentum: float) -> float:
    """Return b, what e^(u a) counts in P' beside e^(u a'), of magnitudes `now` and `before`, one step ago.

    The softmaxes' denominators are their expectations: of e^(u a) that is (e^a - 1) / a.
    """
    sizes = [x.double().clamp(1e-30, 700.0) for x in (now, before)]
    new, old = (float((torch.expm1(x) / x).mean()) for x in sizes)
    return momentum / (momentum + (1.0 - momentum) * new / old)


def level_of(size: Tensor, count: float) -> float:
    """Return a level above which about `count` of u · `size`, u uniform, are expected, or more; 0 where that are all.

    By Newton's steps from 0 on, which never pass it, as what is expected is convex and falls; where sizes are of so many
    orders that they do not get there, from sizes in order, between two of which what is expected is linear.
    """
    size = size[size > 0.0]
    inverse, level = size.reciprocal(), 0.0
    if len(size) <= count:
        return level
    for _ in range(30):
        more, slope = expected(inverse, level)
        if more - count <= 1e-3 * count:
            return level
        if not 0.0 < slope < math.inf:
            break
        level += (more - count) / slope
    falling = size.double().sort(descending=True).values
    slopes = falling.reciprocal().cumsum(0)
    above = torch.arange(1, len(falling) + 1, device=falling.device) - falling * slopes
    first = int(torch.count_nonzero(above < count))
    return (first - count) / float(slopes[first - 1])


def band(inverse: Tensor, least: Tensor, count: int, level: float) -> tuple[float, float]:
    """Return two levels, so that surely more than `count` keys lie above the first, and fewer above the second.

    Keys lie between u / `inverse` and u / `least`. `level` is near; 0 is the first where keys are too few, and inf the second.
    """
    margin = DEVIATIONS * math.sqrt(count) + MORE
    more, slope = expected(inverse, level)
    for _ in range(60):
        level = max(0.0, level + (more - count) / slope) if slope else 0.0  # this side of where it aims, from wherever
        more, slope = expected(inverse, level)
        if more - count <= margin:
            break
    low = max(0.0, level - margin / slope) if slope else 0.0
    if count <= margin or not slope:
        return low, math.inf
    high = level
    for _ in range(60):
        more, slope = expected(least, high)
        if more <= count - margin:
            return low, high
        high += (more - count + 1.5 * margin + 1.0) / slope if slope else math.inf
    return low, math.inf


def expected(inverse: Tensor, level: float) -> tuple[float, float]:
    """Return how many of u / `inverse` are expected above `level`, and by how much fewer above a higher one."""
    parts, count = [], 0
    for piece in inverse.split(CHUNK):
        if level > 0.0:
            chance = torch.mul(piece, -level).add_(1.0).clamp_(min=0.0)
            parts.append(chance.sum())
            count += int(torch.count_nonzero(chance))
        else:
            parts.append(piece.sum())
    total = float(torch.stack(parts).double().sum()) if parts else 0.0
    return (total, (count - total) / level) if level > 0.0 else (float(len(inverse)), total)


def places(mask: Tensor) -> Tensor:
    """Return where `mask`, a vector, is true; on a CPU by numpy, which takes a quarter of torch's time."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().flatten()


def _sample(weights: Sequence[Tensor]) -> Tensor:
    """Return the magnitudes of one of every so many of the weights, now this and now that: weights repeat in steps."""
    stride = max(1, sum(w.numel() for w in weights) // SAMPLE)
    found = []
    for w in weights:
        entries = w.detach().reshape(-1)
        if stride > 1:
            block = torch.arange(0, len(entries), stride, device=w.device)
            within = (torch.arange(len(block), device=w.device) * GOLDEN) % 2**32 * stride // 2**32
            entries = entries[(block + within).clamp_(max=len(entries) - 1)]
        found.append(widened(entries).abs())
    return torch.cat(found)


def _chunks(weights: Sequence[Tensor], before: Sequence[Tensor] | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the weights and those before, piece by piece, in float32 at least."""
    for number, w in enumerate(weights):
        now = w.detach().reshape(-1)  # a copy, once, where the weight is not contiguous
        then = None if before is None else before[number].detach().reshape(-1)
        for at in range(0, len(now), CHUNK):
            yield widened(now[at : at + CHUNK]), None if then is None else widened(then[at : at + CHUNK])


def _bits(values: Tensor) -> Tensor:
    """Return numbers 0 to 65535 as the 16 bits that random ones are compared with."""
    return values.clamp_(0.0, VALUES - 1.0).sub_(VALUES // 2).to(torch.int16)


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf
