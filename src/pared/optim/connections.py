"""How weights on a sphere follow a change of which of them are live."""

from typing import Any

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.nn.sparse_layer import gather
from pared.ops.lp import dual_exponent, signed_power
from pared.optim.kernels import normalise_, write_weight
from pared.optim.neurons import check_crow, neurons_of


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
    state["mask"] = mask.clone()
    param.masked_fill_(~mask, 0.0)
    for part in ("v", "momentum_buffer"):
        if part in state:
            state[part].masked_fill_(~mask | fresh, 0.0)
    _put_back(param, state, p, fresh)


def change_pattern(param: Tensor, state: dict[str, Any], p: float, crow: Tensor, source: Tensor) -> None:
    """Do what `SphereOptimizer.pattern_changed` says, with the state of the one parameter.

    Raises:
        ConfigError: a shape or type is not what was expected; nothing was changed.
    """
    crow = check_crow(crow, param.numel()).to(param.device, copy=True)
    entries = min([len(state[part]) for part in ("v", "momentum_buffer") if part in state], default=None)
    if source.shape != param.shape or source.is_floating_point() or source.dtype == torch.bool:
        raise ConfigError(
            f"source must be integers of shape {tuple(param.shape)}, as repattern returns, got {source.dtype} of shape "
            f"{tuple(source.shape)}"
        )
    if entries is not None and bool((source >= entries).any()):
        raise ConfigError(f"source must be below {entries}, the number of weights before; got {int(source.max())}")
    source = source.to(param.device).long()
    state["crow"] = crow
    for part in ("v", "momentum_buffer"):
        if part in state:
            state[part] = gather(state[part], source)
    if param.numel():
        _put_back(param, state, p, source < 0)


def _put_back(param: Tensor, state: dict[str, Any], p: float, fresh: Tensor) -> None:
    """Put the rows of `param` back on the sphere, with the dual vector where `fresh` ones begin at the weight."""
    over = neurons_of(param, state)
    if "v" not in state:
        normalise_(param, p, over)
        return
    v, q = state["v"], dual_exponent(p)
    v.copy_(torch.where(fresh, signed_power(param.to(v.dtype), p - 1.0), v))
    state["empty"] = over.has_empty(v)
    write_weight(param, normalise_(v, q, over), q, torch.empty_like(v), over)
