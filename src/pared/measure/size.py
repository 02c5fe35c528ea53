"""What a network stores and computes."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pared.surgery.trace import Example, arguments, evaluating


def parameters(model: nn.Module) -> int:
    """Return how many numbers the model's parameters hold."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, example: Example) -> int:
    """Return the multiply-accumulates of one forward pass on `example`, in evaluation, as torch's own counter has them.

    Matrix products, convolutions and attention count, also where only a custom module knows of them; half of its FLOPs.
    """
    args, kwargs = arguments(example)
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return counter.get_total_flops() // 2


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
