"""Sparse layers in the place of dense ones, where measurement says that they are faster here."""

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.measure.latency import least_us
from pared.nn.dense import replaced, retyped
from pared.nn.sparse_conv import SparseConv2d
from pared.nn.sparse_layer import SparseLayer
from pared.nn.sparse_linear import SparseLinear
from pared.nn.sparse_sequential import SparseSequential
from pared.ops.csr_torch import DEVICES, DTYPES
from pared.ops.pattern import Pattern
from pared.surgery.prune_masks import plain_copy
from pared.surgery.trace import Example, arguments, evaluating

Dense = nn.Linear | nn.Conv2d
#: A sparse layer has to take at most this share of the dense one's time, as measurement is noisy.
MARGIN = 0.9
_READ = "the network looks at its weight itself"
_SLOWER = "the whole network is not faster with sparse layers"


@dataclass(frozen=True)
class Choice:
    """What was decided of a layer: `count` of `total` weights are not 0; microseconds of both, for the example's rows.

    `reason` says why it stays dense, if it does.
    """

    name: str
    count: int
    total: int
    dense_us: float
    sparse_us: float
    sparse: bool
    reason: str = ""


@dataclass(frozen=True)
class Sparsified:
    """A network, what was decided of its layers, and the microseconds of a forward pass before and after.

    `skipped` says of linear and convolutional layers that were not considered, by name, why.
    """

    model: nn.Module
    layers: tuple[Choice, ...]
    before_us: float
    after_us: float
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{'layer':<24}{'weights':>22}{'dense':>12}{'sparse':>12}  taken"]
        for one in self.layers:
            weights, taken = f"{one.count:,} of {one.total:,}", "sparse" if one.sparse else "dense"
            lines.append(f"{one.name:<24}{weights:>22}{one.dense_us:>9.1f} us{one.sparse_us:>9.1f} us  {taken}")
            lines[-1] += f": {one.reason}" if one.reason else ""
        lines += [f"{name:<24}not considered: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([*lines, f"forward pass: {self.before_us:.1f} us before, {self.after_us:.1f} us after"])


def sparsify(model: nn.Module, example: Example, *, threshold: float = 0.0) -> Sparsified:
    """Return a copy of `model`, in evaluation mode, whose layers are sparse where that is faster on this machine.

    Every `nn.Linear` and `nn.Conv2d` is timed against a `SparseLinear` or `SparseConv2d` with as many weights, for as many
    rows, or images of the size and memory format, as it gets of `example`, under the autocast of now and on as many threads
    as torch uses now; measurements are remembered while the process lives. An `nn.Sequential` with sparse layers becomes a
    `SparseSequential`. If the whole network is not faster with what was chosen, all layers stay dense. Subclasses, layers
    with hooks, parametrizations or tied weights, convolutions with groups or other padding than zeros, and layers whose
    `weight` the network looks at by itself are left alone; each layer that stays dense has a reason. An
    `nn.TransformerEncoderLayer` with sparse layers computes the same without torch's fused operators, with which it is
    compared; only what these set to 0 at padded places is then as in training. A layer in several places stays one.

    Args:
        model: a network with zeros in its weights, as `session.realize()` returns it, or with masks of
            `torch.nn.utils.prune`, which the copy has as zeros.
        example: what its forward pass takes, as often as it will be called with: rows and sizes of images count.
        threshold: weights of at most this magnitude are 0 from now on, >= 0.

    Raises:
        ConfigError: the threshold is negative or not finite.
    """
    if not 0.0 <= threshold < math.inf:
        raise ConfigError(f"threshold must be at least 0 and finite, got {threshold}")
    args, kwargs = arguments(example)
    dense = plain_copy(model).eval()
    _cut(dense, threshold)
    sizes = _sizes(dense, lambda: dense(*args, **kwargs))
    found = _dense_layers(dense)
    layers = [_choose(name, layer, *sizes[name]) for name, layer in found.items() if name in sizes]
    skipped = _skipped(dense) | {name: "it is not called with this example" for name in found if name not in sizes}
    taken = [one.name for one in layers if one.sparse]
    sparse = _with_sparse(dense, taken)
    if not _goes(sparse, args, kwargs):
        taken = [name for name in taken if _goes(_with_sparse(dense, [name]), args, kwargs)]
        sparse = _with_sparse(dense, taken)
    layers = [replace(one, reason=one.reason or _READ * (one.name not in taken)) for one in layers]
    if not taken:
        before = least_us([lambda: dense(*args, **kwargs)])[0]
        return Sparsified(dense, _told(layers, taken), before, before, skipped)
    before, after = least_us([lambda: dense(*args, **kwargs), lambda: sparse(*args, **kwargs)])
    if after > before:
        layers = [replace(one, reason=one.reason or _SLOWER) for one in layers]
        return Sparsified(dense, _told(layers, []), before, before, skipped)
    return Sparsified(sparse, _told(layers, taken), before, after, skipped)


def _with_sparse(dense: nn.Module, names: Collection[str]) -> nn.Module:
    """Return a copy in which the layers of these names are sparse, and sequences of such ones such as copy less."""
    model = copy.deepcopy(dense)
    model = replaced(model, {id(one): _sparse(one) for name, one in _dense_layers(model).items() if name in names})
    _unfuse(model)
    stacks = {
        id(module): retyped(module, SparseSequential())
        for module in model.modules()
        if type(module) is nn.Sequential and any(isinstance(one, SparseLinear) for one in module)
    }
    return replaced(model, stacks)


def _unfuse(model: nn.Module) -> None:
    """Let encoders with sparse layers do without torch's fused operators, which read weights; these ask for what is set."""
    for module in model.modules():
        if not any(isinstance(one, SparseLayer) for one in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            vars(module)["activation_relu_or_gelu"] = 0
        elif isinstance(module, nn.TransformerEncoder):
            vars(module)["use_nested_tensor"] = False


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


def _owners(model: nn.Module) -> dict[int, int]:
    """How many modules have each parameter, by its `id`."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return owners


def _unfit(module: nn.Module, owners: Mapping[int, int]) -> str:
    """Why a linear or convolutional layer cannot be sparse, or nothing."""
    weight = module._parameters.get("weight")
    if type(module) is not nn.Linear and type(module) is not nn.Conv2d:
        return f"there are kernels for nn.Linear and nn.Conv2d, not for {type(module).__name__}"
    if weight is None:
        return "its weight is computed by a parametrization"
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        return f"groups={module.groups}, padding_mode={module.padding_mode!r}; sparse ones have 1 and 'zeros'"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks"
    if owners[id(weight)] > 1:
        return "its weight is tied to another layer's"
    if weight.dtype not in DTYPES or weight.device.type not in DEVICES:
        return f"there are no kernels for {weight.dtype} on {weight.device.type}"
    return ""


def _dense_layers(model: nn.Module) -> dict[str, Dense]:
    """Return the plain layers that there are kernels for, by name, of weights that no other module has."""
    owners = _owners(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not _unfit(module, owners)
    }


def _skipped(model: nn.Module) -> dict[str, str]:
    """Return why other layers with a matrix cannot be sparse, by name."""
    owners, kinds = _owners(model), (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention, nn.Bilinear)
    told = {name: _unfit(module, owners) for name, module in model.named_modules() if isinstance(module, kinds)}
    return {name: reason for name, reason in told.items() if reason}


@torch.no_grad()
def _cut(model: nn.Module, threshold: float) -> None:
    for layer in _dense_layers(model).values():
        layer.weight.masked_fill_(layer.weight.abs() <= threshold, 0.0)


def _sparse(layer: Dense) -> SparseLinear | SparseConv2d:
    return SparseLinear.from_linear(layer) if isinstance(layer, nn.Linear) else SparseConv2d.from_conv(layer)


def _sizes(model: nn.Module, call: Callable[[], object]) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return what each layer gets in a call: (rows,), or (n, height, width) of images; and whether channels come last."""
    sizes: dict[str, tuple[tuple[int, ...], bool]] = {}
    handles = []
    for name, layer in _dense_layers(model).items():

        def note(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], name: str = name) -> None:
            x = inputs[0] if inputs else named["input"]
            if isinstance(module, nn.Linear):
                sizes[name] = (x.numel() // max(1, x.shape[-1]),), False
            else:
                sizes[name] = (x.shape[:-3].numel(), *x.shape[-2:]), _channels_last(x)

        handles.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def _channels_last(x: Tensor) -> bool:
    """Whether torch takes images, or a kernel, to have their channels last."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _choose(name: str, layer: Dense, size: tuple[int, ...], last: bool) -> Choice:
    weight, settings = layer.weight, ()
    count, total = int((weight != 0).sum()), weight.numel()
    if isinstance(layer, nn.Conv2d):
        settings = layer.stride, layer.padding, layer.dilation
    kind = weight.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    formats = last, _channels_last(weight), autocast
    dense_us, sparse_us = _calibrated(
        weight.shape, count, size, settings, weight.dtype, weight.device, torch.get_num_threads(), formats
    )
    taken = sparse_us <= MARGIN * dense_us
    share = f"a sparse one takes {sparse_us / max(dense_us, 1e-9):.2f} of its time, and has to take at most {MARGIN}"
    return Choice(name, count, total, dense_us, sparse_us, taken, "" if taken else share)


@cache
def _calibrated(
    shape: torch.Size,
    count: int,
    size: tuple[int, ...],
    settings: tuple[Any, ...],
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
    formats: tuple[bool, bool, torch.dtype | None] = (False, False, None),
) -> tuple[float, float]:
    """Return the microseconds of a dense and of a sparse layer, each from rows to rows, as the network runs them.

    `threads`, and the type of autocast among `formats`, only tell apart; the others are whether channels of the images, and of
    the weight, come last.
    """
    generator = torch.Generator().manual_seed(0)
    pattern = Pattern.random(shape[0], shape[1:].numel(), count / shape.numel(), generator)
    if len(shape) == 2:
        sparse = SparseLinear(shape[1], shape[0], mask=pattern, device=device, dtype=dtype)
    else:
        kernel = shape[2], shape[3]
        sparse = SparseConv2d(shape[1], shape[0], kernel, *settings, mask=pattern, device=device, dtype=dtype)
    dense = sparse.to_dense_layer()
    x = torch.randn(size[0], shape[1], *size[1:], generator=generator, dtype=dtype).to(device)
    layout = torch.contiguous_format
    if formats[0] or formats[1]:  # torch's convolution then gives channels last too
        layout = torch.channels_last
        if formats[1]:
            dense.weight.data = dense.weight.data.contiguous(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last) if formats[0] else x
    with torch.inference_mode():
        found = least_us([lambda: dense(x), lambda: sparse(x).contiguous(memory_format=layout)])
    return found[0], found[1]
