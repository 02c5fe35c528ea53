"""How weights on a sphere follow a change of which of them are live."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.ops.lp import dual_exponent, signed_power
from pared.optim.kernels import normalise_, wide_dtype, write_weight

#: Where a weight begins that is grown.
Regrow = Literal["zero", "keep", "threshold"]


def change_connections(
    param: Tensor,
    state: dict[str, Any],
    p: float,
    grown: Tensor | None,
    dropped: Tensor | None,
    regrow: Regrow,
    threshold: float,
    direction: Tensor | None,
) -> None:
    """Do what `LpSGD.connections_changed` says, with the state of the one parameter.

    Raises:
        ConfigError: an option or a shape is not what was expected; nothing was changed.
    """
    _check(param, grown, dropped, regrow, threshold, direction)
    nothing = torch.zeros_like(param, dtype=torch.bool)
    grown, dropped = nothing if grown is None else grown, nothing if dropped is None else dropped
    mask = state.get("mask", ~nothing)
    values = state.get("v", param)  # what stands on a sphere and moves: the dual vector, or the weights themselves
    changed = (mask & dropped) | (grown & (dropped | ~mask))
    parked = torch.where(mask & dropped, values, state.get("parked", torch.zeros_like(values)))
    values.masked_fill_(dropped, 0.0)
    fresh = grown & (dropped | ~mask)
    if regrow == "keep":
        values.copy_(torch.where(fresh, parked, values))
    elif regrow == "threshold":
        assert direction is not None
        values.copy_(torch.where(fresh, _threshold(param, mask & ~dropped, p, threshold, direction, state), values))
    state["mask"] = (mask & ~dropped) | grown
    state["parked"] = parked.masked_fill_(state["mask"], 0.0)
    if "momentum_buffer" in state:
        state["momentum_buffer"].masked_fill_(changed, 0.0)
    _settle(param, state, p)


def _settle(param: Tensor, state: dict[str, Any], p: float) -> None:
    """Put what is left back on the sphere, and let the weights follow their dual vector."""
    dims = tuple(range(1, param.ndim))
    if "v" not in state:
        normalise_(param, p, dims)
        return
    v = normalise_(state["v"], dual_exponent(p), dims)
    write_weight(param, v, dual_exponent(p), torch.empty_like(v), dims)


def _threshold(param: Tensor, live: Tensor, p: float, share: float, direction: Tensor, state: dict[str, Any]) -> Tensor:
    """Return the values at which a weight has `share` of the mean size of its row's live weights."""
    wide, dims = param.to(wide_dtype(param)), tuple(range(1, param.ndim))
    mean = (wide.abs() * live).sum(dims, keepdim=True) / live.sum(dims, keepdim=True).clamp(min=1)
    weight = -direction.sign() * mean * share
    return signed_power(weight, p - 1.0) if "v" in state else weight.to(param.dtype)


def _check(
    param: Tensor,
    grown: Tensor | None,
    dropped: Tensor | None,
    regrow: Regrow,
    threshold: float,
    direction: Tensor | None,
) -> None:
    if regrow not in get_args(Regrow):
        raise ConfigError(f"regrow must be one of {', '.join(get_args(Regrow))}; got {regrow!r}")
    for name, which in (("grown", grown), ("dropped", dropped)):
        if which is not None and (which.shape != param.shape or which.dtype != torch.bool):
            raise ConfigError(
                f"{name} must be boolean of shape {tuple(param.shape)}, got {which.dtype} of shape {tuple(which.shape)}"
            )
    if regrow == "threshold" and (direction is None or direction.shape != param.shape or not threshold > 0.0):
        raise ConfigError(
            "regrow='threshold' needs a threshold above 0 and a direction of the weight's shape, or the weight's gradient"
        )
