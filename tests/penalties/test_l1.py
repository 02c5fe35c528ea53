import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pared.penalties import l1

ROWS = st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=4)


@given(ROWS)
def test_l1_is_the_plain_sum_over_all_entries(rows: list[list[float]]) -> None:
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    assert l1(tensors).item() == pytest.approx(sum(abs(v) for row in rows for v in row), abs=1e-9)


def test_its_gradient_is_the_sign_and_zero_at_zero() -> None:
    x = torch.tensor([2.0, 0.0, -0.5], requires_grad=True)
    l1([x]).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, -1.0]
