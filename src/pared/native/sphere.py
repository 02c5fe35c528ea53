"""The compiled step on the L_p sphere, checked before any pointer is used; its twin in torch is `pared.optim.kernels`.

All tensors are on the CPU, contiguous, of one shape with a neuron along axis 0, and of float32 or float64 all alike, but for
a mask, which is boolean. With a `crow`, int32 (rows + 1,), they are vectors in which neuron i is entries crow[i] to
crow[i + 1], as in CSR; it is looked through before it is followed. `isa` asks for an instruction set of
`loading.INSTRUCTIONS`, -1 for the best there is; results are the same for any number of threads, and differ from torch's, and
between instruction sets, by rounding.

Powers x^t are relatively within 2 + 0.6 t times the machine's epsilon of what they should be, of which torch's own path is
no closer, down to powers of 1e-30 in float32 and 1e-300 in float64, below which nothing is told apart.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pared.errors import ConfigError
from pared.native.loading import library

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_NAMES = ("weight", "grad", "dual", "momentum", "mask")


class Move(NamedTuple):
    """The numbers of a step: momentum's decay, the gradient's sign, the rate, and q, the exponent of the dual space.

    `scaled` has the dual vector scaled by its largest entry first, which it needs where it may have become short or empty;
    `clean` sets to 0 what is about to turn denormal in momentum and dual vector.
    """

    momentum: float
    nesterov: bool
    sign: float
    lr: float
    q: float
    scaled: bool
    clean: bool


def serves(
    weight: Tensor,
    grad: Tensor,
    dual: Tensor | None,
    momentum: Tensor | None,
    mask: Tensor | None,
    crow: Tensor | None = None,
) -> bool:
    """Whether the kernel is there and takes these tensors."""
    return (
        weight.dtype in _SUFFIX and library() is not None and _wrong((weight, grad, dual, momentum, mask), crow) is None
    )


def step(
    weight: Tensor,
    grad: Tensor,
    dual: Tensor | None,
    momentum: Tensor | None,
    mask: Tensor | None,
    move: Move,
    *,
    crow: Tensor | None = None,
    isa: int = -1,
) -> None:
    """Take a step in place: equations 21 to 24 if there is a `dual` vector, else equation 13 with the norm L_p.

    Raises:
        ConfigError: a tensor or number is not what the kernel takes; nothing was changed.
    """
    opened = library()
    if opened is None:
        raise ConfigError("the compiled kernels are not there; see pared.show_config()")
    if wrong := _wrong((weight, grad, dual, momentum, mask), crow):
        raise ConfigError(wrong)
    if not (1.0 < move.q < math.inf and (move.lr < 1.0 or move.scaled or dual is None)):
        raise ConfigError(f"expected a finite q above 1 and, unscaled, a rate below 1, got {move.q} and {move.lr}")
    rows = len(weight) if crow is None else len(crow) - 1
    rows = rows if weight.numel() or crow is not None else 0
    pointers = [None if t is None else t.data_ptr() for t in (crow, grad, momentum, mask, dual, weight)]
    code = opened.functions[f"pared_sphere_{_SUFFIX[weight.dtype]}"](
        rows,
        weight.numel(),
        *pointers,
        move.momentum,
        move.sign,
        move.lr,
        move.q,
        move.nesterov,
        move.scaled,
        move.clean,
        isa,
        torch.get_num_threads(),
    )
    if code == 1:
        raise MemoryError("no memory for the scratch of a row of weights")
    if code:
        raise ConfigError(
            f"crow must rise from 0 to {weight.numel()}, the number of weights; after connections changed, call the "
            "optimizer's pattern_changed"
        )
    torch.autograd.graph.increment_version([t for t in (weight, dual, momentum) if t is not None])


def _wrong(tensors: tuple[Tensor | None, ...], crow: Tensor | None) -> str | None:
    """Return what the kernel would not take, or None; `tensors` are those of `_NAMES`, with a weight."""
    weight = tensors[0]
    assert weight is not None
    if weight.dtype not in _SUFFIX or weight.ndim < 1:
        return f"weight must be float32 or float64 with an axis of neurons, got {weight.dtype} of {tuple(weight.shape)}"
    for name, x in zip(_NAMES, tensors, strict=True):
        if x is not None and not _taken(x, torch.bool if name == "mask" else weight.dtype, weight.shape):
            return (
                f"{name} must be a contiguous {torch.bool if name == 'mask' else weight.dtype} tensor on the CPU of shape "
                f"{tuple(weight.shape)}; got {type(x).__name__} of {x.dtype} on {x.device} of shape {tuple(x.shape)}"
            )
    if crow is not None and (weight.ndim != 1 or crow.numel() < 1 or not _taken(crow, torch.int32, (crow.numel(),))):
        return (
            f"crow must be a contiguous int32 vector on the CPU beside vectors; got {crow.dtype} on {crow.device} of shape "
            f"{tuple(crow.shape)} beside shape {tuple(weight.shape)}"
        )
    return None


def _taken(x: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    # Subclasses, conjugates' views and tensors of inference mode are torch's to deal with.
    plain = type(x) in (Tensor, torch.nn.Parameter) and not x.is_neg() and not x.is_inference()
    return x.dtype == dtype and x.shape == shape and x.device.type == "cpu" and x.is_contiguous() and plain
