"""How a convolution's kernel goes over an image, and images as matrices that it is a product with."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Window(NamedTuple):
    """A kernel's size, its step, the zeros around the image, and the distance of its positions, each of rows and columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    dilation: tuple[int, int] = (1, 1)

    @property
    def positions(self) -> int:
        """How many positions the kernel has."""
        return self.kernel[0] * self.kernel[1]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the answer to an image; below 1 where the kernel does not fit."""
        reach = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
        return (
            (height + self.top + self.bottom - reach[0] - 1) // self.stride[0] + 1,
            (width + self.left + self.right - reach[1] - 1) // self.stride[1] + 1,
        )

    def numbers(self) -> list[int]:
        """Return it as operators take it."""
        return [*self.kernel, *self.stride, self.top, self.bottom, self.left, self.right, *self.dilation]

    @classmethod
    def of(cls, numbers: list[int]) -> "Window":
        """Return the window of these `numbers`."""
        height, width, down, across, top, bottom, left, right, *dilation = numbers
        return cls((height, width), (down, across), top, bottom, left, right, (dilation[0], dilation[1]))

    def unfold(self, x: Tensor) -> Tensor:
        """Return what each position of the kernel sees: (n, channels, height, width) -> (channels · positions, n · out)."""
        n, channels, height, width = x.shape
        rows, columns = self.out_size(height, width)
        if self.positions == 1 and self.stride == (1, 1) and self.top == self.bottom == self.left == self.right == 0:
            return x.transpose(0, 1).reshape(channels, n * rows * columns).contiguous()
        padded = F.pad(x, (self.left, self.right, self.top, self.bottom)).contiguous()
        s = padded.stride()
        (p, q), (d, e) = self.stride, self.dilation
        patches = padded.as_strided(
            (channels, *self.kernel, n, rows, columns), (s[1], d * s[2], e * s[3], s[0], p * s[2], q * s[3])
        )
        return patches.reshape(channels * self.positions, n * rows * columns).contiguous()

    def fold(self, columns: Tensor, n: int, height: int, width: int) -> Tensor:
        """Return the sum of what each pixel is to the positions that see it, the transpose of `unfold`.

        Shapes: (channels · positions, n · out) -> (n, channels, height, width).
        """
        size = height + self.top + self.bottom, width + self.left + self.right
        if n == 0:
            return columns.new_zeros(0, columns.shape[0] // self.positions, height, width)
        each = columns.unflatten(1, (n, -1)).transpose(0, 1)
        padded = F.fold(each, size, self.kernel, dilation=self.dilation, stride=self.stride)
        return padded[..., self.top : self.top + height, self.left : self.left + width].contiguous()
