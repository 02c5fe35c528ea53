"""The way out of a stack of sparse layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from pared.ops.plain import looked_on, plain
from pared.ops.turn import turned


class BatchMajor(nn.Module):
    """Return its input, contiguous, and hand gradients back as sparse layers read them: put it before what is dense.

    Sparse layers give transposed views. Dense layers take these too, but slowly, and so do activations whose gradients
    come from dense layers: with 10 outputs the two cost more than several sparse layers. Copying once each way is cheaper.

    Shapes: (..., features) -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, row by row in memory."""
        if looked_on():  # a Function with a `jvp`, or a rule for `vmap`, does not compile
            return x.clone(memory_format=torch.contiguous_format)
        if plain(x):
            return _by_rows(x)
        return _Turn.apply(x)  # pyright: ignore[reportReturnType]


class _Turn(Function):
    """Contiguous one way, features-major the other."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _by_rows(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (g,) = grad_outputs
        if g.ndim < 2 or not g.numel():
            return g
        return turned(g.reshape(-1, g.shape[-1])).t().reshape(g.shape)


def _by_rows(x: Tensor) -> Tensor:
    """Return a contiguous copy."""
    if not torch.compiler.is_compiling() and x.ndim == 2 and not x.is_contiguous():
        return turned(x.t())
    # What is contiguous already, as a batch of one is, would come back as a view that nothing may change in place.
    return x.clone(memory_format=torch.contiguous_format)
