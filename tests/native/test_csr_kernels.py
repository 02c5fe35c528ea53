"""The compiled kernels against torch's own and plain dense products, for every instruction set of this processor."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pared.errors import ConfigError
from pared.native import csr as native
from pared.native import disabled, library
from pared.native.loading import INSTRUCTIONS
from pared.ops import Pattern, csr_torch

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built")

ISAS = range(library().isa + 1 if library() else 0)  # pyright: ignore[reportOptionalMemberAccess]
DTYPES = st.sampled_from([torch.float32, torch.float64])


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pattern_of(seed: int, rows: int, columns: int, density: float) -> Pattern:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    if seed % 2:  # an empty row and an empty column
        mask[seed % rows] = False
        mask[:, seed % columns] = False
    return Pattern.from_mask(mask)


def check(pattern: Pattern, batch: int, dtype: torch.dtype, isa: int = -1) -> None:
    values, bias = draw(1, pattern.count, dtype=dtype), draw(2, pattern.rows, dtype=dtype)
    x, dy = draw(3, pattern.columns, batch, dtype=dtype), draw(4, pattern.rows, batch, dtype=dtype)
    dense = pattern.to_dense(values)
    crow, col, _, crow_t, col_t, perm = pattern.operands()
    dots = (dy @ x.t()).flatten()[pattern.entries()]
    back, dotted = native.backward(crow_t, col_t, perm, values, x, dy, isa=isa)
    tolerance: dict[str, Any] = (
        {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    )
    for got, twin, expected in (
        (
            native.product(crow, col, None, values, bias, x, isa=isa),
            csr_torch.product(crow, col, None, values, bias, x),
            dense @ x + bias.unsqueeze(1),
        ),
        (
            native.product(crow_t, col_t, perm, values, None, dy, isa=isa),
            csr_torch.product(crow_t, col_t, perm, values, None, dy),
            dense.t() @ dy,
        ),
        (native.dots(crow, col, None, dy, x, isa=isa), csr_torch.dots(crow, col, None, dy, x), dots),
        (native.dots(crow_t, col_t, perm, x, dy, isa=isa), csr_torch.dots(crow_t, col_t, perm, x, dy), dots),
        (back, back, dense.t() @ dy),
        (dotted, dotted, dots),
    ):
        torch.testing.assert_close(got, expected, **tolerance)
        torch.testing.assert_close(twin, expected, **tolerance)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 40), st.integers(0, 300), st.floats(0.0, 1.0), DTYPES)
def test_products_and_dots_are_those_of_the_dense_matrix(
    isa: int, seed: int, rows: int, columns: int, batch: int, density: float, dtype: torch.dtype
) -> None:
    check(pattern_of(seed, rows, columns, density), batch, dtype, isa)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
@given(st.integers(0, 99), st.integers(1, 300), st.booleans(), st.booleans(), st.floats(0.0, 1.0), DTYPES)
def test_a_stack_is_its_layers_one_after_the_other(
    isa: int, seed: int, batch: int, by_rows: bool, biased: bool, density: float, dtype: torch.dtype
) -> None:
    sizes = [1 + (seed * k) % 37 for k in range(1, 3 + seed % 3)]
    x = draw(seed, batch, sizes[0], dtype=dtype).t() if by_rows else draw(seed, sizes[0], batch, dtype=dtype)
    layers, expected = [], x
    for number, (inner, rows) in enumerate(pairwise(sizes)):
        pattern = pattern_of(seed + number, rows, inner, density)
        values, bias = draw(1, pattern.count, dtype=dtype), draw(2, rows, dtype=dtype) if biased else None
        relu = bool((seed >> number) & 1)
        layers.append((pattern.crow, pattern.col, values, bias, relu))
        plain = native.product(pattern.crow, pattern.col, None, values, bias, expected.contiguous(), isa=isa)
        cut = native.product(pattern.crow, pattern.col, None, values, bias, expected.contiguous(), relu=True, isa=isa)
        assert torch.equal(cut, plain.relu())
        expected = cut if relu else plain
    assert torch.equal(native.stack(layers, x, isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
def test_a_matrix_without_columns_gives_the_bias(isa: int) -> None:
    crow, none, bias = torch.zeros(4, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), draw(0, 3)
    with ThreadPoolExecutor(1) as fresh:  # a thread that has no scratch yet
        for batch in (1, 3, 400):
            got = fresh.submit(native.product, crow, none, None, draw(0, 0), bias, draw(0, 0, batch), isa=isa).result()
            assert torch.equal(got, bias.unsqueeze(1).expand(3, batch))
            assert not len(fresh.submit(native.dots, crow, none, None, draw(0, 3, batch), draw(0, 0, batch)).result())


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
def test_relu_of_blocks_of_the_cache_is_that_of_the_whole_and_lets_nan_through(isa: int) -> None:
    pattern, x = pattern_of(1, 40, 5000, 0.1), draw(3, 5000, 130)
    values, bias = draw(1, pattern.count), draw(2, 40)
    bias[7] = torch.nan
    plain = native.product(pattern.crow, pattern.col, None, values, bias, x, isa=isa)
    cut = native.product(pattern.crow, pattern.col, None, values, bias, x, relu=True, isa=isa)
    torch.testing.assert_close(cut, plain.relu(), rtol=0, atol=0, equal_nan=True)
    assert cut[7].isnan().all()


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
def test_rows_of_very_different_lengths(isa: int) -> None:
    lengths = (torch.arange(600) * 7919) % 1500  # sorted together in lots, shorter and longer ones apart
    mask = torch.arange(1500) < lengths.unsqueeze(1)
    for batch in (16, 40, 140):
        check(Pattern.from_mask(mask), batch, torch.float32, isa)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
@pytest.mark.parametrize(("rows", "columns", "batch"), [(60, 5000, 130), (5000, 60, 300), (700, 2600, 523)])
def test_matrices_larger_than_a_block_of_the_cache(isa: int, rows: int, columns: int, batch: int) -> None:
    check(pattern_of(1, rows, columns, 0.05), batch, torch.float32, isa)


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    pattern = pattern_of(3, 300, 2300, 0.2)
    values, x, dy = (draw(5, n, *b, dtype=dtype) for n, b in ((pattern.count, ()), (2300, (150,)), (300, (150,))))
    crow, col, _, crow_t, col_t, perm = pattern.operands()
    found = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        found.append(
            (
                native.product(crow, col, None, values, None, x),
                native.dots(crow, col, None, dy, x),
                *native.backward(crow_t, col_t, perm, values, x, dy),
            )
        )
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_nothing_reaches_a_pointer_that_a_kernel_does_not_take() -> None:
    pattern = pattern_of(0, 4, 5, 0.5)
    crow, col, _, _, _, perm = pattern.operands()
    values, x, bias, held = draw(1, pattern.count), draw(2, 5, 3), draw(3, 4), draw(4, 4, 3)
    wrong: dict[str, tuple[Any, ...]] = {
        "int32": (crow.long(), col, None, values, bias, x),
        "perm": (crow, col, perm[:-1], values, bias, x),
        "values": (crow, col, None, values[:-1], bias, x),
        "values must": (crow, col, None, values.double(), bias, x),
        "bias": (crow, col, None, values, bias[:-1], x),
        "float32 or float64": (crow, col, None, values, bias, x.half()),
        "contiguous": (crow, col, None, values, bias, draw(2, 3, 5).t()),
        "x \\(features, batch\\)": (crow, col, None, values, bias, x[0]),
        "crow must ascend": (crow[:-1], col, None, values, None, x),
    }
    for match, arguments in wrong.items():
        with pytest.raises(ConfigError, match=match):
            native.product(*arguments)
    with pytest.raises(ConfigError, match="crow must ascend"):
        native.product(crow.flip(0), col, None, values, None, x)
    with pytest.raises(ConfigError, match="held"):
        native.dots(crow, col, None, held[:-1], x)
    with pytest.raises(ConfigError, match="held"):
        native.backward(crow, col, None, values, held[:, :-1], x)
    with disabled(), pytest.raises(ConfigError, match="not there"):
        native.product(crow, col, None, values, bias, x)
    layer = crow, col, values, bias, True
    for match, layers in {
        "values": [(crow, col, values[:-1], bias, True)],
        "bias": [(crow, col, values, bias[:-1], True)],
        "in 0 to 4 or 3": [
            layer,
            (crow, col, values, bias, False),
        ],  # the second takes 4 features, and has a fifth column
        "crow must ascend": [(crow.flip(0), col, values, bias, True)],
    }.items():
        with pytest.raises(ConfigError, match=match):
            native.stack(layers, x)


def broken(index: Tensor, place: int, number: int) -> Tensor:
    index = index.clone()
    index[place] = number
    return index


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("rows", [7, 3000])
def test_indices_outside_are_refused_before_they_are_followed(isa: int, batch: int, rows: int) -> None:
    pattern = Pattern.random(rows, 90, 0.5, torch.Generator().manual_seed(0))
    crow, col, _, crow_t, col_t, perm = pattern.operands()
    values, x, dy = draw(1, pattern.count), draw(2, 90, batch), draw(3, rows, batch)
    ends = 0, 1, pattern.count // 2, pattern.count - 1
    for wrong in (broken(col, place, number) for place in ends for number in (-1, 90, 2**31 - 1, -(2**31))):
        with pytest.raises(ConfigError, match="ascend in 0 to 89"):
            native.product(crow, wrong, None, values, None, x, isa=isa)
        with pytest.raises(ConfigError, match="ascend in 0 to 89"):
            native.dots(crow, wrong, None, dy, x, isa=isa)
    for wrong in (broken(perm, place, number) for place in ends for number in (-1, pattern.count, 2**31 - 1)):
        with pytest.raises(ConfigError, match=f"perm must lie in 0 to {pattern.count - 1}"):
            native.backward(crow_t, col_t, wrong, values, x, dy, isa=isa)
    with pytest.raises(
        ConfigError, match="must ascend"
    ):  # one block of the cache is left for another only when they do
        native.product(crow, broken(col, 1, int(col[0])), None, values, None, x, isa=isa)
    assert native.product(crow[-1:] * 0, col[:0], None, values[:0], None, x, isa=isa).shape == (0, batch)
