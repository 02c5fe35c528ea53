import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pared.nn import Select, Switch


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_switch_scales_the_axis_it_is_told(shape: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    layer = Switch(shape[dim], dim=dim, init="normal", generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = (x.movedim(dim, -1) * layer.theta).movedim(-1, dim)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "dim"), [((3, 1), -1), ((3, 5), -1), ((4, 3), 1), ((4,), 1), ((), -1)])
def test_switch_never_broadcasts_over_another_number_of_channels(shape: tuple[int, ...], dim: int) -> None:
    with pytest.raises(ValueError, match="expected 4 channels on axis"):
        Switch(4, dim=dim)(torch.ones(shape))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_grouped_switch_is_the_ungrouped_one_with_repeated_factors(sizes: list[int], data: st.DataObject) -> None:
    layer = Switch(sum(sizes), sizes=sizes, init="normal", generator=torch.Generator().manual_seed(0))
    dead = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    layer.alive[list(dead)] = False
    plain = [j for j, size in enumerate(sizes) for _ in range(size)]
    assert torch.equal(layer.factors(), layer.theta[plain])
    assert layer.live_channels().tolist() == [c for c, j in enumerate(plain) if j not in dead]


def test_reset_brings_back_to_life_and_draws_the_same_again() -> None:
    layer = Switch(6, init="uniform", generator=torch.Generator().manual_seed(5))
    first = layer.theta.detach().clone()
    layer.alive.fill_(False)
    layer.reset_parameters(torch.Generator().manual_seed(5))
    assert torch.equal(layer.theta, first)
    assert bool(layer.alive.all())


def test_what_is_saved_and_said() -> None:
    assert set(Switch(3, sizes=[1, 2]).state_dict()) == {"theta", "alive", "sizes"}
    assert set(Select(3).state_dict()) == {"index"}
    assert Switch(3, sizes=[1, 2]).extra_repr() == "3, dim=-1, factors=2"
    assert Select(3).extra_repr() == "3 of 3"
    assert [p.shape for p in nn.Sequential(Select(3), Switch(3)).parameters()] == [(3,)]


@pytest.mark.parametrize("sizes", [None, [1, 3]])
def test_meta_and_dtype_reach_every_tensor(sizes: list[int] | None) -> None:
    layer = Switch(4, sizes=sizes, device="meta", dtype=torch.float64)
    assert all(t.is_meta for t in (*layer.parameters(), *layer.buffers()))
    assert layer(torch.ones(2, 4, device="meta", dtype=torch.float64)).dtype == torch.float64
