"""Multiply-accumulates of whatever runs inside a `with`, operator by operator."""

import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

#: What an operator costs, from what it returned and its arguments.
Formula = Callable[..., int]

#: Operators of torch that multiply by more than one number an entry, by their names; `_NOT` are no products after all.
_PRODUCT = re.compile(
    r"mm(_|$)|mm\d|matmul|(^|_)(mv|dot|addr|lu|qr)(_|$)|conv(?!ert)|linear|rnn|lstm|gru(_|$)|attention|encoder_layer"
    r"|einsum|tensordot|^_?(bi|tri)linear$|fft|linalg|cholesky|solve|svd|matrix_exp|dist(_|$)"
)
_NOT = re.compile(r"upsample|_thnn_fused|vector_norm|check_errors|linalg_(cross|diagonal)|unpack|prepack|to_")
#: Namespaces whose operators compute nothing, but for the products above.
_QUIET = ("aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "c10d_functional")


class MacCounter(TorchDispatchMode):
    """Count the multiply-accumulates of all operators that run on this thread while it is entered.

    `counts` are those by operator, `missing` the operators that multiply, or may do so, for which there is no formula: they
    count as 0. One of your own counts as soon as `torch.utils.flop_counter.register_flop_formula` knows it.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.missing: set[str] = set()

    @property
    def total(self) -> int:
        """All multiply-accumulates so far."""
        return sum(self.counts.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        if types:  # a subclass says itself what it is made of, operator by operator
            return NotImplemented
        name, packet = func._schema.name, func._overloadpacket
        formula = _FORMULAS.get(name)
        if formula is None and packet not in flop_registry:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.counts[name] += formula(out, *_positional(func, args, kwargs))
        elif packet in flop_registry:
            self.counts[name] += int(flop_registry[packet](*args, **kwargs, out_val=out)) // 2
        elif _may_multiply(func):
            self.missing.add(name.replace("::", "."))
        return out

    def _higher_order(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is torch.ops.higher_order.cond:
            taken, when, otherwise, operands = args
            with self:
                return (when if bool(taken) else otherwise)(*operands)
        out = func(*args, **kwargs)
        if func in flop_registry:
            self.counts[str(func)] += int(flop_registry[func](*args, **kwargs, out_val=out)) // 2
        else:
            self.missing.add(str(func))
        return out

    def warn(self, stacklevel: int = 2) -> None:
        """Say which operators have no formula, if there are any."""
        if self.missing:
            warnings.warn(
                f"multiply-accumulates of {', '.join(sorted(self.missing))} are not known and count as 0; register a "
                "formula with torch.utils.flop_counter.register_flop_formula where they multiply",
                stacklevel=stacklevel + 1,
            )


def _positional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments in the order of the operator's schema, without those that were left out at the end."""
    named = [argument.name for argument in func._schema.arguments]
    return [*args, *(kwargs[name] for name in named[len(args) :] if name in kwargs)]


def _may_multiply(func: Any) -> bool:
    namespace, _, name = func._schema.name.partition("::")
    if namespace not in _QUIET:
        return True
    return multiplies(name)


def multiplies(name: str) -> bool:
    """Whether torch's operator of this name ("matmul") is a product, as far as names tell."""
    return bool(_PRODUCT.search(name)) and not _NOT.search(name)


def _numbers(x: Tensor) -> int:
    """How many entries are stored: all, or those of a sparse matrix."""
    return x.numel() if x.layout == torch.strided else x._values().numel() if x.layout == torch.sparse_coo else _held(x)


def _held(x: Tensor) -> int:
    return x.values().numel()


def _product(a: Tensor, b: Tensor) -> int:
    """Of (..., m, k) by (..., k, n), either of which may be sparse."""
    if b.layout != torch.strided:
        return _numbers(b) * a.shape[-2]
    return _numbers(a) * (b.shape[-1] if b.ndim > 1 else 1)


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """A place of the kernel is one of the output, and of a transposed convolution one of the input."""
    transposed = bool(rest[4]) if len(rest) > 4 else False
    places = x if transposed else out
    return weight.numel() * (places.numel() // max(1, places.shape[1])) if places.numel() else 0


def _attention(out: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> int:
    """Both products, of all pairs, masked or not; heads of q may share those of k and v."""
    del out, rest
    return q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _recurrent(x: Tensor, weights: Any) -> int:
    """Each matrix of each layer and direction multiplies each row."""
    return x.shape[:-1].numel() * sum(weight.numel() for weight in weights if weight.ndim == 2)


def _mul(out: Any, a: Any, b: Any, *rest: Any) -> int:
    """An outer product, as numbers of either are used more than once; what is done entry by entry is not counted."""
    del rest
    both = isinstance(a, Tensor) and isinstance(b, Tensor) and out.is_floating_point()
    return out.numel() if both and out.numel() > max(a.numel(), b.numel()) else 0


_FORMULAS: dict[str, Formula] = {
    "aten::mul": _mul,
    "aten::dot": lambda out, a, b: a.numel(),
    "aten::vdot": lambda out, a, b: a.numel(),
    "aten::addr": lambda out, *rest: out.numel(),
    "aten::_trilinear": lambda out, a, w, b, *rest: a.shape[:1].numel() * w.numel(),
    "aten::_cdist_forward": lambda out, a, b, *rest: out.numel() * a.shape[-1],
    "aten::_euclidean_dist": lambda out, a, b: out.numel() * a.shape[-1],
    "aten::conv_tbc": lambda out, x, w, *rest: out.shape[:2].numel() * w.numel(),
    "aten::mkldnn_rnn_layer": lambda out, x, *rest: _recurrent(x, rest[:4]),
    "aten::_cudnn_rnn": lambda out, x, weights, *rest: _recurrent(x, weights),
    "aten::miopen_rnn": lambda out, x, weights, *rest: _recurrent(x, weights),
    "aten::sparse_sampled_addmm": lambda out, sparse, a, b, *rest: _numbers(sparse) * a.shape[-1],
    "pared::csr_product": lambda out, x, values, *rest: values.numel() * x.shape[1],
    "pared::csr_dots": lambda out, dy, x, *rest: out.numel() * x.shape[1],
    "pared::csr_conv": lambda out, x, values, *rest: values.numel() * (out.numel() // max(1, out.shape[1])),
    **dict.fromkeys(("aten::mm", "aten::bmm", "aten::mv", "aten::_int_mm"), lambda out, a, b, *rest: _product(a, b)),
    **dict.fromkeys(
        (
            "aten::addmm",
            "aten::addmm_",
            "aten::baddbmm",
            "aten::baddbmm_",
            "aten::addbmm",
            "aten::addbmm_",
            "aten::addmv",
            "aten::addmv_",
            "aten::_addmm_activation",
            "aten::_sparse_addmm",
            "aten::sspaddmm",
        ),
        lambda out, added, a, b, *rest: _product(a, b),
    ),
    **dict.fromkeys(
        ("aten::convolution", "aten::_convolution", "aten::convolution_overrideable", "aten::mkldnn_convolution"),
        _convolution,
    ),
    **dict.fromkeys(
        (
            "aten::_scaled_dot_product_flash_attention_for_cpu",
            "aten::_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    ),
}
