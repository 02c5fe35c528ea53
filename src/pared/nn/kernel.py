"""Switches on the positions of a kernel: which taps of a convolution earn their keep."""

from typing import Any

import torch
from torch import Tensor, nn

from pared.nn.switch import Init, Switch


class KernelSwitch(Switch):
    """A switch on the positions of a kernel, row by row; its channels are positions."""


class SwitchedConv1d(nn.Conv1d):
    """`nn.Conv1d` with a switch on its kernel's positions."""

    kernel: KernelSwitch

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the switched kernel."""
        return self._conv_forward(input, _scaled(self.weight, self.kernel), self.bias)


class SwitchedConv2d(nn.Conv2d):
    """`nn.Conv2d` with a switch on its kernel's positions."""

    kernel: KernelSwitch

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the switched kernel."""
        return self._conv_forward(input, _scaled(self.weight, self.kernel), self.bias)


class SwitchedConv3d(nn.Conv3d):
    """`nn.Conv3d` with a switch on its kernel's positions."""

    kernel: KernelSwitch

    def forward(self, input: Tensor) -> Tensor:
        """Convolve with the switched kernel."""
        return self._conv_forward(input, _scaled(self.weight, self.kernel), self.bias)


#: A convolution of any dimension, plain or switched; their common base has no public name.
Conv = Any
_SWITCHED: dict[type[nn.Module], Conv] = {
    nn.Conv1d: SwitchedConv1d,
    nn.Conv2d: SwitchedConv2d,
    nn.Conv3d: SwitchedConv3d,
}
#: Convolutions whose kernel is switched.
SWITCHED_CONVOLUTIONS = (SwitchedConv1d, SwitchedConv2d, SwitchedConv3d)
_PADDED = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}


def switch_kernels(
    model: nn.Module, *, init: Init = "ones", generator: torch.Generator | None = None
) -> dict[str, KernelSwitch]:
    """Put a switch on the kernel of every convolution of `model` with more than one position, in place, by its name.

    The convolution keeps its name, parameters, flags and hooks; transposed convolutions and classes of a user's own are
    left as they are.

    Source: ShrinkNets (arXiv 1806.03723), section 6, which proposes it.
    """
    found: dict[str, KernelSwitch] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # computed by a parametrization, it is none
        if type(module) in _SWITCHED and weight is not None and weight[0, 0].numel() > 1:
            conv: Conv = module
            place = {"device": conv.weight.device, "dtype": conv.weight.dtype}
            conv.__class__ = _SWITCHED[type(module)]
            conv.kernel = KernelSwitch(conv.weight[0, 0].numel(), init=init, generator=generator, **place)
            conv.kernel.train(conv.training)
            found[f"{name}.kernel"] = conv.kernel
    return found


@torch.no_grad()
def crop_kernels(model: nn.Module) -> nn.Module:
    """Return `model`, each switched kernel scaled by its factors and cut down to the positions between live ones.

    What lies outside of them is all 0, so the padding takes its place: exact. Where that is uneven, a padding layer and
    the convolution come in a `nn.Sequential`. Kernels whose padding is no zeros, or given as a word, keep their size.
    """
    made: dict[int, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, SWITCHED_CONVOLUTIONS):
            path, _, key = name.rpartition(".")
            plain = made.setdefault(id(module), _plain(module) if id(module) not in made else module)
            if not name:
                return plain
            model.get_submodule(path)._modules[key] = plain
    return model


def _scaled(weight: Tensor, switch: KernelSwitch) -> Tensor:
    return switch(weight.flatten(2)).view_as(weight)


def _plain(conv: Conv) -> nn.Module:
    weight, live = _scaled(conv.weight, conv.kernel), conv.kernel.theta.ne(0).view(conv.weight.shape[2:])
    padding, around = conv.padding, None
    if conv.padding_mode == "zeros" and not isinstance(padding, str):
        spans = [_span(live, axis) for axis in range(live.ndim)]
        weight = weight[(..., *(slice(first, last) for first, last in spans))]
        sides = zip(spans, live.shape, padding, conv.dilation, strict=True)
        pads = [(pad - step * first, pad - step * (size - last)) for (first, last), size, pad, step in sides]
        even = all(before == after >= 0 for before, after in pads)
        padding = tuple(before if even else 0 for before, _ in pads)
        if not even:
            around = _PADDED[live.ndim](tuple(side for pair in reversed(pads) for side in pair), 0.0)
    kind = next(plain for plain, switched in _SWITCHED.items() if isinstance(conv, switched))
    made: Conv = kind(
        conv.in_channels,
        conv.out_channels,
        tuple(weight.shape[2:]),
        stride=conv.stride,
        padding=padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    made.weight, made.bias = nn.Parameter(weight.clone(), requires_grad=conv.weight.requires_grad), conv.bias
    return (made if around is None else nn.Sequential(around, made)).train(conv.training)


def _span(live: Tensor, axis: int) -> tuple[int, int]:
    """Where the live positions along an axis begin and end."""
    used = live.movedim(axis, 0).reshape(live.shape[axis], -1).any(1).nonzero().flatten()
    return int(used[0]), int(used[-1]) + 1
