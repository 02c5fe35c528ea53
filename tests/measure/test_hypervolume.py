"""The area of a front."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.measure.hypervolume import hypervolume

POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12)


@given(POINTS)
def test_it_counts_the_cells_that_some_point_dominates(points: list[tuple[int, int]]) -> None:
    cells = {
        (cost, score)
        for cost in range(-1, 6)
        for score in range(2, 9)
        if any(p <= cost and s > score for p, s in points)
    }
    negative = {(c, s) for c, s in cells if c < 0}
    assert hypervolume(points, (6, 2)) == pytest.approx(len(cells - negative))


def test_what_is_beyond_the_reference_counts_for_nothing() -> None:
    assert hypervolume([(3.0, 0.5), (0.0, 0.1)], (3.0, 0.1)) == 0.0
    assert hypervolume([], (1.0, 0.0)) == 0.0
