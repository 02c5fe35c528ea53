"""The compiled step on the L_p sphere, checked before any pointer is used; its twin in torch is `pared.optim.kernels`.

All tensors are on the CPU, contiguous, of one shape with a neuron along axis 0, and of float32 or float64 all alike, but for
a mask, which is boolean. `isa` asks for an instruction set of `loading.INSTRUCTIONS`, -1 for the best there is; results are
the same for any number of threads, and differ from torch's, and between instruction sets, by rounding.

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


def serves(weight: Tensor, grad: Tensor, dual: Tensor | None, momentum: Tensor | None, mask: Tensor | None) -> bool:
    """Whether the kernel is there and takes these tensors."""
    return weight.dtype in _SUFFIX and library() is not None and _wrong(weight, grad, dual, momentum, mask) is None


def step(
    weight: Tensor,
    grad: Tensor,
    dual: Tensor | None,
    momentum: Tensor | None,
    mask: Tensor | None,
    move: Move,
    *,
    isa: int = -1,
) -> None:
    """Take a step in place: equations 21 to 24 if there is a `dual` vector, else equation 13 with the norm L_p.

    Raises:
        ConfigError: a tensor or number is not what the kernel takes.
    """
    opened = library()
    if opened is None:
        raise ConfigError("the compiled kernels are not there; see pared.show_config()")
    if wrong := _wrong(weight, grad, dual, momentum, mask):
        raise ConfigError(wrong)
    if not (1.0 < move.q < math.inf and (move.lr < 1.0 or move.scaled or dual is None)):
        raise ConfigError(f"expected a finite q above 1 and, unscaled, a rate below 1, got {move.q} and {move.lr}")
    rows = weight.shape[0] if weight.numel() else 0
    pointers = [None if t is None else t.data_ptr() for t in (grad, momentum, mask, dual, weight)]
    code = opened.functions[f"pared_sphere_{_SUFFIX[weight.dtype]}"](
        rows,
        weight.numel() // max(1, rows),
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
    if code:
        raise MemoryError(f"no memory for the scratch of a row of {weight.numel() // max(1, rows)} weights")
    torch.autograd.graph.increment_version([t for t in (weight, dual, momentum) if t is not None])


def _wrong(
    weight: Tensor, grad: Tensor, dual: Tensor | None, momentum: Tensor | None, mask: Tensor | None
) -> str | None:
    """Return what the kernel would not take, or None."""
    if weight.dtype not in _SUFFIX or weight.ndim < 1:
        return f"weight must be float32 or float64 with an axis of neurons, got {weight.dtype} of {tuple(weight.shape)}"
    for name, x in (("weight", weight), ("grad", grad), ("dual", dual), ("momentum", momentum), ("mask", mask)):
        if x is None:
            continue
        dtype = torch.bool if name == "mask" else weight.dtype
        # Subclasses, conjugates' views and tensors of inference mode are torch's to deal with.
        plain = type(x) in (Tensor, torch.nn.Parameter) and not x.is_neg() and not x.is_inference()
        if x.dtype != dtype or x.shape != weight.shape or x.device.type != "cpu" or not x.is_contiguous() or not plain:
            return (
                f"{name} must be a contiguous {dtype} tensor on the CPU of shape {tuple(weight.shape)}; got "
                f"{type(x).__name__} of {x.dtype} on {x.device} of shape {tuple(x.shape)}"
            )
    return None
