"""The switch layer: a learned factor per channel that can die."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from operator import index
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.errors import ConfigError
from pared.nn.zero import unfused

Drawn = Literal["ones", "uniform", "normal", "positive"]
#: How the factors of a switch start: drawn, or all at one number.
Init = Drawn | float


def check_init(init: Init) -> None:
    """Make sure that switches can start as `init` says.

    Raises:
        ConfigError: it is neither a known name nor a number other than 0, at which a switch would start dead.
    """
    number = isinstance(init, int | float) and not isinstance(init, bool)
    if not (init in get_args(Drawn) if isinstance(init, str) else number and math.isfinite(init) and init != 0):
        raise ConfigError(f"init must be one of {', '.join(get_args(Drawn))}, or a number other than 0; got {init!r}")


def whole_sizes(sizes: Sequence[int]) -> list[int]:
    """Return `sizes` as a list.

    Raises:
        ConfigError: they are no whole numbers.
    """
    try:
        return [index(size) for size in sizes]
    except TypeError:
        raise ConfigError(f"sizes must be a whole number of channels for each component, got {sizes!r}") from None


class Switch(nn.Module):
    """Multiply each channel by a learned factor theta; a factor at exactly 0 has switched its channel off.

    Shapes: (..., channels, ...) -> the same, channels on axis `dim`. `theta` and `alive` are (factors,), where
    factors = channels, or, when `sizes` is given, len(`sizes`): factor j then covers `sizes[j]` neighbouring channels
    (a source column with its one-hot inputs, say), which live and die together.

    Args:
        channels: how many channels come in, >= 1.
        dim: the axis of the channels.
        init: "ones" (the identity), "uniform" on (-1, 1) (the paper's experiments), "normal" (the paper's text),
            "positive", uniform on (0, 1], or a number that all factors start at.
        sizes: channels per factor, each >= 1, adding up to `channels`.
        generator: where random factors are drawn from.

    Raises:
        ConfigError: an argument is out of range.

    Source: ShrinkNets (arXiv 1806.03723), section 2.2, equation 1.
    """

    theta: nn.Parameter
    alive: Tensor
    sizes: Tensor | None
    #: The tensor that says whether a factor is off, and the value at which it is.
    off_in: ClassVar[str] = "theta"
    off: ClassVar[float] = 0.0

    def __init__(
        self,
        channels: int,
        *,
        dim: int = -1,
        init: Init = "ones",
        sizes: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ConfigError(f"a switch needs at least one channel, got channels={channels}")
        sizes = None if sizes is None else whole_sizes(sizes)
        if sizes is not None and (min(sizes, default=0) < 1 or sum(sizes) != channels):
            raise ConfigError(
                f"sizes must be positive and add up to the {channels} channels, got {len(sizes)} sizes adding up to "
                f"{sum(sizes)}"
            )
        self.channels, self.dim = channels, dim
        self.init: Init = init
        factors = channels if sizes is None else len(sizes)
        self.theta = nn.Parameter(torch.empty(factors, device=device, dtype=dtype))
        self.register_buffer("alive", torch.ones(factors, dtype=torch.bool, device=device))
        self.register_buffer("sizes", None if sizes is None else torch.tensor(sizes, device=device))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw theta anew as `init` says and bring every factor back to life."""
        check_init(self.init)
        if self.init == "uniform":
            self.theta.uniform_(-1.0, 1.0, generator=generator)
        elif self.init == "normal":
            self.theta.normal_(generator=generator)
        elif self.init == "positive":
            self.theta.uniform_(0.0, 1.0, generator=generator).neg_().add_(1.0)
        else:
            self.theta.fill_(1.0 if isinstance(self.init, str) else self.init)
        self.alive.fill_(True)

    def factors(self) -> Tensor:
        """Return theta, one value per channel, (channels,)."""
        if self.sizes is None:
            return self.theta
        return self.theta.repeat_interleave(self.sizes, output_size=self.channels)

    def in_use(self) -> Tensor:
        """Return what a pass in the present mode multiplies by, (channels,): `factors`, unless training has noise."""
        return self.factors()

    def live_channels(self) -> Tensor:
        """Return the indices of the channels whose factor is alive, int64 (kept,)."""
        alive = self.alive if self.sizes is None else self.alive.repeat_interleave(self.sizes)
        return alive.nonzero().flatten()

    @torch.no_grad()
    def silence(self) -> None:
        """Hold dead factors at 0."""
        self.theta.mul_(self.alive)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `x`.

        Raises:
            ValueError: the axis `dim` has another size.
        """
        factors = self.in_use()
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] != self.channels:
            raise ValueError(f"expected {self.channels} channels on axis {self.dim}, got shape {tuple(x.shape)}")
        if self.dim in (-1, x.ndim - 1):
            return x * factors
        shape = [1] * x.ndim
        shape[self.dim] = self.channels
        return x * factors.view(shape)

    def extra_repr(self) -> str:
        """Say how many channels, and how they are grouped."""
        grouped = "" if self.sizes is None else f", factors={self.theta.shape[0]}"
        return f"{self.channels}, dim={self.dim}{grouped}"


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class Switched(nn.Sequential):
    """A layer, and a switch on what it gives; attributes of the layer (`weight`, `out_channels`) can be read through it.

    Shapes: those of `layer`. Folding the switch puts `layer` back in its place, under its own name.

    In training the factors of a plain convolution or batch norm are multiplied into its weight and bias, instead of
    into what comes out: the same up to rounding (bit-equal where factors are 1), without a pass over the images. Not so
    where the layer or the switch has hooks, which see what they always saw.
    """

    layer: nn.Module
    switch: Switch

    def __init__(self, layer: nn.Module, switch: Switch) -> None:
        super().__init__(OrderedDict(layer=layer, switch=switch))
        self.training = layer.training
        switch.training = layer.training
        self.register_forward_pre_hook(unfused)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Scale what `layer` makes of its arguments."""
        # Not in evaluation: there a traced network shows the switch as what it is.
        if self.training and len(args) == 1 and not kwargs and self._scales_alike(args[0]):
            return _scaled(self.layer, args[0], self.switch.in_use())
        return self.switch(self.layer(*args, **kwargs))

    def _scales_alike(self, x: Tensor) -> bool:
        """Whether the layer is what its class says, its rows the switch's channels, and no one looks in between."""
        layer, switch = self.layer, self.switch
        if type(layer) in _NORMS:
            rows = layer.num_features
        elif type(layer) in _CONVOLUTIONS:
            rows = layer.out_channels
        else:
            return False
        own = layer._parameters.get("weight") is not None  # and not None, or computed by a parametrization
        hooked = any(getattr(module, hooks) for module in (layer, switch) for hooks in _HOOKS)
        return own and not hooked and x.ndim + switch.dim == 1 and bool(rows == switch.channels)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules or "layer" not in modules:
            return super().__getattr__(name)
        return getattr(modules["layer"], name)


def _scaled(layer: Any, x: Tensor, factors: Tensor) -> Tensor:
    """What a convolution or a batch norm makes of `x` with each row of its weight and bias multiplied by a factor."""
    weight = layer.weight * factors.view(-1, *[1] * (layer.weight.ndim - 1))
    bias = None if layer.bias is None else layer.bias * factors
    if isinstance(layer, _CONVOLUTIONS):
        return layer._conv_forward(x, weight, bias)
    layer._check_input_dim(x)
    share = layer.momentum
    if layer.training and layer.track_running_stats:  # from here on as in the batch norm's own forward pass
        layer.num_batches_tracked.add_(1)
        share = 1.0 / float(layer.num_batches_tracked) if share is None else share
    mean, var = layer.running_mean, layer.running_var
    tracked = not layer.training or layer.track_running_stats
    mean, var = (mean, var) if tracked else (None, None)
    return F.batch_norm(x, mean, var, weight, bias, layer.training or mean is None, share or 0.0, layer.eps)
