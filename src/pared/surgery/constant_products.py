"""What products of two tensors, and norms over units that stay, make of constants."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pared.surgery.constant_rules import weighted
from pared.surgery.constants import Constants, Known, full, handler
from pared.surgery.layer_rules import letters_of
from pared.surgery.trace import Step, Value


@handler("matmul", "bmm", "mm", "mv", "dot")
def _matmul(constants: Constants, step: Step) -> Known | None:
    """Attention weights on a constant, a product with a raw parameter, or with zeros."""
    x, other = step["self"], step.get("other", step.get("mat2", step.get("vec", step.get("tensor"))))
    if id(x) in constants.rows_sum_to_one:
        known = constants.of(other)
        return known if known is not None and full(known.values, len(other.dims)).shape[-2] == 1 else None
    weight = constants.weight(other) if len(other.dims) == 2 and len(x.dims) > 1 else None
    found = None if weight is None else weighted(constants, step, x, weight.t(), None)
    if found is not None:
        return found
    batch = "".join(chr(ord("a") + place) for place in range(max(len(x.dims), len(other.dims)) - 2))
    left = batch[len(batch) - max(0, len(x.dims) - 2) :] + ("yz" if len(x.dims) > 1 else "z")
    right = batch[len(batch) - max(0, len(other.dims) - 2) :] + ("zx" if len(other.dims) > 1 else "z")
    out = batch + left[-2:-1] + (right[-1] if len(other.dims) > 1 else "")
    return zero_product(constants, [(x, left), (other, right)], out)


@handler("einsum")
def _einsum(constants: Constants, step: Step) -> Known | None:
    letters = letters_of(step)
    if letters is None:
        return None
    given, wanted = letters
    return zero_product(constants, list(zip(step["tensors"], given, strict=True)), wanted)


def zero_product(constants: Constants, operands: Sequence[tuple[Value, str]], wanted: str) -> Known | None:
    """Return where a sum of products is zero: each product of it has a factor that is known to be zero.

    Operands come with a letter for each axis; `wanted` are the letters of the result.
    """
    some = []
    for value, letters in operands:
        known = constants.of(value)
        whole = torch.ones([1] * len(letters), dtype=torch.float64)
        some.append(whole if known is None else full((~(known.mask & (known.values == 0))).double(), len(letters)))
    sizes: dict[str, int] = {}
    for tensor, (_, letters) in zip(some, operands, strict=True):
        for letter, size in zip(letters, tensor.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    wide: list[Tensor] = [
        tensor.expand([sizes[letter] for letter in letters])
        for tensor, (_, letters) in zip(some, operands, strict=True)
    ]
    count = torch.einsum(",".join(letters for _, letters in operands) + f"->{wanted}", *wide)
    return Known(torch.zeros_like(count), count == 0) if bool((count == 0).any()) else None


@handler("layer_norm", "rms_norm")
def _layer_norm(constants: Constants, step: Step) -> Known | None:
    """Of a constant that is the same along all the axes of the mean, or of different ones that are all known."""
    x, shape = step["input"], step["normalized_shape"]
    known = constants.of(x)
    weight, bias = (constants.weight(step.get(name)) for name in ("weight", "bias"))
    if known is None or (step.get("weight") is not None and weight is None):
        return None
    if step.get("bias") is not None and bias is None:
        return None
    values, mask = torch.broadcast_tensors(*(full(t, len(x.dims)) for t in (known.values, known.mask)))
    values, mask = (tensor.expand(*tensor.shape[: -len(shape)], *shape) for tensor in (values, mask))
    axes = list(range(-len(shape), 0))
    mask = mask.flatten(-len(shape)).all(-1)[(..., *[None] * len(shape))].expand_as(values)
    if step.op == "layer_norm":
        values = values - values.mean(axes, keepdim=True)
    if step["eps"] is None:  # depends on the precision: only zeros are told
        values, mask = torch.zeros_like(values), mask & (values == 0)
    else:
        values = values * (values.square().mean(axes, keepdim=True) + step["eps"]).rsqrt()
    values = values * weight.double().cpu() if weight is not None else values
    values = values + bias.double().cpu() if bias is not None else values
    return Known(values, mask)
