"""The compiled transpose is torch's, for every instruction set of this processor and any number of threads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pared.errors import ConfigError
from pared.native import disabled, library
from pared.native.loading import INSTRUCTIONS
from pared.native.turn import turn
from pared.ops.turn import turned

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built")

ISAS = range(library().isa + 1 if library() else 0)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: INSTRUCTIONS[isa])
@given(st.integers(0, 70), st.integers(0, 70), st.sampled_from([torch.float32, torch.float64]))
def test_it_is_torchs(isa: int, rows: int, columns: int, dtype: torch.dtype) -> None:
    x = torch.arange(rows * columns, dtype=dtype).view(rows, columns)
    assert torch.equal(turn(x, isa=isa), x.t())


def test_it_is_the_same_for_any_number_of_threads() -> None:
    x, before = torch.randn(1030, 1050, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(turn(x), x.t())
    finally:
        torch.set_num_threads(before)


def test_nothing_reaches_a_pointer_that_the_kernel_does_not_take() -> None:
    x = torch.ones(3, 4)
    for wrong in (x[0], x.half(), x.int(), x.t(), x.to("meta")):
        with pytest.raises(ConfigError, match="contiguous float32 or float64 matrix on the CPU"):
            turn(wrong)
    with disabled(), pytest.raises(ConfigError, match="not there"):
        turn(x)


def test_any_matrix_is_turned_and_what_lies_so_already_is_not_copied() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with disabled():
        assert torch.equal(turned(x.detach()), x.t())
    for given_ in (x, x[:, ::2], x.detach().half(), x.detach().to(torch.complex64).conj().imag):
        assert torch.equal(turned(given_), given_.t())
        assert turned(given_).is_contiguous()
    turned(x).sum().backward()
    assert x.grad is not None
    lies = x.detach().t()
    assert turned(lies).data_ptr() == lies.data_ptr()
