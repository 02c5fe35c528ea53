"""What a network stores and computes."""

import torch
from torch import nn

from pared.measure.mac_counter import MacCounter
from pared.process import LOCK
from pared.surgery.trace import Example, arguments, evaluating


def parameters(model: nn.Module) -> int:
    """Return how many numbers the model's parameters hold."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, example: Example) -> int:
    """Return the multiply-accumulates of one forward pass on `example`, in evaluation.

    Every matrix product, convolution, recurrent layer and attention that runs is counted, whoever calls it: weights that a
    sparse layer lacks are not, nor places of padding left out, nor what is done entry by entry, as biases, norms and
    activations are; a look-up (`nn.Embedding`) is 0. Of attention both products count, over all pairs, masked or not.

    Warns:
        UserWarning: an operator that multiplies, or one of another library, has no formula; it is named, and counts as 0.
    """
    args, kwargs = arguments(example)
    counter = MacCounter()
    with LOCK, evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
        model(*args, **kwargs)
    counter.warn()
    return counter.total


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
