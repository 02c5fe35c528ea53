"""A stack of sparse layers that copies little."""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _modules

from pared.native import csr as native
from pared.nn.batch_major import BatchMajor
from pared.nn.sparse_linear import SparseLinear
from pared.ops.plain import plain
from pared.ops.turn import turned

#: With as many rows or more, and fewer outputs, a dense layer had better read features-major activations as they lie.
MANY = 32


class SparseSequential(nn.Sequential):
    """An `nn.Sequential` that computes the same faster where nothing is derived, as in `torch.inference_mode()`.

    `SparseLinear`s that follow one another, with or without an `nn.ReLU` behind each, are then one call of our kernels,
    and an `nn.Linear` of few outputs behind them, after a `BatchMajor` or not, a product that turns these few only. That is
    for matrices on the CPU, in the layers' own type; layers with hooks and those of subclasses are called as always.
    `pared.sparsify` puts it in the place of plain ones.

    Shapes: as its layers say.
    """

    def forward(self, input: Tensor) -> Tensor:  # the name that `nn.Sequential` has given it
        """Return what the last layer makes of it all."""
        layers = list(self._modules.values())
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or _watched():
            return super().forward(input)
        x = input
        while layers:
            matrix = isinstance(x, Tensor) and x.ndim == 2
            count, found = (matrix and (_sparse(layers, x) or _dense(layers, x))) or (1, None)
            x = layers[0](x) if found is None else found
            del layers[:count]
        return x


def _watched() -> bool:
    """Whether something wants to see every layer that is called."""
    return bool(
        _modules._global_forward_hooks or _modules._global_forward_pre_hooks or torch.is_autocast_enabled("cpu")
    )


def _bare(layer: nn.Module) -> bool:
    """Whether calling this layer does nothing but its class's forward pass."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)


def _sparse(layers: list[nn.Module], x: Tensor) -> tuple[int, Tensor] | None:
    """Return how many layers, from the first on, are one call of a kernel, and what they give: None where it is not so."""
    stack, seen, inner, count = [], [x], x.shape[1], 0
    for layer in layers:
        relu = type(layer) is nn.ReLU and bool(stack) and _bare(layer)
        if relu:
            stack[-1] = (*stack[-1][:4], True)
        elif type(layer) is SparseLinear and layer.in_features == inner and not layer.witness.on and _bare(layer):
            values, bias = layer._parameters.get("values"), layer._parameters.get("bias")
            crow, col, *_ = layer.indices()
            if values is None or values.dtype is not x.dtype:
                break
            stack.append((crow, col, values, bias, False))
            seen += [crow, col, values, bias]
            inner = layer.out_features
        else:
            break
        count += 1
    if not stack or not native.serves(x) or not plain(*seen):
        return None
    features_major = x.t()
    if not (features_major.is_contiguous() or x.is_contiguous()):
        features_major = features_major.contiguous()
    together = [
        (crow, col, values.contiguous(), None if bias is None else bias.contiguous(), relu)
        for crow, col, values, bias, relu in stack
    ]
    return count, native.stack(together, features_major).t()


def _dense(layers: list[nn.Module], x: Tensor) -> tuple[int, Tensor] | None:
    """Return the same of a dense layer, and a `BatchMajor` before it, where it is better to turn what comes out."""
    count = 2 if type(layers[0]) is BatchMajor and _bare(layers[0]) else 1
    layer = layers[count - 1] if count <= len(layers) else None
    if type(layer) is not nn.Linear or not _bare(layer):
        return None
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is None or not len(x) >= MANY > len(weight) or not plain(x, weight, bias):
        return None
    if x.dtype is not weight.dtype or x.shape[1] != weight.shape[1] or not x.t().is_contiguous():
        return None
    found = weight.mm(x.t()) if bias is None else torch.addmm(bias.unsqueeze(1), weight, x.t())
    return count, turned(found)
