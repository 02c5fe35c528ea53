"""Kernels are called past torch's dispatcher only where nothing but their answer is wanted."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from pared.nn import BatchMajor, SparseConv2d, SparseLinear
from pared.ops.plain import plain


class Own(Tensor):
    pass


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    layers = [
        SparseLinear(6, 8, density=0.5, generator=generator),
        SparseLinear(8, 7, density=0.5, generator=generator),
    ]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], BatchMajor())


def seen() -> list[bool]:
    """What `plain` says inside functions that torch looks into."""
    found: list[bool] = []

    def look(x: Tensor) -> Tensor:
        found.append(plain(x))
        return x * 2

    x = torch.ones(3)
    torch.func.grad(lambda t: look(t).sum())(x)
    torch.func.vmap(look)(x)
    torch.func.functionalize(look)(x)
    make_fx(look)(x)
    make_fx(look, pre_dispatch=True)(x)
    with FakeTensorMode():
        look(torch.ones(3))
    with torch.device("cpu"), FlopCounterMode(display=False):
        look(x)
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_said_where_torch_looks_on() -> None:
    assert not any(seen())
    found: list[bool] = []
    torch.jit.trace(lambda t: (found.append(plain(t)), t * 2)[1], torch.ones(3), check_trace=False)
    assert not found[0]  # what runs after it, to compare, is not traced
    compiled = torch.compile(lambda t: t * 2 if plain(t) else t * 3, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 3.0))


def test_it_is_said_of_tensors() -> None:
    x, weight = torch.ones(3), nn.Parameter(torch.ones(3))
    assert plain(x, None)
    assert not plain(x, weight)
    with torch.no_grad():
        assert plain(x, weight)
        assert not plain(x, x.as_subclass(Own))
        assert not plain(x.to("meta"))
        assert not plain(torch.ones(3, dtype=torch.complex64).conj().imag)
        assert not plain(torch._efficientzerotensor((3,)))  # pyright: ignore[reportPrivateImportUsage]
    with torch.inference_mode():
        assert plain(torch.ones(3), weight)
    assert plain(x)


def test_networks_answer_alike_with_and_without_derivatives() -> None:
    model = network()
    for shape in ((4, 6), (1, 6), (6,), (2, 3, 6), (0, 6), (40, 6)):
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        expected = model(x)
        assert expected.requires_grad
        with torch.no_grad():
            assert torch.equal(model(x), expected)
        with torch.inference_mode():
            got = model(x)
            assert torch.equal(got, expected)
            assert got.is_contiguous()
            assert got.is_inference()


def test_convolutions_answer_alike_and_are_seen_by_tracers() -> None:
    model = SparseConv2d(2, 3, 3, padding=1, density=0.5, generator=torch.Generator().manual_seed(0))
    for shape in ((4, 2, 5, 6), (2, 5, 6), (0, 2, 5, 6)):
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        expected = model(x)
        assert expected.requires_grad
        for inside in (torch.no_grad, torch.inference_mode):
            with inside():
                assert torch.equal(model(x), expected)
                assert "csr_conv" in make_fx(model)(x).code


def test_operators_are_seen_by_tracers_without_derivatives() -> None:
    model, x = network(), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for inside in (torch.no_grad, torch.inference_mode):
        with inside():
            for early in (False, True):
                assert "csr_product" in make_fx(model, pre_dispatch=early)(x).code
    with torch.no_grad():
        assert "csr_product" in torch.export.export(model, (x,)).graph_module.code
