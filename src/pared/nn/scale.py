"""A number that could not be folded into a layer."""

from torch import Tensor, nn


class Scale(nn.Module):
    """Multiply by a number that is not learned, `factor` (). Shapes: anything -> the same."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return x · factor."""
        return x * self.factor

    def extra_repr(self) -> str:
        """Say the number."""
        return f"{float(self.factor):g}"
