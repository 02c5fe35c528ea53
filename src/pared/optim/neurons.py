"""Which entries of a weight make one neuron, and what is reckoned over these."""

from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from pared.errors import ConfigError


class Neurons(Protocol):
    """Sums and maxima over the entries of each neuron; `spread` puts a number of each neuron beside its entries."""

    def most(self, x: Tensor) -> Tensor:
        """Return the largest entry of each neuron, for entries of at least 0."""
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of each neuron's entries."""
        ...

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Return each neuron's inner product."""
        ...

    def spread(self, each: Tensor) -> Tensor:
        """Return what goes with the entries by broadcasting, of a number of each neuron."""
        ...

    def has_empty(self, x: Tensor) -> bool:
        """Return whether some neuron has entries, and all are 0."""
        ...


class Axes:
    """Neurons along one axis of a tensor, of which the other axes, `dims`, are the entries."""

    def __init__(self, x: Tensor, axis: int = 0) -> None:
        self.dims = tuple(other for other in range(x.ndim) if other != axis)

    def most(self, x: Tensor) -> Tensor:
        """Return the largest entry of each neuron, for entries of at least 0."""
        return x.amax(self.dims, keepdim=True)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of each neuron's entries."""
        return x.sum(self.dims, keepdim=True)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Return each neuron's inner product."""
        if a.ndim == 2:
            return torch.linalg.vecdot(a, b, dim=self.dims[0]).unsqueeze(self.dims[0])
        return self.sum(a * b)

    def spread(self, each: Tensor) -> Tensor:
        """Return `each`, which broadcasts as it is."""
        return each

    def has_empty(self, x: Tensor) -> bool:
        """Return whether some neuron has entries, and all are 0."""
        return not bool(x.abs().amax(self.dims).all()) if x.numel() else False


class Ragged:
    """Neurons one behind the other in a vector of `count` entries: neuron i is entries crow[i] to crow[i + 1], as in CSR.

    Raises:
        ConfigError: when it is used: `crow` does not fit.
    """

    def __init__(self, crow: Tensor, count: int) -> None:
        self.crow, self.count = crow, count

    @cached_property
    def ends(self) -> Tensor:
        """`crow`, looked through, as it is followed without a look."""
        return check_crow(self.crow, self.count)

    @cached_property
    def row(self) -> Tensor:
        """The neuron of each entry."""
        neurons = torch.arange(len(self.ends) - 1, device=self.ends.device)
        return neurons.repeat_interleave(self.ends.diff(), output_size=self.count)

    def most(self, x: Tensor) -> Tensor:
        """Return the largest entry of each neuron, for entries of at least 0; 0 where there is none."""
        return x.new_zeros(len(self.crow) - 1).scatter_reduce_(0, self.row, x, "amax")

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of each neuron's entries, in one order."""
        return torch.segment_reduce(x, "sum", offsets=self.ends, unsafe=True, initial=0)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """Return each neuron's inner product."""
        return self.sum(a * b)

    def spread(self, each: Tensor) -> Tensor:
        """Return the number of each entry's neuron, (count,)."""
        return each.index_select(0, self.row)

    def has_empty(self, x: Tensor) -> bool:
        """Return whether some neuron has entries, and all are 0."""
        return bool(((self.most(x.abs()) == 0.0) & (self.ends.diff() > 0)).any())


def neurons_of(x: Tensor, state: dict[str, Any]) -> Neurons:
    """Return the neurons of a weight, or of what has its shape, with the optimizer's state of it."""
    return Ragged(state["crow"], x.numel()) if "crow" in state else Axes(x, state.get("axis", 0))


def check_crow(crow: Tensor, count: int) -> Tensor:
    """Return `crow`, which says where the neurons of a vector of `count` weights begin and end, in int32.

    Raises:
        ConfigError: it does not rise from 0 to `count`.
    """
    whole = isinstance(crow, Tensor) and not crow.is_floating_point() and not crow.is_complex()
    if not whole or crow.ndim != 1 or len(crow) == 0 or int(crow[0]) != 0 or int(crow[-1]) != count:
        got = f"{crow.dtype} of shape {tuple(crow.shape)}" if isinstance(crow, Tensor) else type(crow).__name__
        ends = f", from {int(crow[0])} to {int(crow[-1])}" if whole and crow.ndim == 1 and len(crow) else ""
        raise ConfigError(
            f"crow must be integers of shape (rows + 1,) that rise from 0 to {count}, the number of weights; got {got}{ends}. "
            "After connections changed, call the optimizer's pattern_changed"
        )
    if bool((crow.diff() < 0).any()):
        raise ConfigError("crow must rise from one row to the next; it falls")
    return crow.to(torch.int32)


def take_crow(group: dict[str, Any]) -> list[Tensor | None]:
    """Take `crow` out of a parameter group, and return it for each parameter.

    Raises:
        ConfigError: it is not one for each, or does not fit.
    """
    params, given = group["params"], group.pop("crow", None)
    if given is None:
        return [None] * len(params)
    listed = [given] if isinstance(given, Tensor) else list(given)
    if len(listed) != len(params):
        raise ConfigError(
            f"crow must have an entry for each of the group's {len(params)} parameters, got {len(listed)}"
        )
    for p, crow in zip(params, listed, strict=True):
        if crow is not None and p.ndim != 1:
            raise ConfigError(f"crow is for vectors, the values of sparse layers; got one for shape {tuple(p.shape)}")
    return [
        None if crow is None else check_crow(crow, p.numel()).to(p.device, copy=True)
        for p, crow in zip(params, listed, strict=True)
    ]


def take_axis(group: dict[str, Any]) -> list[int]:
    """Take `axis` out of a parameter group, and return it for each parameter: that of its neurons, 0 if it is not said.

    Raises:
        ConfigError: it is not one for each, or a parameter has no such axis.
    """
    params, given = group["params"], group.pop("axis", None)
    listed = [0] * len(params) if given is None else [given] if isinstance(given, int) else list(given)
    if len(listed) != len(params) or any(one and not 0 <= one < p.ndim for one, p in zip(listed, params, strict=False)):
        raise ConfigError(
            f"axis must be that of the neurons of each of the group's {len(params)} parameters, got {given!r}"
        )
    return listed
