"""How weights on a sphere follow a change of which of them are live."""

from typing import Any

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.ops.lp import dual_exponent, signed_power
from pared.optim.kernels import normalise_, write_weight


def change_connections(param: Tensor, state: dict[str, Any], p: float, mask: Tensor, fresh: Tensor) -> None:
    """Do what `SphereOptimizer.connections_changed` says, with the state of the one parameter.

    Raises:
        ConfigError: a shape or type is not what was expected; nothing was changed.
    """
    for name, which in (("mask", mask), ("fresh", fresh)):
        if which.shape != param.shape or which.dtype != torch.bool:
            raise ConfigError(
                f"{name} must be boolean of shape {tuple(param.shape)}, got {which.dtype} of shape {tuple(which.shape)}"
            )
    dims = tuple(range(1, param.ndim))
    state["mask"] = mask.clone()
    param.masked_fill_(~mask, 0.0)
    if "momentum_buffer" in state:
        state["momentum_buffer"].masked_fill_(~mask | fresh, 0.0)
    if "v" not in state:
        normalise_(param, p, dims)
        return
    v = state["v"]
    v.copy_(torch.where(fresh, signed_power(param.to(v.dtype), p - 1.0), v).masked_fill_(~mask, 0.0))
    state["empty"] = not bool(v.flatten(1).any(1).all())
    write_weight(param, normalise_(v, dual_exponent(p), dims), dual_exponent(p), torch.empty_like(v), dims)
