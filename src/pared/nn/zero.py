"""What is left of a branch that gives nothing."""

from typing import Any

from torch import Tensor, nn


class Zero(nn.Module):
    """Return zero, whatever comes in: a branch that is added to something and has died.

    Shapes: anything -> (), which an addition broadcasts without copying.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a zero of the type and on the device of the first tensor of numbers."""
        given = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)]
        return next((x for x in given if x.is_floating_point()), given[0]).new_zeros(())


class ZeroAttention(nn.Module):
    """Return zero in the place of `nn.MultiheadAttention`, in the form of its results, and without weights.

    Shapes: anything -> (), and no attention weights. Attributes are those by which torch's own transformer layers see that
    there is nothing to fuse.
    """

    in_proj_bias = None

    def __init__(self, *, batch_first: bool = False) -> None:
        super().__init__()
        self.batch_first = batch_first

    def forward(self, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Return a zero of the type and on the device of `query`, and None."""
        return query.new_zeros(()), None


def unfused(module: nn.Module, args: Any) -> None:
    """Do nothing: a hook, as torch's own transformer layers read weights past all modules unless one has a hook."""
    del module, args
