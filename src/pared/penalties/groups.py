"""Groups of weights: their members go to zero together (group lasso), or compete with each other (exclusive lasso)."""

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


def exclusive_lasso(tensors: Iterable[Tensor], dim: int | Sequence[int]) -> Tensor:
    """Return half the sum over all `tensors` and groups of ‖group‖₁², a scalar; groups run over the axes `dim`.

    Members of a group compete: each is pressed upon by the size of all, so that some go to zero in every group.

    Shapes: of weights (out, in), the groups are columns with `dim=0` and rows with `dim=1`. The gradient of an entry that is
    0 is 0.

    Source: Zhou, Jin and Hoi (2010), Exclusive lasso for multi-task feature selection; as in differentiable
    sparsification (arXiv 1910.03201), related work. The proximal step is `pared.ops.exclusive_soft_threshold`.
    """
    return 0.5 * torch.stack([torch.linalg.vector_norm(x, 1, dim=dim).square().sum() for x in tensors]).sum()
