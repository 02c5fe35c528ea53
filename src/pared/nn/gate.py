"""The gate: components compete for shares, and those that fall behind get exactly none."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn.switch import Switch, whole_sizes
from pared.ops.competition import check_p, p_norm, thresholded
from pared.ops.lp import widened

#: What gradient a share of 0 passes on to what it was made of: none, as relu, or some, by which it can come back.
DeadGrad = Literal["none", "elu", "leaky"]
#: How strengths are made positive.
Positive = Literal["sigmoid", "exp"]


class Gate(Switch):
    """Multiply components by shares a that add up to 1, of which some become exactly 0.

    Shapes: (..., channels, ...) -> the same, channels on axis `dim`; component j covers `sizes[j]` neighbouring ones, or one.
    Parameters are `theta` (n,), the paper's alpha, and `beta` (); `rest` () is what components that were killed still add to
    the threshold, so that the others keep their shares; a method notes in `awake` (n,) who had a share of late.

        gamma = sigmoid(alpha),  raw = max(gamma - sigmoid(beta) · (sum of gamma + rest), 0),  a = raw / sum of raw

    Args:
        n: how many components compete, >= 1; one alone has the share 1 for ever, unless `null`.
        dim: the axis of the channels.
        sizes: channels per component, each >= 1; one each when None.
        null: divide by the share of no component too, sum of min(gamma, threshold) + rest: all components may die then.
        positive: "sigmoid", or "exp" in its place.
        dead_grad: the derivative of max(x, 0) below 0: "none" as in the paper, "leaky" `slope`, "elu" `slope` · e^x.
        slope: above 0, for the latter two.
        scale: what shares are multiplied by where they are used, above 0; n lets every component begin at 1.

    Raises:
        ConfigError: an argument is out of range.

    Shares are computed in float32 where parameters are float16 or bfloat16. Without `null` a single living component has
    no gradient: nothing can change its share.

    Source: differentiable sparsification (arXiv 1910.03201), equations 2 to 4, with its initial values: a = 1 / n each.
    Deviation: the threshold stays below the largest gamma, as with all components at 0 there would be no share to give.
    """

    beta: nn.Parameter
    rest: Tensor
    awake: Tensor
    off_in: ClassVar[str] = "alive"

    def __init__(
        self,
        n: int,
        *,
        dim: int = -1,
        sizes: Sequence[int] | None = None,
        null: bool = False,
        positive: Positive = "sigmoid",
        dead_grad: DeadGrad = "none",
        slope: float = 0.1,
        scale: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ConfigError(f"a gate needs at least one component, got n={n!r}")
        sizes = None if sizes is None else whole_sizes(sizes)
        if sizes is not None and len(sizes) != n:
            raise ConfigError(f"expected a size for each of the {n} components, got {len(sizes)}")
        if positive not in get_args(Positive) or dead_grad not in get_args(DeadGrad):
            raise ConfigError(
                f"positive must be one of {', '.join(get_args(Positive))} and dead_grad one of "
                f"{', '.join(get_args(DeadGrad))}; got {positive!r} and {dead_grad!r}"
            )
        if not 0.0 < slope < math.inf:
            raise ConfigError(f"slope must be above 0 and finite, got {slope}")
        if not 0.0 < scale < math.inf:
            raise ConfigError(f"scale must be above 0 and finite, got {scale}")
        super().__init__(n if sizes is None else sum(sizes), dim=dim, sizes=sizes, device=device, dtype=dtype)
        self.null, self.positive, self.dead_grad, self.slope = null, positive, dead_grad, slope
        self.scale = scale
        self.linear_below = LINEAR / n  # of the n that was: what is removed changes nothing for the others
        self.even = sizes is not None and len(set(sizes)) == 1
        self.beta = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.register_buffer("rest", torch.zeros((), device=device, dtype=dtype))
        self.register_buffer("awake", torch.zeros_like(self.alive))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Give all components, and the threshold, equal chances; nothing is drawn."""
        del generator
        self.theta.zero_()
        self.alive.fill_(True)
        if "beta" in self._parameters:  # not while the base class is being made
            n = len(self.theta)
            self.beta.fill_(-math.log(n * n + n - 1))
            self.rest.zero_()
            self.awake.zero_()

    def gamma(self) -> Tensor:
        """Return how strong each component is, (n,): above 0, but 0 where it was killed."""
        alpha = widened(self.theta).clamp(-LARGEST, LARGEST)
        gamma = alpha.sigmoid() if self.positive == "sigmoid" else alpha.exp()
        return gamma.masked_fill(self.alive.logical_not(), 0.0)

    def shares(self) -> Tensor:
        """Return a, (n,), each in [0, 1]; their sum is 1, or less with `null`."""
        gamma, beta, rest = self.gamma(), widened(self.beta), widened(self.rest)
        # Quotients where products would do: the one product here is that with the input, which folding looks for.
        threshold = (gamma.sum() + rest) / (1.0 + (-beta.clamp(min=-LARGEST)).exp())
        if not self.null:
            threshold = torch.minimum(threshold, gamma.max() / (1.0 + GUARD))
        slope = 0.0 if self.dead_grad == "none" else self.slope
        raw = thresholded(gamma - threshold, slope, smooth=self.dead_grad == "elu")
        raw = raw.masked_fill(self.alive.logical_not(), 0.0)  # what was killed has no gradient either
        total = raw.sum()
        if self.null:
            total = total + torch.minimum(gamma, threshold).sum() + rest
        return (raw / total.clamp(min=torch.finfo(total.dtype).tiny)).to(self.theta.dtype)

    def factors(self) -> Tensor:
        """Return `scale` · the share of each channel, (channels,)."""
        shares = self.shares() / (1.0 / self.scale)
        if self.sizes is None:
            return shares
        if self.even:  # in this form surgery sees what channels have in common with the groups of a convolution
            return shares.unsqueeze(1).expand(-1, self.channels // len(shares)).flatten()
        return shares.repeat_interleave(self.sizes, output_size=self.channels)

    def penalty(self, p: float = 0.5) -> Tensor:
        """Return the p-norm of the shares, a scalar in [1, n^(1/p - 1)]; with `null` from 0.

        Raises:
            ConfigError: p is not above 0 and below 1, or too small for so many components.
        """
        check_p(p, len(self.theta))
        return p_norm(self.shares(), p, linear_below=self.linear_below)

    @torch.no_grad()
    def dead(self) -> Tensor:
        """Return which components have no share now, boolean (n,); the strongest is spared, even where it gives 0."""
        zero = self.shares() == 0
        zero[self.gamma().argmax()] = False
        return zero

    @torch.no_grad()
    def kill(self, dead: Tensor) -> None:
        """Let the components `dead`, boolean (n,), never come back; no share changes if theirs are 0.

        Raises:
            ValueError: `dead` is no such mask, or nothing would be left to have the share that must be given.
        """
        if dead.dtype is not torch.bool or dead.shape != self.alive.shape:
            raise ValueError(
                f"expected booleans of shape {tuple(self.alive.shape)}, got {dead.dtype} of shape {tuple(dead.shape)}"
            )
        left = self.alive & ~dead
        if not (self.null or left.any()):
            raise ValueError("a gate without null keeps one component; use null=True if all of them may die")
        self.rest += self.gamma()[dead].sum()
        self.alive.copy_(left)

    def silence(self) -> None:
        """Do nothing: dead components are out of all sums."""

    def extra_repr(self) -> str:
        """Say how many components there are, and what differs from the paper."""
        told = f"{len(self.theta)}" + ("" if self.sizes is None else f", channels={self.channels}, dim={self.dim}")
        told += ", null=True" if self.null else ""
        return told + ("" if self.dead_grad == "none" else f", dead_grad={self.dead_grad!r}")


#: Beyond this, up and down, numbers count as this: exponentials would have no end in float32, or be 0.
LARGEST = 80.0
#: By what share the largest gamma stays above the threshold.
GUARD = 1e-3
#: Shares below this part of an even one have a penalty that is linear.
LINEAR = 1e-3
