"""How long each layer of a network takes."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pared.surgery import Example
from pared.surgery.trace import arguments, evaluating


def layer_latencies_us(model: nn.Module, example: Example, *, repeats: int = 5) -> dict[str, float]:
    """Return the microseconds that each layer of `model` without layers of its own takes in one forward pass.

    In evaluation, on as many threads as torch has now; the least of `repeats` passes, calls of one layer added up.
    """
    args, kwargs = arguments(example)
    names = {module: name for name, module in model.named_modules() if not any(module.children())}
    began: dict[nn.Module, float] = {}
    taken: dict[str, float] = {}
    best: dict[str, float] = {}

    def before(module: nn.Module, _: object) -> None:
        _settle(args)
        began[module] = time.perf_counter()

    def after(module: nn.Module, _: object, __: object) -> None:
        _settle(args)
        name = names[module]
        taken[name] = taken.get(name, 0.0) + (time.perf_counter() - began[module]) * 1e6

    handles = [module.register_forward_pre_hook(before) for module in names]
    handles += [module.register_forward_hook(after) for module in names]
    try:
        with evaluating(model), torch.no_grad():
            for _ in range(repeats + 1):
                taken.clear()
                model(*args, **kwargs)
                best = {name: min(time_, best.get(name, math.inf)) for name, time_ in taken.items()}
    finally:
        for handle in handles:
            handle.remove()
    return best


def _settle(args: Sequence[object]) -> None:
    """Wait for an accelerator to finish what it was given."""
    if any(isinstance(arg, Tensor) and arg.device.type != "cpu" for arg in args):
        torch.accelerator.synchronize()
