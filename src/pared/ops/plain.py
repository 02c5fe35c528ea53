"""Whether a kernel may be called past torch's dispatcher, which costs more than a small product."""

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

#: Torch is going over a batch, as in `torch.autograd.grad(..., is_grads_batched=True)`, whose tensors have no memory.
_BATCHED = torch._C._parse_dispatch_key("VmapMode")


def looked_on() -> bool:
    """Whether a transform of `torch.func`, or one that is carried forward, looks on; `torch.compile` knows the latter."""
    return forwarding() or (not torch.compiler.is_compiling() and peek_interpreter_stack() is not None)


def forwarding() -> bool:
    """Whether derivatives are carried forward, for which torch has no public question; `torch.compile` knows this one."""
    return forward_ad._current_level >= 0


def transformed() -> bool:
    """Whether derivatives are carried forward or taken by `torch.func`, as in `grad`, which custom operators cannot do."""
    if forwarding() or torch.compiler.is_compiling():
        return forwarding()
    return peek_interpreter_stack() is not None and any(
        level.key() == TransformType.Grad for level in get_interpreter_stack() or ()
    )


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
        or torch._C._dispatch_tls_is_dispatch_key_included(_BATCHED)  # pyright: ignore[reportArgumentType]
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
