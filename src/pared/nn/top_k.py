"""What gates share that keep a given number of components: it is given, and the rest dies at the end."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.nn.gate import Gate, Positive


class TopKGate(Gate):
    """Multiply components by shares none of which is 0 for good until `discretize` keeps the `k` largest; abstract.

    Shapes: those of `Gate`; the only parameter is `theta` (n,), there is no `beta`.

    Args:
        n: how many components compete, >= 1.
        k: how many are kept, in [1, n].
        dim: the axis of the channels.
        sizes: channels per component, each >= 1; one each when None.

    Raises:
        ConfigError: an argument is out of range.
    """

    #: Where every theta starts.
    start: ClassVar[float] = 0.0
    #: What `gamma` makes of theta.
    made_positive: ClassVar[Positive] = "exp"

    def __init__(
        self,
        n: int,
        *,
        k: int,
        dim: int = -1,
        sizes: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 1 <= k <= n:
            raise ConfigError(f"k must be between 1 and the {n} components, got {k}")
        super().__init__(n, dim=dim, sizes=sizes, positive=self.made_positive, device=device, dtype=dtype)
        self.k = k
        self.register_parameter("beta", None)  # no threshold

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Give all components equal chances; nothing is drawn."""
        del generator
        self.theta.fill_(self.start)
        self.alive.fill_(True)

    @abstractmethod
    def shares(self) -> Tensor:
        """Return the share of each component, (n,), each in [0, 1]."""

    def penalty(self, p: float = 0.5) -> Tensor:
        """Return 0, a scalar: how many components stay is given, not pressed for."""
        del p
        return torch.zeros_like(self.rest)

    @torch.no_grad()
    def largest(self) -> Tensor:
        """Return which `k` of the living components have the largest theta, boolean (n,); of equal ones the first."""
        order = self.theta.masked_fill(~self.alive, -math.inf).argsort(descending=True, stable=True)
        return torch.zeros_like(self.alive).index_fill(0, order[: self.k], True) & self.alive

    def dead(self) -> Tensor:
        """Return which components were killed, boolean (n,): a share of 0 says nothing."""
        return self.alive.logical_not()

    @torch.no_grad()
    def discretize(self) -> None:
        """Kill all but the `k` largest, for good: what is done once, at the end."""
        self.kill(~self.largest())

    @torch.no_grad()
    def kill(self, dead: Tensor) -> None:
        """Let the components `dead`, boolean (n,), never come back; the others share what theirs was."""
        super().kill(dead)
        self.rest.zero_()  # there is no threshold that would have to stay

    def extra_repr(self) -> str:
        """Say how many components there are, and how many are kept."""
        return f"{super().extra_repr()}, k={self.k}"
