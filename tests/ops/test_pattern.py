"""Patterns: what they say of a mask, what they refuse, how one becomes another."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pared.errors import ConfigError
from pared.ops import Pattern


@st.composite
def masks(draw: Any) -> Tensor:
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.rand(rows, columns, generator=generator) < draw(st.floats(0.0, 1.0))


def index(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


@given(masks())
def test_a_pattern_is_its_mask_by_rows_and_by_columns(mask: Tensor) -> None:
    pattern = Pattern.from_mask(mask)
    assert all(t.dtype == torch.int32 for t in pattern.operands() if t is not None)
    assert (pattern.rows, pattern.columns, pattern.count) == (*mask.shape, int(mask.sum()))
    assert torch.equal(pattern.entries(), mask.flatten().nonzero().flatten())
    assert torch.equal(pattern.row_of(), mask.nonzero()[:, 0])
    values = torch.arange(1.0, pattern.count + 1)
    dense = pattern.to_dense(values)
    assert torch.equal(dense[mask], values)
    assert dense[~mask].eq(0).all()
    by_columns = torch.zeros(mask.shape[1], mask.shape[0])
    for c in range(mask.shape[1]):
        own = slice(int(pattern.crow_t[c]), int(pattern.crow_t[c + 1]))
        assert bool((pattern.col_t[own].diff() > 0).all())
        by_columns[c, pattern.col_t[own].long()] = values[pattern.perm[own].long()]
    assert torch.equal(by_columns.t(), dense)


@given(masks(), st.integers(0, 9))
def test_all_ways_to_make_a_pattern_agree(mask: Tensor, seed: int) -> None:
    pattern = Pattern.from_mask(mask)
    entries = pattern.entries()
    shuffled = entries[torch.randperm(len(entries), generator=torch.Generator().manual_seed(seed))]
    for other in (
        Pattern.from_entries(shuffled, *mask.shape),
        Pattern.from_csr(pattern.crow.long(), pattern.col, mask.shape[1]),
        Pattern.from_mask(mask.double()),
        copy.deepcopy(pattern),
        pickle.loads(pickle.dumps(pattern)),
        pattern.to("cpu"),
    ):
        assert all(
            torch.equal(a, b) for a, b in zip(pattern.operands(), other.operands(), strict=True) if a is not None
        )


def test_a_pattern_does_not_share_what_it_was_made_of() -> None:
    crow, col = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    pattern = Pattern.from_csr(crow, col, 1)
    col[0] = 9
    assert pattern.col.tolist() == [0]


@given(masks(), st.integers(0, 99))
def test_the_source_takes_values_to_where_they_were(mask: Tensor, seed: int) -> None:
    new = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    before, after = Pattern.from_mask(mask), Pattern.from_mask(new)
    source = after.source(before)
    dense = before.to_dense(torch.arange(1.0, before.count + 1))
    values = torch.where(source < 0, 0.0, source + 1.0)
    assert torch.equal(after.to_dense(values.float()), dense * new)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.0, 1.0), st.integers(0, 9))
def test_a_random_pattern_has_the_density_and_follows_its_generator(
    rows: int, columns: int, density: float, seed: int
) -> None:
    first, again = (Pattern.random(rows, columns, density, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert first.count == round(density * rows * columns)
    assert torch.equal(first.entries(), again.entries())


@pytest.mark.parametrize("density", [0.1, 0.6])
def test_every_entry_is_as_likely_as_any_other(density: float) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = sum(
        Pattern.random(5, 8, density, generator).to_dense(torch.ones(round(40 * density))) for _ in range(2000)
    )
    assert isinstance(counts, Tensor)
    spread = (2000 * density * (1 - density)) ** 0.5
    assert float((counts - 2000 * density).abs().max()) < 4.5 * spread


def test_memory_grows_with_the_entries_only() -> None:
    pattern = Pattern.random(1_000_000, 1_000_000, 1e-8, torch.Generator().manual_seed(0))  # 1e12 places
    assert pattern.count == 10_000
    assert int(pattern.entries().max()) > 2**32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.uint64])
def test_indices_of_every_integer_type_are_checked_alike(dtype: torch.dtype) -> None:
    crow, col = index(0, 3, 4).to(dtype), index(0, 1, 3, 2).to(dtype)
    assert Pattern.from_csr(crow, col, 4).entries().tolist() == [0, 1, 3, 6]
    with pytest.raises(ConfigError, match="columns of a row"):
        Pattern.from_csr(crow, index(3, 1, 0, 2).to(dtype), 4)
    with pytest.raises(ConfigError, match="ascend from 0"):
        Pattern.from_csr(index(0, 3, 1, 2).to(dtype), index(0, 1).to(dtype), 4)
    with pytest.raises(ConfigError, match="columns must lie"):
        Pattern.from_csr(crow, col, 3)


def test_what_is_no_pattern_is_refused() -> None:
    refused: list[tuple[str, Any]] = [
        ("twice", lambda: Pattern.from_entries(index(1, 1), 2, 2)),
        ("0 to 3", lambda: Pattern.from_entries(index(4), 2, 2)),
        ("0 to 3", lambda: Pattern.from_entries(index(-1), 2, 2)),
        ("matrix", lambda: Pattern.from_mask(torch.ones(3))),
        ("at most|in 1 to", lambda: Pattern.from_entries(index(), 2**31, 1)),
        ("at most|in 1 to", lambda: Pattern.from_entries(index(), 1, 2**31)),
        ("at most", lambda: Pattern.from_csr(index(0, 0), index(), 0)),
        ("in 1 to", lambda: Pattern.from_mask(torch.ones(0, 3))),
        ("density", lambda: Pattern.random(2, 2, 1.1)),
        ("integers", lambda: Pattern.from_csr(torch.zeros(2), index(), 1)),
        ("integers", lambda: Pattern.from_csr(index(0), index(), 1)),
        ("integers", lambda: Pattern.from_csr(index(0, 1).bool(), index(0), 1)),
        ("integers", lambda: Pattern.from_csr(index(0, 1), index(0).bool(), 1)),
        ("ascend from 0", lambda: Pattern.from_csr(index(1, 1), index(0), 1)),
        ("ascend from 0", lambda: Pattern.from_csr(index(0, 2), index(0), 1)),
        ("ascend from 0", lambda: Pattern.from_csr(index(0, 2, 1, 2), index(0, 1), 2)),
        ("columns must lie", lambda: Pattern.from_csr(index(0, 1), index(1), 1)),
        ("columns must lie", lambda: Pattern.from_csr(index(0, 1), index(-1), 1)),
        ("columns of a row", lambda: Pattern.from_csr(index(0, 2), index(1, 0), 2)),
        ("columns of a row", lambda: Pattern.from_csr(index(0, 0, 2, 2), index(1, 1), 2)),
        ("one size", lambda: Pattern.random(2, 2, 0.5).source(Pattern.random(2, 3, 0.5))),
    ]
    for match, make in refused:
        with pytest.raises(ConfigError, match=match):
            make()
