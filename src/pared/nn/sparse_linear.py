"""A linear layer that stores, and computes with, its living weights only."""

from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn.batch_major import BatchMajor
from pared.nn.witness import Witness
from pared.ops.csr import csr_product
from pared.ops.csr_torch import DEVICES
from pared.ops.pattern import Pattern
from pared.ops.sparse import check
from pared.ops.turn import turned

_INDICES = ("crow", "col", "crow_t", "col_t", "perm")
#: The indices that follow from the others, and are not saved.
DERIVED = _INDICES[2:]


class SparseLinear(nn.Module):
    """Apply x A^T + b, where the matrix A has entries at the places of a pattern only.

    Shapes: (..., in_features) -> (..., out_features). `values`, (count,), and `bias`, (out_features,), are the parameters;
    the pattern is in int32 buffers, of which `crow` and `col` (CSR) are saved. float32 and float64, on the CPU and CUDA.

    The answer is a transposed view of a features-major tensor. A layer that gets such a view, as from another sparse layer,
    with activations between them or none, copies nothing; any other input is transposed once. Put `BatchMajor` where the
    stack ends and dense layers begin.

    A state_dict may have another pattern than the layer it is loaded into: `values` keeps its identity and gets another
    length, and its gradient is dropped when the pattern differs. State of an optimizer that is sized like `values` must be
    loaded too, or made anew.

    Args:
        in_features: columns of A, >= 1.
        out_features: rows of A, >= 1.
        density: the share of entries there are, drawn by `generator`, in [0, 1]; give this or `mask`.
        mask: where they are, boolean (out_features, in_features) or a `Pattern`.
        bias: whether there is one; it begins at 0.
        generator: where the pattern and the values are drawn from.
        device: of all tensors; by default the one of the mask, else the CPU.
        dtype: of the parameters.

    Raises:
        ConfigError: an argument is out of range, or both or none of `density` and `mask` are given.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    crow: Tensor
    col: Tensor
    crow_t: Tensor
    col_t: Tensor
    perm: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        density: float | None = None,
        mask: Tensor | Pattern | None = None,
        bias: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (density is None) == (mask is None):
            raise ConfigError(
                f"give either density or mask, got density={density} and {'no' if mask is None else 'a'} mask"
            )
        if min(in_features, out_features) < 1:
            raise ConfigError(f"both sizes must be at least 1, got {in_features} inputs and {out_features} outputs")
        if density is not None:
            pattern = Pattern.random(out_features, in_features, density, generator)
        else:
            pattern = mask if isinstance(mask, Pattern) else Pattern.from_mask(torch.as_tensor(mask))
        if (pattern.rows, pattern.columns) != (out_features, in_features):
            raise ConfigError(
                f"the mask must be (out_features, in_features) = ({out_features}, {in_features}), got "
                f"({pattern.rows}, {pattern.columns})"
            )
        self.in_features, self.out_features = in_features, out_features
        self.witness = Witness()
        device = pattern.col.device if device is None else device
        self.set_pattern(pattern.to(device))
        self.values = nn.Parameter(torch.empty(pattern.count, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters(generator)

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask: Tensor | Pattern | None = None) -> "SparseLinear":
        """Return a sparse copy of `linear`: the weights where `mask` is True, or those that are not 0.

        Raises:
            ConfigError: the mask has another shape than the weight.
        """
        weight = linear.weight.detach()
        mask = weight != 0 if mask is None else mask
        layer = cls(
            linear.in_features,
            linear.out_features,
            mask=mask,
            bias=linear.bias is not None,
            generator=torch.Generator(),  # of its own, as what is drawn is written over
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            layer.values.copy_(weight.flatten()[layer.pattern.entries()])
            if layer.bias is not None:
                layer.bias.copy_(linear.bias).requires_grad_(linear.bias.requires_grad)
        layer.values.requires_grad_(linear.weight.requires_grad)
        return layer.train(linear.training)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """Return a dense copy."""
        weight = self.to_dense()
        biased = self.bias is not None
        linear = nn.Linear(self.in_features, self.out_features, biased, device="meta", dtype=weight.dtype)
        linear = linear.to_empty(device=weight.device)
        linear.weight.copy_(weight).requires_grad_(self.values.requires_grad)
        if self.bias is not None:
            linear.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        return linear.train(self.training)

    def to_dense(self) -> Tensor:
        """Return A, (out_features, in_features); it can be derived by the values."""
        return self.pattern.to_dense(self.values)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the values from N(0, 2 / a row's number of entries), as He et al. do (arXiv 1502.01852); the bias is 0."""
        if self.values.is_meta:
            return
        device = self.values.device if generator is None else generator.device
        drawn = torch.randn(len(self.values), generator=generator, device=device, dtype=self.values.dtype)
        inputs = self.crow.diff().repeat_interleave(self.crow.diff(), output_size=len(self.values))
        self.values.copy_(drawn).mul_((2.0 / inputs.to(self.values.dtype)).sqrt_())
        if self.bias is not None:
            self.bias.zero_()

    @property
    def count(self) -> int:
        """How many weights live."""
        return len(self.values)

    @property
    def pattern(self) -> Pattern:
        """Where they are; it shares the buffers."""
        return Pattern(self.out_features, self.in_features, *(getattr(self, name) for name in _INDICES))

    @torch.no_grad()
    def repattern(self, pattern: Pattern, source: Tensor | None = None) -> Tensor:
        """Change where weights live, and return `source`, for whatever else has a number per weight.

        New weight i, and its gradient, is what weight source[i] was, or 0 where source[i] is -1. `values` stays the same
        object, with another length; state of an optimizer has to follow by the same `source`.

        Shapes: source (pattern.count,) of integers; by default weights stay where they are in the matrix.

        Raises:
            ConfigError: the pattern is of another size, or `source` does not fit.
        """
        if (pattern.rows, pattern.columns) != (self.out_features, self.in_features):
            raise ConfigError(
                f"expected a pattern of ({self.out_features}, {self.in_features}), got ({pattern.rows}, {pattern.columns})"
            )
        pattern = pattern.to(self.values.device)
        source = pattern.source(self.pattern) if source is None else source.to(self.values.device).long()
        if source.shape != (pattern.count,) or bool(((source < -1) | (source >= self.count)).any()):
            raise ConfigError(f"source must be ({pattern.count},), each in -1 to {self.count - 1}")
        grad = self.values.grad
        if pattern.count == self.count:  # in place, as what has hooked itself to the parameter (DDP) stays so
            self.values.copy_(gather(self.values, source))
        else:
            _resize(self.values, gather(self.values, source))
        self.values.grad = None if grad is None else gather(grad, source)
        self.set_pattern(pattern)
        return source

    def forward(self, x: Tensor) -> Tensor:
        """Return x A^T + b.

        Raises:
            ValueError: the last axis is not `in_features` long.
            ConfigError: there is no kernel for the type or the device, or `x` differs in them.
        """
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected {self.in_features} features on the last axis, got shape {tuple(x.shape)}")
        values, bias, col = self.values, self.bias, self.col
        if x.dtype != values.dtype and x.device.type in DEVICES and torch.is_autocast_enabled(x.device.type):
            x = x.to(values.dtype)
        check(x, values, bias, col)
        features_major = turned(x if x.ndim == 2 else x.reshape(-1, self.in_features))
        y = csr_product(features_major, values, bias, self.crow, col, None, self.crow_t, self.col_t, self.perm)
        if self.witness.on:
            self.witness.see(features_major, y, x)  # pyright: ignore[reportAttributeAccessIssue]
        return y.t() if x.ndim == 2 else y.t().reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Say how many of how many weights live."""
        total = self.in_features * self.out_features
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{self.count} of {total} weights"
        )

    def set_pattern(self, pattern: Pattern) -> None:
        """Say where the values belong that are there, or are about to be put there."""
        for name in _INDICES:  # its own copies: what averages or moves one layer's buffers leaves others alone
            self.register_buffer(name, getattr(pattern, name).clone(), persistent=name not in DERIVED)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:
        """Take over the pattern, if it is whole and right, and then load as always."""
        crow, col, values = (state_dict.get(prefix + name) for name in ("crow", "col", "values"))
        there = [part is not None for part in (crow, col, values)]
        if any(there) and not (crow is not None and crow.is_meta):
            try:
                if crow is None or col is None or values is None:
                    raise ConfigError("crow, col and values go together; give all three")
                self._take_pattern(crow, col, values, assign=local_metadata.get("assign_to_params_buffers", False))
            except ConfigError as error:
                error_msgs.append(f"{prefix.rstrip('.') or 'SparseLinear'}: {error}")
                return
        rest = local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def read_pattern(self, crow: Tensor, col: Tensor, values: Tensor) -> Pattern:
        """Return the pattern that was saved with these values.

        Raises:
            ConfigError: it is none, or not one of this layer.
        """
        if crow.shape != (self.out_features + 1,) or values.shape != col.shape:
            raise ConfigError(
                f"expected crow ({self.out_features + 1},), and values and col of one length; got {tuple(crow.shape)}, "
                f"{tuple(values.shape)} and {tuple(col.shape)}"
            )
        return Pattern.from_csr(crow, col, self.in_features)

    @torch.no_grad()
    def _take_pattern(self, crow: Tensor, col: Tensor, values: Tensor, *, assign: bool) -> None:
        """Make room for what is about to be copied into this layer, or to replace its tensors."""
        if assign and (crow.dtype, col.dtype) != (torch.int32, torch.int32):
            raise ConfigError(f"expected crow and col in int32 to assign them, got {crow.dtype} and {col.dtype}")
        device = crow.device if assign else self.crow.device
        pattern = self.read_pattern(crow, col, values).to(device)
        held = device == self.crow.device and device.type != "meta" and pattern.count == self.count
        if not (held and torch.equal(pattern.crow, self.crow) and torch.equal(pattern.col, self.col)):
            _resize(self.values, torch.empty(pattern.count, device=self.values.device, dtype=self.values.dtype))
        self.set_pattern(pattern)  # the same one too, as what follows from it may have been lost


def dense(model: nn.Module) -> nn.Module:
    """Return `model` with every `SparseLinear` in it, itself perhaps, made a dense one; in place but for itself.

    What only turns tensors for sparse layers becomes the identity.
    """
    if isinstance(model, SparseLinear):
        return model.to_linear()
    made: dict[int, nn.Module] = {}  # a layer in two places stays one
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, SparseLinear):
                if id(child) not in made:
                    made[id(child)] = child.to_linear()
                parent._modules[name] = made[id(child)]
            elif isinstance(child, BatchMajor):
                parent._modules[name] = nn.Identity().train(child.training)
    return model


def gather(x: Tensor, source: Tensor) -> Tensor:
    """Return x[source], and 0 where `source` is -1: new (count,) from old (entries,).

    Optimizer state that has a number per weight follows a new pattern by it.
    """
    fresh = source < 0
    padded = x if len(x) else x.new_zeros(1)
    return padded.index_select(0, source.clamp(min=0)).masked_fill_(fresh, 0.0)


def _resize(parameter: nn.Parameter, data: Tensor) -> None:
    """Put `data` of another length into `parameter`; its gradient is dropped."""
    parameter.grad = None
    # A graph that is still held, as by a loss of the last step, keeps a node that expects gradients of the old length;
    # torch makes a new one only when the type changes.
    other = torch.float64 if data.dtype != torch.float64 else torch.float32
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data
