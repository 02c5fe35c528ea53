"""Sparse layers in the place of dense ones, where measurement says that they are faster here."""

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.measure.latency import least_us
from pared.nn.dense import replaced, retyped
from pared.nn.sparse_conv import SparseConv2d
from pared.nn.sparse_linear import SparseLinear
from pared.nn.sparse_sequential import SparseSequential
from pared.ops.csr_torch import DEVICES, DTYPES
from pared.ops.pattern import Pattern
from pared.surgery.trace import Example, arguments, evaluating

Dense = nn.Linear | nn.Conv2d
#: A sparse layer has to take at most this share of the dense one's time, as measurement is noisy.
MARGIN = 0.9


@dataclass(frozen=True)
class Choice:
    """What was decided of a layer: `count` of `total` weights are not 0; microseconds of both, for the example's rows."""

    name: str
    count: int
    total: int
    dense_us: float
    sparse_us: float
    sparse: bool


@dataclass(frozen=True)
class Sparsified:
    """A network, what was decided of its layers, and the microseconds of a forward pass before and after."""

    model: nn.Module
    layers: tuple[Choice, ...]
    before_us: float
    after_us: float

    def __str__(self) -> str:
        lines = [f"{'layer':<24}{'weights':>22}{'dense':>12}{'sparse':>12}  taken"]
        for one in self.layers:
            weights, taken = f"{one.count:,} of {one.total:,}", "sparse" if one.sparse else "dense"
            lines.append(f"{one.name:<24}{weights:>22}{one.dense_us:>9.1f} us{one.sparse_us:>9.1f} us  {taken}")
        return "\n".join([*lines, f"forward pass: {self.before_us:.1f} us before, {self.after_us:.1f} us after"])


def sparsify(model: nn.Module, example: Example, *, threshold: float = 0.0) -> Sparsified:
    """Return a copy of `model`, in evaluation mode, whose layers are sparse where that is faster on this machine.

    Every `nn.Linear` and `nn.Conv2d` is timed against a `SparseLinear` or `SparseConv2d` with as many weights, for as many
    rows, or images of the size, as it gets of `example`, on as many threads as torch uses now; measurements are remembered
    while the process lives. An `nn.Sequential` with sparse layers becomes a `SparseSequential`. If the whole network is not
    faster with what was chosen, all layers stay dense. Subclasses, layers with hooks, parametrizations or tied weights,
    convolutions with groups or other padding than zeros, and layers whose `weight` the network looks at by itself, as
    `nn.TransformerEncoderLayer` does, are left alone. A layer in several places stays one.

    Args:
        model: a network with zeros in its weights, as `session.realize()` returns it.
        example: what its forward pass takes, as often as it will be called with: rows and sizes of images count.
        threshold: weights of at most this magnitude are 0 from now on, >= 0.

    Raises:
        ConfigError: the threshold is negative or not finite.
    """
    if not 0.0 <= threshold < math.inf:
        raise ConfigError(f"threshold must be at least 0 and finite, got {threshold}")
    args, kwargs = arguments(example)
    dense = copy.deepcopy(model).eval()
    _cut(dense, threshold)
    sizes = _sizes(dense, lambda: dense(*args, **kwargs))
    layers = [_choose(name, layer, sizes[name]) for name, layer in _dense_layers(dense).items() if name in sizes]
    taken = [one.name for one in layers if one.sparse]
    sparse = _with_sparse(dense, taken)
    if not _goes(sparse, args, kwargs):
        taken = [name for name in taken if _goes(_with_sparse(dense, [name]), args, kwargs)]
        sparse = _with_sparse(dense, taken)
    if not taken:
        before = least_us([lambda: dense(*args, **kwargs)])[0]
        return Sparsified(dense, _told(layers, taken), before, before)
    before, after = least_us([lambda: dense(*args, **kwargs), lambda: sparse(*args, **kwargs)])
    if after > before:
        return Sparsified(dense, _told(layers, []), before, before)
    return Sparsified(sparse, _told(layers, taken), before, after)


