"""The dynamic regularizer with an informative prior."""

from typing import Any, get_args

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.penalties.base import Penalty, Weights
from pared.penalties.candidates import CHUNK
from pared.penalties.norms import Norm, Scope, one_of
from pared.penalties.sampling import Pool, Prior, Sampling, Select, pool_of


class DynamicPrior(Penalty):
    """strength · sum over draws of ‖w ∘ I_s‖₂, where the masks I_s select weights the more probably the larger they are.

    For each draw every weight has a number u from U(0, 1), and P' = momentum · softmax(u |w|) + (1 - momentum) ·
    softmax(u |w_old|), w_old being the weights at the call before; the ⌈sampling_density · N⌉ largest P' are selected. Masks
    are constants of the gradient, which is strength · sum of w ∘ I_s / ‖w ∘ I_s‖₂, and 0 where nothing is selected. Call it
    once per optimizer step. The cost is that of the weights that can be selected, and memory does not grow with draws.

    Of tensors whose shape or device has changed since the call before, as by surgery, w_old is w for one step; values of a
    sparse layer are told apart by their number alone, whichever connections they are. Every call draws, also without
    gradients. The penalty has no second derivatives: asking for them is a ConfigError.

    Args:
        parameters: see `Penalty`; biases and norms are left out unless `vectors`.
        strength: see `Penalty`; the penalty is a sum over draws, of which none is averaged.
        sampling_density: s_p, the share of weights in a draw, in (0, 1]; the paper has 0.01, 0.05 and 0.1.
        draws: S, at least 1; the paper has no number.
        momentum: alpha of equation 5, in [0, 1], 1 for none; the paper has no number.
        prior: "magnitude"; "uniform", the weakly informative one of section 2.3, P' = u without momentum; "printed", the
            -w of equation 4, which prefers large negative weights; "signed", +w.
        norm: "l2" of equation 6, or "l2_squared" of equation 3 and algorithm 1.
        scope: one vector of all weights ("global"), or one of each tensor.
        shared: one u for all weights of a draw (equation 4), which makes all draws alike, rather than one for each
            (algorithm 1).
        select: "count", or P' > `threshold` ("absolute"), or P' > `threshold` / N ("relative"), as T of equation 3; P' of
            weights by their size are all near 1 / N.
        threshold: see `select`; >= 0. An absolute one of 1 selects nothing, as probabilities add up to 1.
        normalize_counts: divide by how often the weight that is selected most often is (section 2.3, of lambda).
        vectors: see `Penalty`.
        seed: of the generator, the penalty's own; on the weights' device, begun anew on another.

    Raises:
        ConfigError: an option is out of range.

    Source: arXiv 1910.14241, section 2 and algorithm 1, whose text and formulas contradict each other: the defaults are
    the reading of the text, in which large weights are likely. From 16385 weights on the softmaxes' denominators are
    their expectations, which matters to the shares of momentum, of |w| < 1 by a relative 1 / sqrt(N) at most. The readings
    `printed`, `signed`, `shared` and those by `threshold` are drawn as written, over all weights at each draw.
    """

    def __init__(
        self,
        parameters: Weights,
        strength: float,
        sampling_density: float = 0.01,
        draws: int = 10,
        momentum: float = 0.9,
        *,
        prior: Prior = "magnitude",
        norm: Norm = "l2",
        scope: Scope = "global",
        shared: bool = False,
        select: Select = "count",
        threshold: float = 1.0,
        normalize_counts: bool = False,
        vectors: bool = False,
        seed: int = 0,
    ) -> None:
        one_of("norm", norm, get_args(Norm))
        one_of("scope", scope, get_args(Scope))
        if not isinstance(draws, int) or draws < 1:
            raise ConfigError(f"draws must be an integer of at least 1, got {draws}")
        super().__init__(parameters, strength, vectors=vectors)
        self.sampling = Sampling(sampling_density, momentum, prior, shared, select, threshold)
        self.draws, self.norm, self.scope, self.normalize_counts = draws, norm, scope, normalize_counts
        self.generator = torch.Generator(self._device()).manual_seed(seed)
        self._before: dict[str, Tensor] = {}

    def __call__(self) -> Tensor:
        """Return the penalty of new draws, a scalar; with gradients on, weights are remembered for the next call."""
        weights = self.weights()
        if self.generator.device != (device := self._device()):  # a network that was moved draws anew there
            self.generator = torch.Generator(device).manual_seed(self.generator.initial_seed())
        parts = []
        for group in [[name] for name in weights] if self.scope == "tensor" else [list(weights)]:
            with torch.no_grad():
                pool = self._pool({name: weights[name] for name in group})
                value, slope = self._pressure(pool)
            parts.append(_Pressed.apply(value, pool.index, slope, *(weights[name] for name in group)))
        if self.sampling.remembers and torch.is_grad_enabled():
            self._remember(weights)
        return self.strength * torch.stack(parts).sum()

    def _device(self) -> torch.device:
        return next(iter(self.weights().values())).device

    def _pool(self, weights: dict[str, Tensor]) -> Pool:
        """Return the pool that draws from `weights`, and from those before where they are known and matter."""
        known = {
            name: x.to(weights[name].dtype)
            for name, x in self._before.items()
            if name in weights and (x.shape, x.device) == (weights[name].shape, weights[name].device)
        }
        before = [known.get(n, w) for n, w in weights.items()] if known and self.sampling.remembers else None
        return pool_of(list(weights.values()), before, self.sampling, self.generator)

    def _pressure(self, pool: Pool) -> tuple[Tensor, Tensor]:
        """Return the sum over draws, and its derivatives by the weights of the pool."""
        most = pool.weight.abs().max() if pool.weight.numel() else pool.weight.new_zeros(())
        relative = pool.weight / most if bool((most > 0.0) & most.isfinite()) else pool.weight
        squares, total = relative.square(), torch.zeros((), dtype=torch.float64, device=relative.device)
        factors, chosen = torch.zeros_like(squares), torch.empty_like(squares)
        counts = torch.zeros_like(squares) if self.normalize_counts else None
        for _ in range(self.draws):
            chosen.copy_(pool.draw())
            size = _dot(squares, chosen)
            if self.norm == "l2":
                size = size.sqrt()
                factors.addcmul_(chosen, size.reciprocal().nan_to_num_(posinf=0.0).to(chosen.dtype))
            else:
                factors.add_(chosen, alpha=2.0)
            total += size
            if counts is not None:
                counts += chosen
        if counts is not None and counts.numel():
            most_often = counts.max().clamp_(min=1.0)
            total, factors = total / most_often, factors.div_(most_often)
        if relative is not pool.weight:
            total = total * (most if self.norm == "l2" else most.double().square())
        return total.to(squares.dtype), factors.mul_(relative if self.norm == "l2" else pool.weight)

    @torch.no_grad()
    def _remember(self, weights: dict[str, Tensor]) -> None:
        held = self._before
        for name, w in weights.items():
            old = held.get(name)
            if old is not None and (old.shape, old.dtype, old.device) == (w.shape, w.dtype, w.device):
                old.copy_(w)
            else:
                held[name] = w.detach().clone()
        for name in held.keys() - weights.keys():
            del held[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the strength, the generator's state and the weights at the call before, those that the next one can use."""
        weights = self.weights()
        known = {n: x for n, x in self._before.items() if n in weights and x.shape == weights[n].shape}
        return super().state_dict() | {
            "generator": self.generator.get_state(),
            "before": {n: x.clone() for n, x in known.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` gave, to draw on as if nothing had been between.

        Raises:
            ConfigError: it is of other weights than these, or of another penalty; nothing is changed then.
        """
        if missing := {"generator", "before"} - state.keys():
            raise ConfigError(f"expected the state of a DynamicPrior, got one without {', '.join(sorted(missing))}")
        mine = {name: tuple(w.shape) for name, w in self.weights().items()}
        theirs = {name: tuple(x.shape) for name, x in state["before"].items()}
        other = [f"{name}: {shape}" for name, shape in theirs.items() if mine.get(name) != shape]
        if other:
            raise ConfigError(
                f"the state is of other weights than these: it has {', '.join(other[:3])}, expected "
                f"{', '.join(f'{name}: {shape}' for name, shape in [*mine.items()][:3])}; load the network's state first"
            )
        device = self._device()
        generator = torch.Generator(device).set_state(state["generator"].cpu())
        super().load_state_dict(state)
        self.generator = generator
        past = state["before"] if self.sampling.remembers else {}
        self._before = {name: x.to(device, copy=True) for name, x in past.items()}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products of two vectors in float64, piece by piece: one sum over millions loses digits."""
    pieces = zip(a.split(CHUNK), b.split(CHUNK), strict=True)
    return torch.stack([torch.dot(x, y) for x, y in pieces]).double().sum()


class _Pressed(torch.autograd.Function):
    """A number whose derivatives by weights are known: those of `index` are `slope`, of all where it is None."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, index: Tensor | None, slope: Tensor, *weights: Tensor) -> Tensor:
        ctx.index, ctx.slope = index, slope
        ctx.save_for_backward(*weights)  # which tells that one was changed in between
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found, start = [], 0
        for weight, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[3:], strict=True):
            stop = start + weight.numel()
            if not needed:
                found.append(None)
            else:
                found.append(_Once.apply(_slope(ctx, grads[0].detach(), start, stop, weight), grads[0], weight))
            start = stop
        return (None, None, None, *found)


def _slope(ctx: Any, grad: Tensor, start: int, stop: int, weight: Tensor) -> Tensor:
    """Return the derivatives by one of the weights, which are entries `start` to `stop` of all."""
    if ctx.index is None:
        return (grad * ctx.slope[start:stop]).view(weight.shape).to(weight.dtype)
    edges = torch.tensor([start, stop], device=ctx.index.device)
    first, last = torch.searchsorted(ctx.index, edges).tolist()
    dense = torch.zeros(stop - start, dtype=weight.dtype, device=ctx.slope.device)
    dense[ctx.index[first:last] - start] = (grad * ctx.slope[first:last]).to(weight.dtype)
    return dense.view(weight.shape)


class _Once(torch.autograd.Function):
    """A gradient as it is; deriving it again, by the weight or by what it was multiplied with, is an error."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, *of: Tensor) -> Tensor:
        del ctx, of
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise ConfigError(
            "DynamicPrior has no second derivatives; derive the loss without it twice, and add its gradient afterwards"
        )
