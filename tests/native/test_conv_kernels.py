"""The compiled convolutions against dense ones, for every instruction set of this processor."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pared.errors import ConfigError
from pared.native import conv as native
from pared.native import disabled, library
from pared.native.loading import INSTRUCTIONS
from pared.ops import Pattern
from pared.ops.window import Window

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built")

ISAS = range(library().isa + 1 if library() else 0)  # pyright: ignore[reportOptionalMemberAccess]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def check(x: Tensor, out: int, window: Window, density: float, isa: int = -1) -> None:
    channels, dtype = x.shape[1], x.dtype
    pattern = Pattern.random(out, channels * window.positions, density, torch.Generator().manual_seed(len(x)))
    crow, col, across = pattern.crow, pattern.col, (pattern.crow_t, pattern.col_t, pattern.perm)
    values, bias = draw(1, pattern.count, dtype=dtype), draw(2, out, dtype=dtype)
    weight = pattern.to_dense(values).view(out, channels, *window.kernel).requires_grad_()
    given_x = x.clone().requires_grad_()
    padded = F.pad(given_x, (window.left, window.right, window.top, window.bottom))
    expected = F.conv2d(padded, weight, bias, window.stride, dilation=window.dilation)
    dy = draw(3, *expected.shape, dtype=dtype)
    expected.backward(dy)
    assert weight.grad is not None
    dots = weight.grad.flatten()[pattern.entries()]
    dx, found = native.backward(*across, values, dy, x, window, isa=isa)
    exact: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    for got, right in (
        (native.product(crow, col, values, bias, x, window, isa=isa), expected),
        (dx, given_x.grad),
        (found, dots),
        (native.backward(*across, values, dy, x, window, dots=False, isa=isa)[0], given_x.grad),
        (native.backward(*across, None, dy, x, window, isa=isa)[1], dots),
    ):
        torch.testing.assert_close(got, right, **exact)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Window, tuple[int, int]]:
    """Return a window, uneven padding and all, and a size of images that it fits."""
    pairs, few = st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 4)
    window = Window(draw(pairs), draw(pairs), draw(few), draw(few), draw(few), draw(few), draw(pairs))
    low = [1 - n for n in window.out_size(0, 0)]
    least = [max(1, n * s) for n, s in zip(low, window.stride, strict=True)]
    return window, (draw(st.integers(least[0], least[0] + 20)), draw(st.integers(least[1], least[1] + 20)))


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
@given(
    windows(),
    st.integers(0, 9),
    st.integers(1, 6),
    st.integers(1, 6),
    st.floats(0.0, 1.0),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_answers_are_those_of_dense_convolutions(
    isa: int, of: tuple[Window, tuple[int, int]], n: int, channels: int, out: int, density: float, dtype: torch.dtype
) -> None:
    check(draw(0, n, channels, *of[1], dtype=dtype), out, of[0], density, isa)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
@pytest.mark.parametrize(
    ("n", "channels", "size", "window"),
    [
        (2, 700, (40, 33), Window((3, 3), (1, 1), 1, 1, 1, 1)),  # a tile is a part of an image
        (40, 30, (7, 7), Window((3, 3), (1, 1), 1, 1, 1, 1)),  # and here some of many
        (5, 900, (14, 14), Window((1, 1))),
        (3, 200, (29, 31), Window((3, 3), (2, 2), 1, 1, 1, 1)),
    ],
)
def test_images_larger_than_a_tile(isa: int, n: int, channels: int, size: tuple[int, int], window: Window) -> None:
    check(draw(0, n, channels, *size), 9, window, 0.02, isa)


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
def test_results_are_the_same_bits_for_any_number_of_threads() -> None:
    window, x, dy = Window((3, 3), (1, 1), 1, 1, 1, 1), draw(0, 3, 40, 20, 20), draw(1, 3, 30, 20, 20)
    pattern = Pattern.random(30, 360, 0.2, torch.Generator().manual_seed(0))
    crow, col, across = pattern.crow, pattern.col, (pattern.crow_t, pattern.col_t, pattern.perm)
    values = draw(2, pattern.count)
    found = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        found.append(
            (native.product(crow, col, values, None, x, window), *native.backward(*across, values, dy, x, window))
        )
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))  # pyright: ignore[reportArgumentType]


def test_nothing_reaches_a_pointer_that_a_kernel_does_not_take() -> None:
    window = Window((3, 3))
    pattern = Pattern.random(4, 18, 0.5, torch.Generator().manual_seed(0))
    crow, col, across = pattern.crow, pattern.col, (pattern.crow_t, pattern.col_t, pattern.perm)
    values, x, bias, dy = draw(1, pattern.count), draw(2, 3, 2, 6, 5), draw(3, 4), draw(4, 3, 4, 4, 3)
    wrong: dict[str, tuple[Any, ...]] = {
        "int32": (crow.long(), col, values, bias, x, window),
        "values": (crow, col, values[:-1], bias, x, window),
        "values must": (crow, col, values.double(), bias, x, window),
        "bias": (crow, col, values, bias[:-1], x, window),
        "float32 or float64": (crow, col, values, bias, x.half(), window),
        "x must be contiguous": (crow, col, values, bias, x.transpose(2, 3), window),
        "expected images": (crow, col, values, bias, x[0], window),
        "smaller than the kernel": (crow, col, values, bias, x[:, :, :2].contiguous(), window),
        "crow must ascend": (crow[:-1], col, values, None, x, window),
        "columns of a row must ascend in 0 to 8": (crow, col, values, None, x[:, :1].contiguous(), window),
    }
    for match, arguments in wrong.items():
        with pytest.raises(ConfigError, match=match):
            native.product(*arguments)
    backward: dict[str, tuple[Any, ...]] = {
        "dy": (*across, values, dy[:-1], x, window),
        "dy must": (*across, values, dy.transpose(2, 3), x, window),
        r"expected crow \(2 channels": (*across, values, dy, x, Window((3, 2))),
        "in 0 to 2, and perm": (*across, values, dy[:, :3].contiguous(), x, window),
    }
    for match, arguments in backward.items():
        with pytest.raises(ConfigError, match=match):
            native.backward(*arguments)
    with disabled(), pytest.raises(ConfigError, match="not there"):
        native.product(crow, col, values, bias, x, window)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
def test_indices_outside_are_refused_before_they_are_followed(isa: int) -> None:
    window, x, dy = Window((3, 3)), draw(0, 2, 10, 8, 8), draw(1, 2, 20, 6, 6)
    pattern = Pattern.random(20, 90, 0.5, torch.Generator().manual_seed(0))
    crow, col, _, crow_t, col_t, perm = pattern.operands()
    values = draw(2, pattern.count)
    for place in (0, 1, pattern.count // 2, pattern.count - 1):
        for number in (-1, 90, 2**31 - 1, -(2**31)):
            wrong = col.clone()
            wrong[place] = number
            with pytest.raises(ConfigError, match="ascend in 0 to 89"):
                native.product(crow, wrong, values, None, x, window, isa=isa)
        for number in (-1, pattern.count, 2**31 - 1):
            wrong = perm.clone()
            wrong[place] = number
            with pytest.raises(ConfigError, match=f"perm must lie in 0 to {pattern.count - 1}"):
                native.backward(crow_t, col_t, wrong, values, dy, x, window, isa=isa)
    with pytest.raises(ConfigError, match="crow must ascend"):
        native.product(crow.flip(0), col, values, None, x, window, isa=isa)
