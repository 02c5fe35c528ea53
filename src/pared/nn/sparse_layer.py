"""What sparse layers share: living weights in a list, where they are in a pattern, and both in files."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn.witness import Witness
from pared.ops.csr_torch import DEVICES
from pared.ops.pattern import Pattern
from pared.ops.sparse import check

_INDICES = ("crow", "col", "crow_t", "col_t", "perm")
#: The indices that follow from the others, and are not saved.
DERIVED = _INDICES[2:]


class SparseLayer(nn.Module):
    """A layer whose weight, as a matrix (rows, columns), has entries at the places of a pattern only.

    `values`, (count,), and `bias`, (rows,), are the parameters; the pattern is in int32 buffers, of which `crow` and `col`
    (CSR) are saved. A kind of layer says its weight's `shape`, its `forward`, its dense twin (`to_dense_layer`), and what
    its witness has `seen`.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    crow: Tensor
    col: Tensor
    crow_t: Tensor
    col_t: Tensor
    perm: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole weight, as a dense layer has it; the first axis are rows, the others columns."""
        raise NotImplementedError

    def to_dense_layer(self) -> nn.Module:
        """Return a dense copy."""
        raise NotImplementedError

    def seen(self, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what the witness keeps as matrices, in pieces of about `most` numbers where these have to be made.

        Shapes: what went in (columns, batch), what came back (rows, batch).
        """
        del most
        yield from self.witness.pairs

    def _begin(
        self,
        density: float | None,
        mask: Tensor | Pattern | None,
        bias: bool,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Make the tensors, when `shape` is known."""
        if (density is None) == (mask is None):
            raise ConfigError(
                f"give either density or mask, got density={density} and {'no' if mask is None else 'a'} mask"
            )
        rows, columns = self.shape[0], self.shape[1:].numel()
        if density is not None:
            pattern = Pattern.random(rows, columns, density, generator)
        elif isinstance(mask, Pattern):
            pattern = mask
        else:
            mask = torch.as_tensor(mask)
            pattern = Pattern.from_mask(mask.flatten(1) if mask.shape == self.shape else mask)
        if (pattern.rows, pattern.columns) != (rows, columns):
            raise ConfigError(
                f"the mask must be {tuple(self.shape)}, or a pattern of ({rows}, {columns}); got ({pattern.rows}, "
                f"{pattern.columns})"
            )
        self.witness = Witness()
        device = pattern.col.device if device is None else device
        self.set_pattern(pattern.to(device))
        self.values = nn.Parameter(torch.empty(pattern.count, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(rows, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters(generator)

    @torch.no_grad()
    def _take(self, dense: nn.Linear | nn.Conv2d) -> None:
        """Take over the numbers of a dense layer of this shape, and whether they learn."""
        self.values.copy_(dense.weight.detach().flatten()[self.pattern.entries()])
        self.values.requires_grad_(dense.weight.requires_grad)
        if self.bias is not None and dense.bias is not None:
            self.bias.copy_(dense.bias).requires_grad_(dense.bias.requires_grad)
        self.train(dense.training)

    @torch.no_grad()
    def _give(self, dense: nn.Linear | nn.Conv2d) -> None:
        """Put this layer's numbers into a dense one of this shape, which may be on the meta device."""
        weight = self.to_dense()
        dense.to_empty(device=weight.device)
        dense.weight.copy_(weight).requires_grad_(self.values.requires_grad)
        if self.bias is not None and dense.bias is not None:
            dense.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        dense.train(self.training)

    def to_dense(self) -> Tensor:
        """Return the whole weight, of `shape`; it can be derived by the values."""
        return self.pattern.to_dense(self.values).view(self.shape)

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
        rows, columns = self.shape[0], self.shape[1:].numel()
        return Pattern(rows, columns, *self.indices())

    def indices(self) -> list[Tensor]:
        """Return the pattern's buffers: crow, col, crow_t, col_t, perm."""
        buffers = self._buffers  # an attribute of a module takes half a microsecond, and a product perhaps twenty
        return [buffers[name] for name in _INDICES]  # pyright: ignore[reportReturnType]

    @torch.inference_mode(False)  # whose tensors could never be trained with again
    @torch.no_grad()
    def repattern(self, pattern: Pattern, source: Tensor | None = None) -> Tensor:
        """Change where weights live, and return `source`, for whatever else has a number per weight.

        New weight i, and its gradient, is what weight source[i] was, or 0 where source[i] is -1. `values` stays the same
        object, with another length; state of an optimizer has to follow by the same `source`.

        Shapes: source (pattern.count,) of integers; by default weights stay where they are in the matrix.

        Raises:
            ConfigError: the pattern is of another size, or `source` does not fit.
        """
        old = self.pattern
        if (pattern.rows, pattern.columns) != (old.rows, old.columns):
            raise ConfigError(
                f"expected a pattern of ({old.rows}, {old.columns}), got ({pattern.rows}, {pattern.columns})"
            )
        pattern = pattern.to(self.values.device)
        source = pattern.source(old) if source is None else source.to(self.values.device).long()
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

    @torch.inference_mode(False)
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
                error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
                return
        rest = local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def read_pattern(self, crow: Tensor, col: Tensor, values: Tensor) -> Pattern:
        """Return the pattern that was saved with these values.

        Raises:
            ConfigError: it is none, or not one of this layer.
        """
        rows, columns = self.shape[0], self.shape[1:].numel()
        if crow.shape != (rows + 1,) or values.shape != col.shape:
            raise ConfigError(
                f"expected crow ({rows + 1},), and values and col of one length; got {tuple(crow.shape)}, "
                f"{tuple(values.shape)} and {tuple(col.shape)}"
            )
        return Pattern.from_csr(crow, col, columns)

    @torch.inference_mode(False)
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


def ready(x: Tensor, values: Tensor, bias: Tensor | None, col: Tensor) -> Tensor:
    """Return `x` in the type of the values if autocast is on; make sure that there are kernels for it.

    Raises:
        ConfigError: there are none.
    """
    if x.dtype != values.dtype and x.device.type in DEVICES and torch.is_autocast_enabled(x.device.type):
        x = x.to(values.dtype)
    check(x, values, bias, col)
    return x


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
