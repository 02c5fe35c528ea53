import pytest
import torch
from torch import nn

from pared.nn import BatchMajor, SparseLinear


def sparse(inputs: int, outputs: int) -> SparseLinear:
    generator = torch.Generator().manual_seed(0)
    return SparseLinear(inputs, outputs, density=0.5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("lead", [(), (4,), (1,), (0,), (2, 3)])
def test_it_changes_the_layout_each_way_and_nothing_else(lead: tuple[int, ...]) -> None:
    first, activation, turn = sparse(6, 8), nn.Tanh(), BatchMajor()
    x = torch.randn(*lead, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    hidden = activation(first(x))
    seen: list[torch.Tensor] = []
    hidden.register_hook(seen.append)
    y = turn(hidden)
    assert y.is_contiguous()
    assert torch.equal(y, hidden)
    weight = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (y * weight).sum().backward()
    assert torch.equal(seen[0], weight)
    if len(lead) == 1:
        assert seen[0].t().is_contiguous()
    if x.numel():
        assert torch.autograd.gradcheck(lambda z: turn(first(z)), (x,))
        assert torch.autograd.gradgradcheck(lambda z: turn(activation(first(z))), (x,))


@pytest.mark.parametrize("lead", [(), (4,), (1,), (0,), (2, 3)])
def test_what_follows_may_change_its_answer_in_place(lead: tuple[int, ...]) -> None:
    first = sparse(6, 8)
    x = torch.randn(*lead, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = nn.Sequential(first, BatchMajor(), nn.ReLU(inplace=True))(x)
    got = torch.autograd.grad(y.square().sum(), list(first.parameters()))
    expected = torch.autograd.grad(first(x).relu().square().sum(), list(first.parameters()))
    torch.testing.assert_close(got, expected)
    before = x.clone()
    nn.Sequential(BatchMajor(), nn.ReLU(inplace=True))(x)  # nor does that change what it was made of
    assert torch.equal(x, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_compiles_and_exports() -> None:
    model = nn.Sequential(sparse(6, 8), nn.ReLU(), BatchMajor(), nn.Linear(8, 2, dtype=torch.float64))
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).sum(), list(model.parameters()))
    for one, other in zip(got, torch.autograd.grad(model(x).sum(), list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.jvp calls it
def test_it_carries_derivatives_forward() -> None:
    first, x = sparse(6, 8), torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert first.bias is not None
    got = torch.func.jvp(nn.Sequential(first, BatchMajor()), (x,), (x,))
    torch.testing.assert_close(got, (first(x), first(x) - first.bias))


def test_functions_of_torch_look_through_it() -> None:
    turn, x = BatchMajor(), torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.func.vmap(turn)(x), x)
    assert torch.equal(torch.func.grad(lambda z: turn(z).square().sum())(x), 2 * x)
    z = x.requires_grad_()
    many = torch.randn(3, 5, 6, dtype=torch.float64)
    (got,) = torch.autograd.grad(turn(z.sin()), z, many, is_grads_batched=True)
    torch.testing.assert_close(got, many * z.cos())
