"""Whether a kernel may be called past torch's dispatcher, which costs more than a small product."""

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter


def plain(*tensors: Tensor | None) -> bool:
    """Whether nothing is wanted of these tensors, which are on the CPU, but to compute with the numbers in their memory.

    None is to be derived by, backward or forward; no mode, transform or tracer of torch looks on; and none is of a subclass,
    or stands for other numbers than those that it points to.
    """
    if torch.compiler.is_compiling():  # first, as torch.compile follows what comes next
        return False
    watched = (
        forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or peek_interpreter_stack() is not None
        or torch._C._is_tracing()
    )
    if watched:
        return False
    derived = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        kind = type(tensor)
        if (
            not (kind is Tensor or kind is Parameter)
            or not tensor.is_cpu
            or (derived and tensor.requires_grad)
            or tensor.is_neg()
            or tensor._is_zerotensor()
        ):
            return False
    return True
