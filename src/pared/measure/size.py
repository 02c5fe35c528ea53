"""What a network stores and computes."""

from torch import nn


def parameters(model: nn.Module) -> int:
    """Return how many numbers the model's parameters hold."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Sequential) -> int:
    """Return the multiply-accumulates for one row through the linear layers."""
    return sum(layer.weight.numel() for layer in model if isinstance(layer, nn.Linear))


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
