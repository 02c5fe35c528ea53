"""The diagram of mean ranks: who is joined with whom, in which order, and that all of it can be read."""

import math
import re
from itertools import combinations, pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.errors import ConfigError
from pared.measure.statistics import Ranks, ranks
from pared.report.html import standalone
from pared.report.ranking import alike, critical_difference

SVG = "{http://www.w3.org/2000/svg}"
FOUR = Ranks((3.17, 1.83, 2.70, 2.30), 0.0004, 0.86)


def drawn(figure: str) -> dict[str, list[ElementTree.Element]]:
    found: dict[str, list[ElementTree.Element]] = {}
    for element in ElementTree.fromstring(figure).iter():
        found.setdefault(element.tag.removeprefix(SVG), []).append(element)
    return found


def test_methods_stand_in_order_with_ranks_and_bars() -> None:
    figure = critical_difference(["Static", "LpSS", "RigL", "SET"], FOUR, title="Sparse methods")
    root = ElementTree.fromstring(figure)
    assert (root.get("role"), root.get("aria-label")) == ("img", "Sparse methods")
    labels = {"".join(t.itertext()): t for t in drawn(figure)["text"] if t.find(f"{SVG}tspan") is not None}
    assert list(labels) == ["LpSS 1.83", "SET 2.30", "RigL 2.70", "Static 3.17"]
    assert [label.get("text-anchor") for label in labels.values()] == ["end", "end", "start", "start"]
    at = [
        float(re.findall(r"M([\d.]+)", p.get("d") or "")[0]) for p in drawn(figure)["path"] if p.get("class") == "axis"
    ]
    assert at[1:] == sorted(at[1:])  # the first is the ruler
    assert len([p for p in drawn(figure)["path"] if p.get("class") == "alike"]) == 3
    told = drawn(figure)["desc"][0].text or ""
    assert told == (
        "Mean ranks, best first: LpSS 1.83, SET 2.30, RigL 2.70, Static 3.17. Critical difference 0.86; Friedman's p "
        "below 0.001. Groups that do not differ: LpSS, SET; SET, RigL; RigL, Static."
    )


def test_what_ranks_returns_is_what_is_drawn() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 5)) + np.arange(5)
    found = ranks(scores)
    figure = critical_difference([f"m{i}" for i in range(5)], found)
    assert f"critical difference {found.critical_difference:.2f}" in figure
    names = re.findall(r">(m\d) <tspan", figure)
    assert names == [f"m{i}" for i in np.argsort(found.mean)]


@given(st.lists(st.floats(1, 8), min_size=2, max_size=8).map(sorted), st.floats(0, 8))
def test_groups_are_all_that_are_alike_and_no_larger_ones_are(mean: list[float], difference: float) -> None:
    groups = [set(range(start, end + 1)) for start, end in alike(mean, difference)]
    for one, other in combinations(range(len(mean)), 2):
        assert any({one, other} <= group for group in groups) == (mean[other] - mean[one] < difference)
    assert not any(a <= b or b <= a for a, b in combinations(groups, 2))
    assert all(len(group) > 1 for group in groups)


def test_two_differ_from_the_critical_difference_on() -> None:
    assert alike([1.0, 2.0, 3.0], 1.0) == []
    assert alike([1.0, 2.0, 3.0], 1.001) == [(0, 1), (1, 2)]
    assert alike([1.0, 2.0, 3.0], 9.0) == [(0, 2)]
    assert alike([2.0, 2.0, 2.0], 0.5) == [(0, 2)]


def test_ties_keep_their_order_and_stand_apart() -> None:
    figure = critical_difference(["c", "a", "b"], Ranks((2.0, 2.0, 2.0), 1.0, 2.34))
    assert re.findall(r">(\w) <tspan", figure) == ["c", "a", "b"]
    assert "Groups that do not differ: c, a, b." in figure
    assert "Friedman's p 1.000" in figure
    assert len(drawn(figure)["path"]) == 4  # one bar, three methods; a ruler would be longer than the axis


@given(st.lists(st.floats(1, 12), min_size=2, max_size=12), st.floats(0.1, 5))
def test_labels_and_bars_do_not_touch(mean: list[float], difference: float) -> None:
    figure = critical_difference([f"method {i}" for i in range(len(mean))], Ranks(tuple(mean), 0.01, difference))
    root, found = ElementTree.fromstring(figure), drawn(figure)
    height = float((root.get("viewBox") or "").split()[3])
    for anchor in ("start", "end"):
        own = [t for t in found["text"] if t.find(f"{SVG}tspan") is not None and t.get("text-anchor") == anchor]
        rows = sorted(float(t.get("y") or "nan") for t in own)
        assert all(b - a >= 15 for a, b in pairwise(rows))
        assert all(70 < row < height - 4 for row in rows)
    bars: dict[str, list[tuple[float, float]]] = {}
    for path in found["path"]:
        if path.get("class") == "alike":
            ((a, y, b),) = re.findall(r"^M([-\d.]+) (\d+)H([-\d.]+)$", path.get("d") or "")
            bars.setdefault(y, []).append((float(a), float(b)))
    for row in bars.values():
        assert all(b[0] - a[1] > 4 for a, b in pairwise(sorted(row)))


def test_names_are_escaped_and_long_ones_are_told_in_full() -> None:
    long = "a name that is much too long for its side"
    figure = critical_difference(["<b>&", long], Ranks((1.2, 1.8), 0.5, 0.3), title='"<i>"')
    root = ElementTree.fromstring(figure)
    assert root.get("aria-label") == '"<i>"'
    texts = ["".join(t.itertext()) for t in drawn(figure)["text"]]
    assert "<b>& 1.20" in texts
    assert "a name that is much too… 1.80" in texts
    assert long in (drawn(figure)["desc"][0].text or "")
    assert "Groups that do not differ: none" in figure


def test_it_stands_alone_with_the_reports_style() -> None:
    alone = standalone(critical_difference(["a", "b"], Ranks((1.2, 1.8), 0.5, 1.0)))
    ElementTree.fromstring(alone)
    assert alone.count("<style>") == 1
    assert not re.findall(r"url\(|@import|<script|<image|href", alone)


@pytest.mark.parametrize(
    ("names", "mean", "difference"),
    [(["a"], (1.0,), 1.0), (["a", "b"], (1.0, 2.0, 3.0), 1.0), (["a", "b"], (1.0, math.nan), 1.0), (["a", "b"], (1.0, 2.0), math.inf)],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(names: list[str], mean: tuple[float, ...], difference: float) -> None:
    with pytest.raises(ConfigError, match="expected"):
        critical_difference(names, Ranks(mean, 0.5, difference))
