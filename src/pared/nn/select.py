"""The inputs a network still asks for."""

import torch
from torch import Tensor, nn


class Select(nn.Module):
    """Pick the features that are still in use from the last axis.

    Shapes: (..., `original`) or, already narrowed, (..., kept) -> (..., kept), in the order of `index`.
    Accepting both lets a loop narrow its data once instead of in every batch.

    Raises:
        ValueError: the last axis has neither size.
    """

    index: Tensor

    def __init__(self, features: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.original = features
        self.register_buffer("index", torch.arange(features, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features in use, (..., kept)."""
        if x.shape[-1] == self.original:  # also while all are in use, so that a trace sees the choice
            return x.index_select(-1, self.index)
        if x.shape[-1] != self.index.shape[0]:
            raise ValueError(
                f"expected {self.original} features, or the {self.index.shape[0]} still in use, on the last axis; "
                f"got {x.shape[-1]}"
            )
        return x

    def extra_repr(self) -> str:
        """Say how many features are left."""
        return f"{self.index.shape[0]} of {self.original}"