def _with_sparse(dense: nn.Module, names: Collection[str]) -> nn.Module:
    """Return a copy in which the layers of these names are sparse, and sequences of such ones such as copy less."""
    model = copy.deepcopy(dense)
    model = replaced(model, {id(one): _sparse(one) for name, one in _dense_layers(model).items() if name in names})
    stacks = {
        id(module): retyped(module, SparseSequential())
        for module in model.modules()
        if type(module) is nn.Sequential and any(isinstance(one, SparseLinear) for one in module)
    }
    return replaced(model, stacks)


def _goes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether its forward pass does without what sparse layers lack, as a `weight` is, which it may look at itself."""
    try:
        with torch.inference_mode():
            model(*args, **kwargs)
    except (AttributeError, TypeError):
        return False
    return True


def _told(layers: Sequence[Choice], taken: Collection[str]) -> tuple[Choice, ...]:
    """Return the choices with what was taken in the end."""
    return tuple(replace(one, sparse=one.name in taken) for one in layers)


def _dense_layers(model: nn.Module) -> dict[str, Dense]:
    """Return the plain layers that there are kernels for, by name, of weights that no other module has."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or type(module) is nn.Conv2d)
        and (isinstance(module, nn.Linear) or (module.groups == 1 and module.padding_mode == "zeros"))
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        and owners[id(module.weight)] == 1
        and module.weight.dtype in DTYPES
        and module.weight.device.type in DEVICES
    }


@torch.no_grad()
def _cut(model: nn.Module, threshold: float) -> None:
    for layer in _dense_layers(model).values():
        layer.weight.masked_fill_(layer.weight.abs() <= threshold, 0.0)


def _sparse(layer: Dense) -> SparseLinear | SparseConv2d:
    return SparseLinear.from_linear(layer) if isinstance(layer, nn.Linear) else SparseConv2d.from_conv(layer)


def _sizes(model: nn.Module, call: Callable[[], object]) -> dict[str, tuple[int, ...]]:
    """Return what each layer gets in a call: (rows,), or (n, height, width) of images."""
    sizes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, layer in _dense_layers(model).items():

        def note(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], name: str = name) -> None:
            x = inputs[0] if inputs else named["input"]
            if isinstance(module, nn.Linear):
                sizes[name] = (x.numel() // max(1, x.shape[-1]),)
            else:
                sizes[name] = (x.shape[:-3].numel(), *x.shape[-2:])

        handles.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _choose(name: str, layer: Dense, size: tuple[int, ...]) -> Choice:
    weight, settings = layer.weight, ()
    count, total = int((weight != 0).sum()), weight.numel()
    if isinstance(layer, nn.Conv2d):
        settings = layer.stride, layer.padding, layer.dilation
    dense_us, sparse_us = _calibrated(
        weight.shape, count, size, settings, weight.dtype, weight.device, torch.get_num_threads()
    )
    return Choice(name, count, total, dense_us, sparse_us, sparse_us <= MARGIN * dense_us)


@cache
def _calibrated(
    shape: torch.Size,
    count: int,
    size: tuple[int, ...],
    settings: tuple[Any, ...],
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
) -> tuple[float, float]:
    """Return the microseconds of a dense and of a sparse layer, each from rows to rows; `threads` only tells apart."""
    generator = torch.Generator().manual_seed(0)
    pattern = Pattern.random(shape[0], shape[1:].numel(), count / shape.numel(), generator)
    if len(shape) == 2:
        sparse = SparseLinear(shape[1], shape[0], mask=pattern, device=device, dtype=dtype)
    else:
        kernel = shape[2], shape[3]
        sparse = SparseConv2d(shape[1], shape[0], kernel, *settings, mask=pattern, device=device, dtype=dtype)
    dense = sparse.to_dense_layer()
    x = torch.randn(size[0], shape[1], *size[1:], generator=generator, dtype=dtype).to(device)
    with torch.inference_mode():
        found = least_us([lambda: dense(x), lambda: sparse(x).contiguous()])
    return found[0], found[1]
