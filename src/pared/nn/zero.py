"""What is left of a branch that gives nothing."""

from torch import Tensor, nn


class Zero(nn.Module):
    """Return zero, whatever comes in: a branch that is added to something and has died.

    Shapes: anything -> (), which an addition broadcasts without copying.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return a zero of the type and on the device of `x`."""
        return x.new_zeros(())
