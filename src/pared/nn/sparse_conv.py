"""A two-dimensional convolution that stores, and computes with, its living weights only."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn.sparse_layer import SparseLayer, ready
from pared.ops.csr_conv import csr_conv
from pared.ops.pattern import Pattern
from pared.ops.window import Window

Pair = int | tuple[int, int]


class SparseConv2d(SparseLayer):
    """Convolve images with a weight that has entries at the places of a pattern only, as `nn.Conv2d` with zeros does.

    Shapes: (n, in_channels, height, width) or without n -> (n, out_channels, rows, columns), contiguous. `values`, (count,),
    and `bias`, (out_channels,), are the parameters; the pattern is that of the matrix (out_channels, in_channels · kernel
    height · kernel width), in int32 buffers, of which `crow` and `col` (CSR) are saved. float32 and float64, on the CPU and
    CUDA. Groups are not served, nor padding by anything but zeros.

    A state_dict may have another pattern than the layer it is loaded into, as with `SparseLinear`.

    Args:
        in_channels: channels of an image, >= 1.
        out_channels: channels of the answer, >= 1.
        kernel_size: height and width of the kernel, or both as one number, >= 1.
        stride: pixels from one place of the kernel to the next, >= 1.
        padding: zeros around the image, above and below, left and right, >= 0; "valid" is none, "same" keeps the size.
        dilation: pixels from one position of the kernel to the next, >= 1.
        density: the share of entries there are, drawn by `generator`, in [0, 1]; give this or `mask`.
        mask: where they are, boolean (out_channels, in_channels, kernel height, kernel width), or that as a matrix, or a
            `Pattern` of it.
        bias: whether there is one; it begins at 0.
        generator: where the pattern and the values are drawn from.
        device: of all tensors; by default the one of the mask, else the CPU.
        dtype: of the parameters.

    Raises:
        ConfigError: an argument is out of range, or both or none of `density` and `mask` are given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        *,
        density: float | None = None,
        mask: Tensor | Pattern | None = None,
        bias: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels) < 1:
            raise ConfigError(f"both sizes must be at least 1, got {in_channels} and {out_channels} channels")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride, self.dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
        self.padding = padding if isinstance(padding, str) else _pair("padding", padding, 0)
        self.window = _window(self.kernel_size, self.stride, self.padding, self.dilation)
        self._begin(density, mask, bias, generator, device, dtype)

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole weight, (out_channels, in_channels, kernel height, kernel width)."""
        return torch.Size((self.out_channels, self.in_channels, *self.kernel_size))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, mask: Tensor | Pattern | None = None) -> "SparseConv2d":
        """Return a sparse copy of `conv`: the weights where `mask` is True, or those that are not 0.

        Raises:
            ConfigError: the mask has another shape than the weight, or the convolution has groups, or pads with other
                numbers than zeros.
        """
        if conv.groups != 1 or conv.padding_mode != "zeros":
            raise ConfigError(
                f"sparse convolutions have groups=1 and padding_mode='zeros', got groups={conv.groups} and "
                f"padding_mode={conv.padding_mode!r}; leave this layer dense"
            )
        weight = conv.weight.detach()
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # pyright: ignore[reportArgumentType]
            conv.stride,  # pyright: ignore[reportArgumentType]
            conv.padding,  # pyright: ignore[reportArgumentType]
            conv.dilation,  # pyright: ignore[reportArgumentType]
            mask=weight != 0 if mask is None else mask,
            bias=conv.bias is not None,
            generator=torch.Generator(),  # of its own, as what is drawn is written over
            device=weight.device,
            dtype=weight.dtype,
        )
        layer._take(conv)
        return layer

    def to_conv(self) -> nn.Conv2d:
        """Return a dense copy."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            bias=self.bias is not None,
            device="meta",
            dtype=self.values.dtype,
        )
        self._give(conv)
        return conv

    def to_dense_layer(self) -> nn.Conv2d:
        """Return a dense copy."""
        return self.to_conv()

    def forward(self, input: Tensor) -> Tensor:  # the name that `nn.Conv2d` has given it
        """Return the convolution of `input`.

        Raises:
            ValueError: it is no image or images of `in_channels` channels, or smaller than the kernel.
            ConfigError: there is no kernel for the type or the device, or `input` differs in them.
        """
        x = input
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"expected images ({self.in_channels}, height, width) or (n, {self.in_channels}, height, width), got "
                f"shape {tuple(x.shape)}"
            )
        if min(self.window.out_size(*x.shape[-2:])) < 1:
            raise ValueError(f"images of shape {tuple(x.shape)} are smaller than the kernel, {self.extra_repr()}")
        values, bias, col = self.values, self.bias, self.col
        given = ready(x, values, bias, col)
        images = given.contiguous() if x.ndim == 4 else given.unsqueeze(0).contiguous()
        y = csr_conv(images, values, bias, self.window, self.crow, col, None, self.crow_t, self.col_t, self.perm)
        if self.witness.on:
            self.witness.see(images, y, x)  # pyright: ignore[reportAttributeAccessIssue]
        return y if x.ndim == 4 else y.squeeze(0)

    def seen(self, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what the witness keeps as matrices, in pieces of about `most` numbers."""
        for x, dy in self.witness.pairs:
            n = max(1, most // (self.shape[1:].numel() * dy.shape[2] * dy.shape[3]))
            for some, back in zip(x.split(n), dy.split(n), strict=True):
                yield self.window.unfold(some), back.transpose(0, 1).flatten(1)

    def extra_repr(self) -> str:
        """Say how it goes over images, and how many of how many weights live."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding!r}, dilation={self.dilation}, bias={self.bias is not None}, "
            f"{self.count} of {self.shape.numel()} weights"
        )


def _pair(name: str, given: Any, least: int) -> tuple[int, int]:
    pair = (given, given) if isinstance(given, int) else tuple(given)
    if len(pair) != 2 or not all(isinstance(one, int) and one >= least for one in pair):
        raise ConfigError(f"{name} must be a number or two of at least {least}, got {given!r}")
    return pair


def _window(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] | str, dilation: tuple[int, int]
) -> Window:
    if not isinstance(padding, str):
        return Window(kernel, stride, padding[0], padding[0], padding[1], padding[1], dilation)
    if padding == "valid":
        return Window(kernel, stride, dilation=dilation)
    if padding != "same" or stride != (1, 1):
        raise ConfigError(
            f'padding must be a number, two, "valid", or, with stride 1, "same"; got {padding!r} with stride {stride}'
        )
    high, wide = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return Window(kernel, stride, high // 2, high - high // 2, wide // 2, wide - wide // 2, dilation)
