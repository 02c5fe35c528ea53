"""The group lasso: whole rows, columns or filters go to zero together."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def group_lasso(tensors: Iterable[Tensor], dim: int | Sequence[int]) -> Tensor:
    """Return the sum over all `tensors` and groups of ‖group‖₂, a scalar; groups run over the axes `dim`.

    Shapes: of weights (out, in), the groups are columns with `dim=0` and rows with `dim=1`; of convolutions
    (out, in, h, w), filters with `dim=(1, 2, 3)`. The gradient of a group of zeros is 0.

    Source: Yuan and Lin (2006), here without weights for the groups' sizes, as in ShrinkNets (arXiv 1806.03723),
    section 2.3; the proximal step is `pared.ops.group_soft_threshold`.
    """
    return torch.stack([torch.linalg.vector_norm(x, dim=dim).sum() for x in tensors]).sum()
