"""Heavy-ball SGD for what is not on a sphere."""

# torch writes its own optimizers with _foreach functions.
# pyright: reportPrivateImportUsage=false

from typing import Any

import torch
from torch import Tensor


def descend(group: dict[str, Any], held: list[tuple[Tensor, Tensor, dict[str, Any]]]) -> None:
    """Take a step of SGD with the options of `group`, the same as `torch.optim.SGD` takes with dampening 0.

    `held` is (parameter, gradient, state) each; with momentum a state has a `momentum_buffer`, zeros before the first
    step.
    """
    foreach = group["foreach"]
    if foreach is None:
        foreach = all(p.is_cuda for p, _, _ in held)
    (_descend_together if foreach else _descend_one_by_one)(group, held)


def _descend_one_by_one(group: dict[str, Any], held: list[tuple[Tensor, Tensor, dict[str, Any]]]) -> None:
    momentum, lr = group["momentum"], group["lr"]
    for p, grad, state in held:
        grad = -grad if group["maximize"] else grad
        if group["weight_decay"]:
            grad = grad.add(p, alpha=group["weight_decay"])
        if momentum:
            buffer = state["momentum_buffer"].mul_(momentum).add_(grad)
            grad = grad.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        if isinstance(lr, Tensor):
            p.sub_(grad * lr)
        else:
            p.add_(grad, alpha=-lr)


def _descend_together(group: dict[str, Any], held: list[tuple[Tensor, Tensor, dict[str, Any]]]) -> None:
    momentum, lr = group["momentum"], group["lr"]
    params, grads = [p for p, _, _ in held], [grad for _, grad, _ in held]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if group["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    if momentum:
        buffers = [state["momentum_buffer"] for _, _, state in held]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        grads = list(torch._foreach_add(grads, buffers, alpha=momentum)) if group["nesterov"] else buffers
    if isinstance(lr, Tensor):
        torch._foreach_sub_(params, list(torch._foreach_mul(grads, lr)))
    else:
        torch._foreach_add_(params, grads, alpha=-lr)
