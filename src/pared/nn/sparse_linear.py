"""A linear layer that stores, and computes with, its living weights only."""

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn.sparse_layer import SparseLayer, ready
from pared.ops.csr import csr_product
from pared.ops.pattern import Pattern
from pared.ops.turn import turned


class SparseLinear(SparseLayer):
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
        if min(in_features, out_features) < 1:
            raise ConfigError(f"both sizes must be at least 1, got {in_features} inputs and {out_features} outputs")
        self.in_features, self.out_features = in_features, out_features
        self._begin(density, mask, bias, generator, device, dtype)

    @property
    def shape(self) -> torch.Size:
        """The shape of A, (out_features, in_features)."""
        return torch.Size((self.out_features, self.in_features))

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
        layer._take(linear)
        return layer

    def to_linear(self) -> nn.Linear:
        """Return a dense copy."""
        biased = self.bias is not None
        linear = nn.Linear(self.in_features, self.out_features, biased, device="meta", dtype=self.values.dtype)
        self._give(linear)
        return linear

    def to_dense_layer(self) -> nn.Linear:
        """Return a dense copy."""
        return self.to_linear()

    def forward(self, input: Tensor) -> Tensor:  # the name that `nn.Linear` has given it
        """Return input A^T + b.

        Raises:
            ValueError: the last axis is not `in_features` long.
            ConfigError: there is no kernel for the type or the device, or `input` differs in them.
        """
        x = input
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"expected {self.in_features} features on the last axis, got shape {tuple(x.shape)}")
        values, bias = self.values, self.bias
        crow, col, crow_t, col_t, perm = self.indices()
        x = ready(x, values, bias, col)
        features_major = turned(x if x.ndim == 2 else x.reshape(-1, self.in_features))
        y = csr_product(features_major, values, bias, crow, col, None, crow_t, col_t, perm)
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
