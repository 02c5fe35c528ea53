"""Heads of attention leave at every size, however the forward pass writes their number down."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pared
from pared.surgery import leaves_of

Parts = Callable[[Any, Tensor], list[Tensor]]


def counted(m: Any, x: Tensor) -> list[Tensor]:
    """As in timm, the width read from the projection."""
    y = m.qkv(x)
    rows, places, width = y.shape
    return list(y.reshape(rows, places, 3, m.num_heads, width // 3 // m.num_heads).permute(2, 0, 3, 1, 4).unbind(0))


def chunked(m: Any, x: Tensor) -> list[Tensor]:
    return [y.view(*y.shape[:2], m.num_heads, -1).transpose(1, 2) for y in m.qkv(x).chunk(3, -1)]


def split(m: Any, x: Tensor) -> list[Tensor]:
    parts = m.qkv(x).split(m.width, dim=-1)
    return [y.view(*y.shape[:2], m.num_heads, m.head_dim).transpose(1, 2) for y in parts]


def unflattened(m: Any, x: Tensor) -> list[Tensor]:
    return list(m.qkv(x).unflatten(-1, (3, m.num_heads, -1)).permute(2, 0, 3, 1, 4))


def by_size(m: Any, x: Tensor) -> list[Tensor]:
    """The number of heads is not read at all."""
    return list(m.qkv(x).view(*x.shape[:2], 3, -1, m.head_dim).permute(2, 0, 3, 1, 4))


def heads_last(m: Any, x: Tensor) -> list[Tensor]:
    """What einops makes of "b n (d k h) -> k b h n d"."""
    y = m.qkv(x)
    return list(y.reshape(*y.shape[:2], y.shape[-1] // 3 // m.num_heads, 3, m.num_heads).permute(3, 0, 4, 1, 2))


def in_batch(m: Any, x: Tensor) -> list[Tensor]:
    """As in fairseq: heads are part of the batch."""
    rows, places, _ = x.shape
    parts = [y.transpose(0, 1).reshape(places, rows * m.num_heads, m.head_dim) for y in m.qkv(x).chunk(3, -1)]
    return [y.transpose(0, 1) for y in parts]


class Attention(nn.Module):
    def __init__(self, parts: Parts, heads: int, size: int, fused: bool) -> None:
        super().__init__()
        self.parts, self.fused = parts, fused
        self.num_heads, self.head_dim, self.width = heads, size, heads * size
        self.qkv, self.out = nn.Linear(6, 3 * heads * size), nn.Linear(heads * size, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(self, x)
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        if y.ndim == 3:
            y = y.transpose(0, 1).reshape(x.shape[1], x.shape[0], -1).transpose(0, 1)
            return self.out(y)
        return self.out(y.transpose(1, 2).flatten(2))


FORMS = [counted, chunked, split, unflattened, by_size, heads_last, in_batch]
SIZES = [(parts, 4, 6, place % 2 > 0) for place, parts in enumerate(FORMS)]
SIZES += [(counted, 8, 64, True), (chunked, 3, 5, False), (by_size, 2, 7, True)]


@pytest.mark.parametrize(("parts", "heads", "size", "fused"), SIZES)
def test_heads_leave_at_every_size(parts: Parts, heads: int, size: int, fused: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(heads)
        net = Attention(parts, heads, size, fused).double().eval()
        x = torch.randn(2, 5, 6, dtype=torch.double)
    graph = pared.graph(net, x)
    width = leaves_of(graph.program.tensors["out.weight"].dims[1])
    (space,) = (s for s in graph.spaces if s.size == heads and any(s.dim is leaf for leaf in width))
    assert space.fixed is None, str(graph)
    small = copy.deepcopy(net)
    with torch.no_grad():
        small.out.weight.view(6, heads, size)[:, 1] = 0
    before = small(x)
    pared.remove(small, {space.name: [1]}, graph=graph)
    torch.testing.assert_close(small(x), before)
    assert (small.num_heads, small.head_dim) == (heads - 1, size)
    assert small.out.weight.shape == (6, (heads - 1) * size)
