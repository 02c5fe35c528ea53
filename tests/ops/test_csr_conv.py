"""The operators of a sparse convolution: derivatives against numbers and torch's checks, by both kinds of kernels."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from pared.errors import ConfigError
from pared.nn import SparseConv2d


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer_of(*sizes: Any, density: float = 0.5) -> SparseConv2d:
    return SparseConv2d(*sizes, density=density, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("window", [(1, 1, 0), (3, 1, 1), (2, 2, 1), ((1, 3), (2, 1), (0, 2), (1, 2))])
def test_derivatives_are_right_twice_over(window: Any) -> None:
    layer = layer_of(2, 3, *window, density=0.4)
    x = draw(0, 2, 2, 5, 4).requires_grad_()
    assert layer.bias is not None

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    inputs = x, layer.values.detach().requires_grad_(), layer.bias.detach().requires_grad_()
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
    for some in range(3):  # only what is asked for
        alone = [t.detach().clone().requires_grad_(i == some) for i, t in enumerate(inputs)]
        assert torch.autograd.gradcheck(call, alone)
        assert torch.autograd.gradgradcheck(call, alone)


@pytest.mark.usefixtures("path")
def test_the_operators_keep_the_contract_of_torch() -> None:
    layer = layer_of(3, 4, 3, 2, 1)
    operands, window = layer.pattern.operands(), layer.window.numbers()
    x, values, bias = (draw(n, *shape).requires_grad_() for n, shape in enumerate(((2, 3, 6, 5), (54,), (4,))))
    dy = draw(4, 2, 4, 3, 3).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    ops = torch.ops.pared
    for op, arguments in (
        (ops.csr_conv, (x, values, bias, window)),
        (ops.csr_conv_dots, (dy, x, window)),
        (ops.csr_conv_backward, (dy, x, values, window)),
        (ops.csr_conv_transposed, (dy, values, 6, 5, window)),
    ):
        opcheck(op, (*arguments, *operands), test_utils=tests)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.jvp calls it
@pytest.mark.usefixtures("path")
def test_derivatives_are_carried_forward_too() -> None:
    layer = layer_of(2, 3, 3, 2, 1)
    dense, x, t = layer.to_conv(), draw(0, 2, 2, 5, 4), draw(1, 2, 2, 5, 4)
    for got, expected in zip(torch.func.jvp(layer, (x,), (t,)), torch.func.jvp(dense, (x,), (t,)), strict=True):
        torch.testing.assert_close(got, expected)
    got, expected = (torch.func.grad(lambda a, f=f: f(a).square().sum())(x) for f in (layer, dense))
    torch.testing.assert_close(got, expected)
    with pytest.raises(ConfigError, match="carry no derivatives forward"):
        torch.func.jvp(
            lambda a: torch.ops.pared.csr_conv(
                a, layer.values, None, layer.window.numbers(), *layer.pattern.operands()
            ),
            (x,),
            (t,),
        )
