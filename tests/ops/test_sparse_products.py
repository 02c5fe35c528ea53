"""The sparse linear map: derivatives of both kinds of kernels against numbers, a dense twin and torch's checks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import opcheck

from pared.errors import ConfigError
from pared.ops import Pattern, sparse_linear


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def inputs(pattern: Pattern, batch: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    made = draw(1, pattern.columns, batch, dtype=dtype), draw(2, pattern.count, dtype=dtype)
    return [t.requires_grad_() for t in (*made, draw(3, pattern.rows, dtype=dtype))]


PATTERNS = [
    pytest.param(torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]]), id="empty row and column"),
    pytest.param(torch.tensor([[1, 0, 1, 1, 1]]), id="one row"),
    pytest.param(torch.tensor([[1], [0], [1]]), id="one column"),
    pytest.param(torch.zeros(3, 2), id="nothing"),
    pytest.param(torch.ones(3, 4), id="everything"),
]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("mask", PATTERNS)
def test_derivatives_are_right_twice_over(mask: Tensor, batch: int) -> None:
    pattern = Pattern.from_mask(mask)
    x, values, bias = inputs(pattern, batch)
    assert torch.autograd.gradcheck(lambda a, v, b: sparse_linear(a, v, pattern, b), (x, values, bias))
    assert torch.autograd.gradgradcheck(lambda a, v, b: sparse_linear(a, v, pattern, b), (x, values, bias))


@pytest.mark.usefixtures("path")
@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 20), st.integers(0, 70), st.floats(0.0, 1.0))
def test_gradients_are_those_of_a_masked_dense_twin(
    seed: int, rows: int, columns: int, batch: int, density: float
) -> None:
    pattern = Pattern.random(rows, columns, density, torch.Generator().manual_seed(seed))
    x, values, bias = inputs(pattern, batch)
    dy = draw(4, rows, batch)
    mask = pattern.to_dense(torch.ones_like(values))
    weight = pattern.to_dense(values.detach()).requires_grad_()
    twin = (weight * mask) @ x + bias.unsqueeze(1)
    expected = torch.autograd.grad(twin, (x, weight, bias), dy)
    y = sparse_linear(x, values, pattern, bias)
    got = torch.autograd.grad(y, (x, values, bias), dy)
    torch.testing.assert_close(y, twin, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pattern.to_dense(got[1]), expected[1] * mask, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got[2], expected[2], rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_only_what_is_asked_for_is_derived(needed: tuple[int, ...]) -> None:
    pattern = Pattern.random(6, 7, 0.4, torch.Generator().manual_seed(0))
    all_of_them = inputs(pattern, 4)
    x, values, bias = all_of_them
    expected = torch.autograd.grad(sparse_linear(x, values, pattern, bias).sin().sum(), all_of_them)
    some = [t.detach().clone().requires_grad_(n in needed) for n, t in enumerate(all_of_them)]
    sparse_linear(some[0], some[1], pattern, some[2]).sin().sum().backward()
    for number, tensor in enumerate(some):
        if number in needed:
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, expected[number])
        else:
            assert tensor.grad is None


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operators_keep_the_contract_of_torch(dtype: torch.dtype) -> None:
    pattern = Pattern.random(5, 6, 0.5, torch.Generator().manual_seed(0))
    operands: tuple[Any, ...] = pattern.operands()
    x, values, bias = inputs(pattern, 3, dtype)
    dy = draw(5, 5, 3, dtype=dtype).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    ops = torch.ops.pared
    for op, arguments in (
        (ops.csr_product, (x, values, bias)),
        (ops.csr_dots, (dy, x)),
        (ops.csr_backward, (dy, x, values)),
    ):
        opcheck(op, (*arguments, *operands), test_utils=tests)


@pytest.mark.usefixtures("path")
def test_what_is_not_contiguous_is_copied() -> None:
    pattern = Pattern.random(5, 6, 0.5, torch.Generator().manual_seed(0))
    x, values, bias = inputs(pattern, 4)
    spread = values.detach().repeat_interleave(2)[::2]
    y = sparse_linear(x.t().contiguous().t(), spread, pattern, bias)
    assert torch.equal(y, sparse_linear(x, values, pattern, bias))
    dy = draw(9, 4, 5).t()
    twice = [
        torch.autograd.grad(sparse_linear(x, values, pattern, bias), (x, values), g) for g in (dy, dy.contiguous())
    ]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))


@pytest.mark.usefixtures("path")
def test_it_compiles_whole() -> None:
    pattern = Pattern.random(5, 6, 0.5, torch.Generator().manual_seed(0))
    x, values, bias = inputs(pattern, 4)
    compiled = torch.compile(
        lambda a, v, b: sparse_linear(a, v, pattern, b).relu(), fullgraph=True, backend="aot_eager"
    )
    got = torch.autograd.grad(compiled(x, values, bias).sum(), (x, values, bias))
    expected = torch.autograd.grad(sparse_linear(x, values, pattern, bias).relu().sum(), (x, values, bias))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.jvp calls it
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("mask", PATTERNS)
def test_derivatives_are_carried_forward_too(mask: Tensor) -> None:
    pattern = Pattern.from_mask(mask)
    primals = x, values, bias = [t.detach() for t in inputs(pattern, 3)]
    tangents = tuple(draw(7 + n, *t.shape) for n, t in enumerate(primals))

    def sparse(a: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return sparse_linear(a, v, pattern, b).sin()

    def twin(a: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return (pattern.to_dense(v) @ a + b.unsqueeze(1)).sin()

    def gradients(function: Any) -> Any:
        return torch.func.grad(lambda *all_of_them: function(*all_of_them).square().sum(), argnums=(0, 1, 2))

    for got, expected in (
        (torch.func.jvp(sparse, (*primals,), tangents), torch.func.jvp(twin, (*primals,), tangents)),
        (torch.func.jacfwd(sparse)(*primals), torch.func.jacfwd(twin)(*primals)),
        (
            torch.func.jvp(gradients(sparse), (*primals,), tangents),  # forward over backward
            torch.func.jvp(gradients(twin), (*primals,), tangents),
        ),
    ):
        torch.testing.assert_close(got, expected)
    loss = sparse_linear(x.requires_grad_(), values.requires_grad_(), pattern, bias).square().sum()
    with forward_ad.dual_level():  # only what is derived backward carries a derivative
        g = forward_ad.make_dual(torch.ones((), dtype=x.dtype), torch.full((), 2.0, dtype=x.dtype))
        for dual in torch.autograd.grad(loss, (x, values), g):
            unpacked = forward_ad.unpack_dual(dual)
            torch.testing.assert_close(unpacked.tangent, 2 * unpacked.primal)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.hessian calls it
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("mask", PATTERNS)
def test_functions_of_torch_derive_it(mask: Tensor) -> None:
    pattern = Pattern.from_mask(mask)
    primals = x, *weights = [t.detach() for t in inputs(pattern, 3)]

    def sparse(a: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return sparse_linear(a, v, pattern, b).sin().square().sum()

    def twin(a: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return (pattern.to_dense(v) @ a + b.unsqueeze(1)).sin().square().sum()

    def one_by_one(function: Any) -> Any:  # a gradient per sample
        return torch.func.vmap(torch.func.grad(function, argnums=(0, 1, 2)), (1, None, None))

    def all_at_once(function: Any) -> Any:
        return torch.func.grad(
            lambda a, *rest: torch.func.vmap(function, (1, None, None))(a, *rest).sum(), argnums=(0, 1)
        )

    torch.testing.assert_close(torch.func.grad(sparse, (0, 1, 2))(*primals), torch.func.grad(twin, (0, 1, 2))(*primals))
    torch.testing.assert_close(torch.func.hessian(sparse)(*primals), torch.func.hessian(twin)(*primals))
    for form in one_by_one, all_at_once:
        torch.testing.assert_close(form(sparse)(x.unsqueeze(2), *weights), form(twin)(x.unsqueeze(2), *weights))


def test_a_batch_of_gradients_comes_back_through_what_learns_nothing() -> None:
    pattern = Pattern.random(5, 6, 0.5, torch.Generator().manual_seed(0))
    x, values, bias = inputs(pattern, 4)
    values, x, many = values.detach(), x.detach().requires_grad_(), draw(9, 3, 5, 4)
    (got,) = torch.autograd.grad(sparse_linear(x, values, pattern, bias), x, many, is_grads_batched=True)
    torch.testing.assert_close(got, pattern.to_dense(values).t() @ many)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.jvp calls it
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_derivatives_that_are_carried_forward_compile(backend: str) -> None:
    pattern = Pattern.random(5, 6, 0.5, torch.Generator().manual_seed(0))
    x, values, bias = (t.detach() for t in inputs(pattern, 4))
    compiled = torch.compile(lambda a, t: torch.func.jvp(inner, (a,), (t,)), backend=backend)
    again = torch.compile(lambda a: sparse_linear(a, values, pattern, bias), backend=backend)

    def inner(a: Tensor) -> Tensor:
        return sparse_linear(a, values, pattern, bias)

    expected = inner(x), pattern.to_dense(values) @ x
    torch.testing.assert_close(again(x), expected[0])
    torch.testing.assert_close(compiled(x, x), expected)
    torch.testing.assert_close(torch.func.jvp(again, (x,), (x,)), expected)
    torch.testing.assert_close(again(x), expected[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.jvp calls it
def test_an_operator_does_not_lose_derivatives_that_are_carried_forward() -> None:
    pattern = Pattern.random(5, 6, 0.5, torch.Generator().manual_seed(0))
    x, values, bias = (t.detach() for t in inputs(pattern, 4))
    with pytest.raises(ConfigError, match="call pared.ops.sparse_linear"):
        torch.func.jvp(lambda a: torch.ops.pared.csr_product(a, values, bias, *pattern.operands()), (x,), (x,))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("place", [0, 7, -1])
@pytest.mark.parametrize("number", [-1, 10**9])
@pytest.mark.parametrize("part", ["col", "col_t", "perm", "crow", "crow_t"])
def test_patterns_made_by_hand_do_not_lead_outside(part: str, number: int, place: int) -> None:
    pattern = Pattern.random(9, 8, 0.4, torch.Generator().manual_seed(0))
    x, values, bias = inputs(pattern, 20)
    index = getattr(pattern, part).clone()
    index[place] = number
    wrong = replace(pattern, **{part: index})
    with pytest.raises(ConfigError, match="must"):
        sparse_linear(x, values, wrong, bias).sum().backward()


def test_what_has_no_kernel_is_refused() -> None:
    pattern = Pattern.random(5, 6, 0.5, torch.Generator().manual_seed(0))
    x, values, bias = (t.detach() for t in inputs(pattern, 4))
    refused: list[tuple[str, tuple[Any, ...]]] = [
        ("features first", (x.t(), values, pattern, bias)),
        ("features first", (x[:, 0], values, pattern, bias)),
        ("float32 or float64", (x.half(), values.half(), pattern, bias.half())),
        ("x like the values", (x.float(), values, pattern, bias)),
        ("bias like the values", (x, values, pattern, bias.float())),
        ("expected values", (x, values[1:], pattern, bias)),
        ("expected values", (x, values, pattern, bias[1:])),
        ("pattern where", (x.to("meta"), values.to("meta"), pattern, None)),
    ]
    for match, arguments in refused:
        with pytest.raises(ConfigError, match=match):
            sparse_linear(*arguments)
