"""Modules whose results compete: each is multiplied by its share of a gate."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn.gate import Gate
from pared.nn.switch import whole_sizes
from pared.nn.zero import Zero, unfused


@dataclass(frozen=True)
class Channels:
    """Segments of the channels that module `name` gives compete: branches of a grouped convolution, heads, inputs.

    `sizes` are the channels of each segment, in order, along axis `dim` of the module's result.
    """

    name: str
    sizes: tuple[int, ...]
    dim: int = 1

    def __post_init__(self) -> None:
        sizes = whole_sizes(self.sizes)
        if min(sizes, default=0) < 1 or type(self.dim) is not int:
            raise ConfigError(
                f"Channels of {self.name!r} need sizes of at least 1 each and a dim that is a whole number; "
                f"got {self.sizes!r} and {self.dim!r}"
            )


class Gated(nn.Module):
    """Multiply what `layer` gives by the share of component `place` of `gate`, which others hold too.

    Shapes: those of `layer`. Attributes of the layer (`weight`, `out_channels`) can be read through it. Of several results,
    as those of `nn.MultiheadAttention`, the first is multiplied.
    """

    layer: nn.Module
    gate: Gate

    def __init__(self, layer: nn.Module, gate: Gate, place: int) -> None:
        super().__init__()
        self.layer, self.gate, self.place = layer, gate, place
        self.training = layer.training
        self.register_forward_pre_hook(unfused)

    def forward(self, *args: Any, gate_factors: Tensor | None = None, **kwargs: Any) -> Any:
        """Scale what `layer` makes of its arguments; `gate_factors` are those of the gate, where a caller has them."""
        factors = self.gate.factors() if gate_factors is None else gate_factors
        y, share = self.layer(*args, **kwargs), factors[self.place]
        return (y[0] * share, *y[1:]) if isinstance(y, tuple) else y * share

    def extra_repr(self) -> str:
        """Say which component it is."""
        return f"place={self.place}"

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules or "layer" not in modules:
            return super().__getattr__(name)
        return getattr(modules["layer"], name)


class Competition(nn.Module):
    """Return sum_i a_i f_i(x): branches that take the same input, and compete for shares a of one gate.

    Shapes: those of the branches, which all give the same. Each branch stands in `branches` as a `Gated`.

    Weights can make up for a small share, so that the largest may go to a branch that is no use. Let nothing learn the size
    of what branches give: `norm` makes a module that is put behind each, a batch norm without weights of its own, say.

    Args:
        modules: the branches, at least one.
        norm: makes what stands behind each branch; nothing does when None.
        gate: of as many components as there are branches; a `Gate` when None.
        options: of the `Gate` that is made.

    Raises:
        ConfigError: there is no branch, or the gate has another number of components.

    Source: differentiable sparsification (arXiv 1910.03201), equation 1.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        *,
        norm: Callable[[], nn.Module] | None = None,
        gate: Gate | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        members = list(modules)
        if not members:
            raise ConfigError("a competition needs at least one branch, got none")
        like = next((p for member in members for p in member.parameters()), torch.empty(0))
        gate = Gate(len(members), device=like.device, dtype=like.dtype, **options) if gate is None else gate
        if len(gate.theta) != len(members):
            raise ConfigError(f"expected a gate of {len(members)} components, one a branch; got {len(gate.theta)}")
        members = [member if norm is None else nn.Sequential(member, norm()) for member in members]
        self.branches = nn.ModuleList(Gated(member, gate, place) for place, member in enumerate(members))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the sum of what the branches give."""
        gates = [branch.gate for branch in self.branches if isinstance(branch, Gated)]
        # Made once for all branches, but in evaluation: there a traced network shows each branch as a module of one input.
        alike = self.training and len(gates) > 1 and all(gate is gates[0] for gate in gates)
        more = {"gate_factors": gates[0].factors()} if alike else {}
        given = (more if isinstance(branch, Gated) else {} for branch in self.branches)
        total, *others = (b(*args, **some, **kwargs) for b, some in zip(self.branches, given, strict=True))
        for other in others:
            total = total + other
        return total


def drop_branches(model: nn.Module) -> nn.Module:
    """Take branches that give nothing out of the competitions in `model`; one that is left alone stands for them all.

    `model` is changed, unless it is itself a competition with one branch, which is returned.
    """
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, Competition):
                parent._modules[name] = _without_zeros(child)
    return _without_zeros(model) if isinstance(model, Competition) else model


def _without_zeros(competition: Competition) -> nn.Module:
    living = [branch for branch in competition.branches if not isinstance(branch, Zero)]
    if len(living) == 1 and not isinstance(living[0], Gated):
        return living[0]
    competition.branches = nn.ModuleList(living or competition.branches)
    return competition
