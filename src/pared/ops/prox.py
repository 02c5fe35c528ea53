"""Proximal operators: the step that a penalty takes exactly, where its gradient would only circle around zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pared.ops.lp import widened


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


def exclusive_soft_threshold(
    x: Tensor, threshold: float | Tensor, dim: int | Sequence[int], *, printed: bool = False
) -> Tensor:
    """Return sign(x) · max(|x| - threshold · ‖z‖₁, 0), z being the result: the proximal operator of threshold · ½ ‖x‖₁².

    A group runs over the axes `dim`, and its entries compete: the small ones become exactly 0, the largest never does but
    for rounding.

    Shapes: any; `threshold` >= 0 is a number, or broadcasts against the groups, with size 1 along `dim`.

    Args:
        x: what is shrunk.
        threshold: the penalty's strength times the length of the step.
        dim: the axes of a group.
        printed: take ‖x‖₁ for ‖z‖₁, as it is in print. That is not the proximal operator, but what its equation gives
            when z = x is put in once: it shrinks too much, and groups with no entry above threshold · ‖x‖₁ are gone.

    Source: differentiable sparsification (arXiv 1910.03201), related work, where the printed form is an erratum. The exact
    one is by the group's conditions of optimality: with s₁ >= s₂ >= … its sizes, ‖z‖₁ = max over k of
    (s₁ + … + s_k) / (1 + k · threshold), which holds as long as s_k is above its threshold, and falls from there on.
    """
    if x.numel() == 0:
        return x.clone()
    wide = widened(x)
    norm = torch.linalg.vector_norm(wide, 1, dim, keepdim=True) if printed else _shrunk_norm(wide, threshold, dim)
    return soft_threshold(wide, threshold * norm).to(x.dtype)


def _shrunk_norm(x: Tensor, threshold: float | Tensor, dim: int | Sequence[int]) -> Tensor:
    """Return ‖z‖₁ of each group, with size 1 along `dim`."""
    size = x.abs()
    axes = (dim,) if isinstance(dim, int) else tuple(dim)
    inside = {axis % size.ndim for axis in axes}
    shape = [1 if axis in inside else length for axis, length in enumerate(size.shape)]
    groups = size.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes))
    if isinstance(threshold, Tensor):
        threshold = threshold.to(size.dtype).expand(shape).reshape(groups.shape[:-1]).unsqueeze(-1)
    count = torch.arange(1, groups.shape[-1] + 1, device=size.device, dtype=size.dtype)
    sums = groups.sort(-1, descending=True).values.cumsum(-1)
    return (sums / (1.0 + count * threshold)).amax(-1).view(shape)
