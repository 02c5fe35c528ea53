"""Which parameters a network multiplies by, as matrices, and along which axis their units are."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import TorchDispatchMode

from pared.errors import ConfigError
from pared.nn.sparse_layer import SparseLayer
from pared.process import forked_random
from pared.surgery.trace import Example, arguments, evaluating

#: Operators by the place of the matrices among their arguments, from the end of what they multiply.
_PAIRS = {
    **dict.fromkeys(("mm", "bmm", "mv", "_int_mm"), 0),
    **dict.fromkeys(("addmm", "addmm_", "baddbmm", "baddbmm_", "addbmm", "addmv", "_addmm_activation"), 1),
}
#: Operators whose parameters have their units on the first axis: the places of these.
_LAYERS = {"_trilinear": (1,), "mkldnn_rnn_layer": (1, 2), "_cudnn_rnn": (1,), "miopen_rnn": (1,), "linear": (1,)}
_LOOKUPS = {"embedding": 0, "_embedding_bag": 0, "_embedding_bag_forward_only": 0, "index_select": 0, "index": 0}
_UNKNOWN = "whether the network multiplies by it is not known without an example"
_COPIES = ("_to_copy", "clone", "alias", "lift_fresh")


@dataclass(frozen=True)
class Matrix:
    """A parameter that a network multiplies by: its `axis` is that of the units which it makes, all others are inputs.

    `weight` is None where a parametrization computes it; `aliases` are its other names where it is tied.
    """

    name: str
    weight: nn.Parameter | None
    axis: int = 0
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matrices:
    """The matrices of a network in the order of its modules, and why its other parameters of two and more axes are none.

    `ends` are the first and the last that the network multiplies by: in the order of modules, or where types do not tell of
    all, in that of a forward pass. `tables` are, by `id`, parameters that rows are looked up in, matrices too or not.
    """

    found: tuple[Matrix, ...]
    others: dict[str, str]
    tables: frozenset[int]
    ends: tuple[Matrix | None, Matrix | None]


def matrices(model: nn.Module, example: Example = ()) -> Matrices:
    """Return the parameters of a bare network that it multiplies by.

    Without an example these are the weights of torch's linear, bilinear, convolutional, recurrent and attention layers and
    of sparse ones. With one, a forward pass in evaluation tells of all others too, whoever multiplies by them: modules of
    other libraries, `x @ self.w`, `einsum`.

    Raises:
        ConfigError: the forward pass does not take the example.
    """
    args, kwargs = arguments(example)
    given = bool(args or kwargs)
    watch = _watch(model, args, kwargs) if given else _Watch({})
    typed, tables = _typed(model), set(watch.tables)
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            tables.add(id(module.weight))
    found: dict[int | str, Matrix] = {}
    others: dict[str, str] = {}
    order: list[int | str] = []
    untyped: set[int | str] = set()
    for path, module in model.named_modules():
        known = typed.get(id(module), {})
        for key in dict.fromkeys([*known, *module._parameters]):
            name, weight = f"{path}.{key}" if path else key, module._parameters.get(key)
            axis, mark = watch.seen.get(id(weight), known.get(key)), name if weight is None else id(weight)
            if key in known:
                order.append(mark)
            elif axis is not None:
                untyped.add(mark)
            if mark in found:
                found[mark] = replace(found[mark], aliases=(*found[mark].aliases, name))
            elif axis is not None:
                found[mark] = Matrix(name, weight if isinstance(weight, nn.Parameter) else None, axis)
            elif weight is not None and weight.ndim > 1 and weight.is_floating_point():
                others.setdefault(name, _reason(module, weight, tables, given))
    # A look-up may come before the layer that it is tied to.
    held = {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in found}
    others = {name: reason for name, reason in others.items() if name not in held}
    if not untyped <= set(order):
        order = list(watch.order)
    ends = (found[order[0]], found[order[-1]]) if order else (None, None)
    return Matrices(tuple(found.values()), others, frozenset(tables), ends)


def warn_unknown(known: Matrices, stacklevel: int) -> None:
    """Name the parameters of which it is not known whether they are matrices, if there are any."""
    names = [name for name, reason in known.others.items() if reason == _UNKNOWN]
    if names:
        warnings.warn(
            f"whether the network multiplies by {', '.join(names)} is not known, and they are left out; give an example of "
            "what its forward pass takes",
            stacklevel=stacklevel + 1,
        )


def _reason(module: nn.Module, weight: Tensor, tables: set[int], given: bool) -> str:
    if id(weight) in tables:
        return "rows are looked up in it"
    if isinstance(module, ParametrizationList):
        return "a parametrization computes a weight of it"
    if type(module).__module__.startswith(("torch.nn.", "pared.nn.")):
        return f"{type(module).__name__} does not multiply by it as a matrix"
    if given:
        return "nothing in a forward pass on this example multiplies by it as a matrix"
    return _UNKNOWN


def _typed(model: nn.Module) -> dict[int, dict[str, int]]:
    """The matrices that types tell of: by the module's `id`, the axis of units by name."""
    found: dict[int, dict[str, int]] = {}
    for module in model.modules():
        if isinstance(module, SparseLayer):
            names = {"values": 0}
        elif isinstance(module, _ConvNd):
            names = {"weight": int(module.transposed and module.groups == 1)}
        elif isinstance(module, nn.Linear | nn.Bilinear):
            names = {"weight": 0}
        elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
            names = {key: 0 for key, weight in module._parameters.items() if weight is not None and weight.ndim == 2}
        elif isinstance(module, nn.MultiheadAttention):
            held = module._parameters
            names = {key: 0 for key in held if key.endswith("proj_weight") and held[key] is not None}
        else:
            continue
        found[id(module)] = names
    return found


