"""Connections of a sparse layer: gradients of the dead in any blocks, and draws among them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pared.nn import SparseConv2d, SparseLinear
from pared.topology import Compressed, Masked


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_gradients_of_the_dead_are_those_of_the_whole_weight_in_any_blocks(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(7, 11, generator=generator) < 0.4
    mask[3] = False
    layer = SparseLinear(11, 7, mask=mask, generator=generator, dtype=torch.float64)
    whole = nn.Parameter(layer.to_dense().detach())
    connections, twin = Compressed(layer, block), Masked(whole, mask)
    connections.watch()
    for _ in range(2):  # gradients of two batches add up
        x = torch.randn(5, 11, generator=generator, dtype=torch.float64)
        layer(x).square().sum().backward()
        F.linear(x, whole, layer.bias).square().sum().backward()
    twin.keep_gradient()
    everything = torch.arange(77)
    assert torch.allclose(connections.gradient_at(everything), twin.gradient_at(everything), rtol=0, atol=1e-12)
    also = connections.live()[::3]
    for k in (0, 1, 9, 77):
        assert torch.equal(connections.steepest(k, also), twin.steepest(k, also))
    each = torch.tensor([0, 1, 2, 3, 4, 50, 1])
    assert torch.equal(connections.steepest(each, also), twin.steepest(each, also))
    connections.forget_gradient()
    assert not layer.witness.pairs
    assert not layer.witness.on


@pytest.mark.parametrize("block", [1, 200, 1 << 20])
def test_gradients_of_the_dead_in_convolutions_are_those_of_the_whole_weight(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(7, 3, 3, 2, generator=generator) < 0.4
    layer = SparseConv2d(3, 7, (3, 2), (1, 2), 1, mask=mask, generator=generator, dtype=torch.float64)
    whole = layer.to_conv()
    connections, twin = Compressed(layer, block), Masked(whole.get_parameter("weight"), mask)
    assert (connections.shape, connections.rows, connections.columns) == (twin.shape, twin.rows, twin.columns)
    connections.watch()
    for size in (5, 6):
        x = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64)
        for net in (layer, whole):
            net(x).square().sum().backward()
    twin.keep_gradient()
    connections.keep_gradient()
    everything = torch.arange(mask.numel())
    assert torch.allclose(connections.gradient_at(everything), twin.gradient_at(everything), rtol=0, atol=1e-11)
    assert torch.equal(connections.steepest(9, connections.live()[::3]), twin.steepest(9, connections.live()[::3]))


@pytest.mark.parametrize("k", [0, 1, 10, 46, 200])
def test_any_dead_entry_may_be_drawn_and_none_twice(k: int) -> None:
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask.view(-1)[::5] = True
    connections = Compressed(SparseLinear(9, 6, mask=mask))
    live = connections.live()
    also = live[:3]
    free = set(range(54)) - set(live.tolist()) | set(also.tolist())
    hits = torch.zeros(54)
    for seed in range(200):
        found = connections.anywhere(k, torch.Generator().manual_seed(seed), also).tolist()
        assert len(set(found)) == len(found) == min(k, len(free))
        assert set(found) <= free
        hits[found] += 1
    if k == 10:  # 200 draws of 10 of 46: 43 each, give or take six
        assert hits[sorted(free)].min() > 15
        assert hits.max() < 75
