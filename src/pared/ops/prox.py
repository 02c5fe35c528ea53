"""Proximal operators: the step that a penalty takes exactly, where its gradient would only circle around zero."""

from collections.abc import Sequence

import torch
from torch import Tensor


def soft_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    """Return sign(x) · max(|x| - threshold, 0), entry by entry: the proximal operator of threshold · ‖x‖₁.

    Shapes: any; `threshold` >= 0 broadcasts against `x`.

    Source: Parikh and Boyd (2014), Proximal algorithms, section 6.5.2.
    """
    return x.sign() * (x.abs() - threshold).clamp(min=0.0)


def group_soft_threshold(x: Tensor, threshold: float | Tensor, dim: int | Sequence[int]) -> Tensor:
    """Return x · max(1 - threshold / ‖group‖₂, 0): the proximal operator of threshold · sum of the groups' norms.

    A group runs over the axes `dim`: of a weight (out, in), the columns with `dim=0`, the rows with `dim=1`. Groups
    whose norm is at most `threshold` >= 0 become exactly 0, a group of zeros included.

    Source: Parikh and Boyd (2014), Proximal algorithms, section 6.5.4.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x * (1.0 - threshold / norm.clamp(min=torch.finfo(x.dtype).tiny)).clamp(min=0.0)