def _watch(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> "_Watch":
    watch = _Watch({id(parameter): parameter for parameter in model.parameters() if parameter.numel()})
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    stance = torch.compiler.set_stance("force_eager")
    try:
        with forked_random(list(devices)), evaluating(model), torch.no_grad(), stance, watch:
            model(*args, **kwargs)
    except Exception as error:
        first = str(error).strip().split("\n")[0][:300]
        raise ConfigError(
            f"{type(model).__name__} does not take this example ({type(error).__name__}: {first}); give one that its forward "
            "pass takes, or none"
        ) from error
    return watch


@dataclass(frozen=True)
class _Held:
    """Memory that has the numbers of a parameter: which axis is behind which stride."""

    parameter: int
    start: int
    stop: int
    strides: dict[int, int] = field(default_factory=dict)


class _Watch(TorchDispatchMode):
    """Note which parameters are multiplied by, and which are looked up in, with views and copies of other types of them."""

    def __init__(self, parameters: dict[int, nn.Parameter]) -> None:
        super().__init__()
        self.seen: dict[int, int] = {}
        self.order: list[int] = []
        self.tables: set[int] = set()
        self._memory: dict[int, list[_Held]] = {}
        self._alive: list[Tensor] = []  # so that no other tensor takes the memory of a copy
        for key, parameter in parameters.items():
            self._hold(parameter, key, dict(zip(parameter.stride(), range(parameter.ndim), strict=True)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if types:
            return NotImplemented
        name = func._schema.name.removeprefix("aten::")
        if name not in _LAYERS:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if name in _COPIES:
            self._copied(args[0], out)
        elif name in _PAIRS:
            self._pair(*args[_PAIRS[name] : _PAIRS[name] + 2])
        elif name in ("convolution", "_convolution"):
            self._note(args[1], int(bool(args[6]) and args[8] == 1))
        elif name in _LAYERS:
            for weight in _tensors(args[place] for place in _LAYERS[name]):
                self._note(weight, 0)
        elif name in _LOOKUPS and (held := self._of(args[_LOOKUPS[name]])) is not None:
            self.tables.add(held.parameter)
        return out

    def _pair(self, a: Tensor, b: Tensor) -> None:
        """(..., m, k) by (..., k, n), or by (k,): the units of either are not along k."""
        for x, inner, outer in ((a, -1, -2), (b, -min(2, b.ndim), -1)):
            held = self._of(x)
            if held is None:
                continue
            units = held.strides.get(x.stride(outer)) if x.ndim > 1 and x.shape[outer] > 1 else None
            if units is None:  # a slice: any axis but the inner one
                within = held.strides.get(x.stride(inner))
                units = next((axis for axis in sorted(held.strides.values()) if axis != within), 0)
            self._note(x, units)

    def _note(self, x: Tensor, axis: int) -> None:
        held = self._of(x)
        if held is not None and len(held.strides) > 1:
            self.seen.setdefault(held.parameter, axis)
            self.order.append(held.parameter)

    def _of(self, x: Any) -> _Held | None:
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            return None
        start = int(x.storage_offset())
        known = self._memory.get(x.untyped_storage()._cdata, [])
        return next((held for held in known if held.start <= start < held.stop), None)

    def _hold(self, x: Tensor, parameter: int, strides: dict[int, int]) -> None:
        if x.layout == torch.strided:
            start = int(x.storage_offset())
            held = _Held(parameter, start, start + x.numel(), strides)
            self._memory.setdefault(x.untyped_storage()._cdata, []).append(held)

    def _copied(self, x: Any, out: Any) -> None:
        held = self._of(x)
        if held is not None and isinstance(out, Tensor) and self._of(out) is None:
            pairs = zip(x.stride(), out.stride(), x.shape, strict=True)
            strides = {new: held.strides[old] for old, new, size in pairs if size > 1 and old in held.strides}
            self._hold(out, held.parameter, strides)
            self._alive.append(out)


def _tensors(items: Iterable[Any]) -> Iterable[Tensor]:
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)
