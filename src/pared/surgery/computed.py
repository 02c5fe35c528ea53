"""Tensors that a forward pass has left in modules: torch refuses to copy them."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def made_by_forward(model: nn.Module) -> dict[int, Any]:
    """Return a memo for `copy.deepcopy` by which tensors that a forward pass has left in modules are copied, detached.

    torch refuses to copy these: a masked or normed weight as its hook made it, attention that a module keeps to look at.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        own = [value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")]
        for tensor in _tensors(own, set()):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return memo


def _tensors(item: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, list | tuple | Mapping) and id(item) not in seen:
        seen.add(id(item))
        for part in item.values() if isinstance(item, Mapping) else item:
            yield from _tensors(part, seen)
