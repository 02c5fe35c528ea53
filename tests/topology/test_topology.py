"""How sparsity is spread, how numbers move, and who is dropped and grown."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pared.errors import ConfigError
from pared.topology import Constant, Cosine, Cubic, Linear, Masked, Schedule, spread

SHAPES = st.dictionaries(
    st.sampled_from("abcdef"),
    st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple).filter(lambda shape: math.prod(shape) > 1),
    min_size=1,
)


@given(SHAPES, st.floats(0.0, 0.99), st.sampled_from(["uniform", "er", "erk"]))
def test_zeros_add_up_and_every_layer_keeps_a_weight(shapes: dict[str, tuple[int, ...]], s: float, kind: str) -> None:
    zeros = spread(shapes, s, kind)  # type: ignore[arg-type]
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert zeros.keys() == shapes.keys()
    assert all(0 <= zeros[name] < sizes[name] for name in shapes)
    assert abs(sum(zeros.values()) - s * sum(sizes.values())) <= len(shapes)


def test_a_rule_by_hand() -> None:
    shapes = {"first": (4, 4), "second": (20, 20), "third": (4, 4, 3, 3)}
    assert spread(shapes, 0.9, "uniform", dense=["first"]) == {"first": 0, "second": 360, "third": 130}
    assert spread({"a": (30, 10)}, 0.1) == {"a": 30}
    # 0.3 · 800 weights; raw 1/2, 1/10: of equal shares 0.3 of "wide" is what 1.5 of "narrow" would be, which is full.
    assert spread({"narrow": (4, 4), "wide": (28, 28)}, 0.7, "er") == {"narrow": 0, "wide": 560}
    kernel, plain = (spread({"a": (8, 8, 3, 3), "b": (64, 64)}, 0.5, kind)["a"] for kind in ("erk", "er"))
    assert kernel > plain  # whose kernel counts is larger, so sparser


def test_what_is_out_of_range_is_refused() -> None:
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="sparsity"):
            spread({"a": (2, 2)}, bad)
    with pytest.raises(ConfigError, match="uniform, er, erk"):
        spread({"a": (2, 2)}, 0.5, "even")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="start"):
        Cosine(1.5)


@pytest.mark.parametrize(
    ("schedule", "start", "half", "end"),
    [
        (Constant(0.3), 0.3, 0.3, 0.3),
        (Linear(0.4, 0.2), 0.4, 0.3, 0.2),
        (Cosine(0.3), 0.3, 0.15, 0.0),
        (Cubic(0.0, 0.8), 0.0, 0.7, 0.8),
    ],
)
def test_schedules(schedule: Schedule, start: float, half: float, end: float) -> None:
    assert [schedule.at(done) for done in (0.0, 0.5, 1.0)] == pytest.approx([start, half, end])
    assert [schedule.at(done) for done in (-1.0, 2.0)] == pytest.approx([start, end])


class TestConnections:
    @given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 30), st.randoms(use_true_random=False))
    def test_the_best_are_dead_and_most_worth(self, rows: int, columns: int, k: int, random: object) -> None:
        generator = torch.Generator().manual_seed(random.randrange(2**31))  # type: ignore[attr-defined]
        mask = torch.rand(rows, columns, generator=generator) < 0.5
        connections = Masked(nn.Parameter(torch.ones(rows, columns)), mask)
        worth = torch.rand(rows, columns, generator=generator)
        best = connections.best(k, worth)
        dead = (~mask).flatten().nonzero().flatten()
        assert len(best) == min(k, len(dead))
        assert set(best.tolist()) <= set(dead.tolist())
        rest = [worth.flatten()[i] for i in dead.tolist() if i not in best.tolist()]
        assert not len(best) or not rest or worth.flatten()[best].min() >= max(rest)
        each = torch.randint(0, columns + 2, (rows,), generator=generator)
        taken = connections.best(each, worth)
        assert torch.equal(torch.bincount(taken // columns, minlength=rows), torch.minimum(each, (~mask).sum(1)))
        for row in range(rows):
            alone = [int(i) for i in taken if i // columns == row]
            rest = [worth.flatten()[i] for i in dead.tolist() if i // columns == row and i not in alone]
            assert not alone or not rest or worth.flatten()[alone].min() >= max(rest)

    def test_entries_are_numbered_as_in_the_flat_weight_whatever_its_memory(self) -> None:
        weight = nn.Parameter(torch.arange(1.0, 25).view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last))
        connections = Masked(weight)
        some, none = torch.tensor([1, 17]), torch.tensor([], dtype=torch.long)
        connections.change(some, none)
        assert weight.detach().flatten().nonzero().flatten().tolist() == connections.live().tolist()
        assert connections.count == 22
        assert connections.values().tolist() == [v for v in range(1, 25) if v not in (2, 18)]
        carry = connections.change(none, some[1:], 0.5)
        assert weight.detach().flatten()[17] == 0.5
        past = carry(torch.ones_like(weight), 0.25)
        assert past.flatten()[17] == 0.25
        assert past.sum() == 23.25
        assert connections.entries(weight < 4).tolist() == [0, 2, 17]
        assert (connections.rows, connections.columns) == (2, 12)
