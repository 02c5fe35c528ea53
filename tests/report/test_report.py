import copy
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.report.card import fenced, plain, render_card
from pared.report.charts import Series, chart, heatmap, number
from pared.report.html import headline, render_html
from pared.report.reading import RunRecord
from pared.report.table import render_table, rows, sentences, shortened


def point(params: int, score: float, name: str, hidden: tuple[int, ...] = (9, 7)) -> dict[str, Any]:
    return {
        "params": params, "macs": params, "bytes": 4 * params, "inputs": 12, "hidden": list(hidden), "val_score": score,
        "val_loss": 0.1, "test_score": score - 0.01, "latency_us_1": 15.0, "latency_us_256": 20.0 + params / 100, "file": name,
        "epoch": 3, "strength": 0.01, "test_metrics": {"accuracy": score, "r2": score, "rmse": score}, "test_interval": [0.9, 0.99],
    }  # fmt: skip


def record(**changes: Any) -> RunRecord:
    start = point(300_000, 0.97, "front/start.safetensors", (500, 500))
    points = [
        point(9_000, 0.975, "front/00.safetensors"),
        point(700, 0.96, "front/01.safetensors"),
        point(40, 0.8, "front/02.safetensors"),
    ]
    summary = {
        "task": {"kind": "classification", "targets": ["<script>alert(1)</script>"], "classes": ["a", "b"]},
        "metric": "accuracy", "seconds": 12.3, "start": start, "chosen": points[1], "chosen_because": "it is <b>small</b>",
        "test_interval": [0.94, 0.97], "front": points,
        "references": [{**point(31, 0.85, ""), "name": "logistic regression"}, {**point(36_000, 0.97, ""), "name": "histogram gradient boosting"}],
        "columns": [
            {"name": "<img src=x>", "kept": True, "inputs": ["<img src=x>"], "importance": 0.03},
            *({"name": f"column {i} " + "x" * 80, "kept": i % 2 == 0, "inputs": [], "importance": 0.0} for i in range(150)),
        ],
        "seconds_by_phase": {"dense": 3.0, "shrink": 4.0}, "command": "pared fit 'a<b>.csv'", "seed": 0,
        "versions": {"torch": "2"}, "data": {"source": "a<b>.csv", "rows": 100, "train": 60, "validation": 20, "test": 20, "columns": 151, "inputs": 160, "warnings": ["<i>"]},
    }  # fmt: skip
    epochs = [
        {"phase": phase, "epoch": e, "strength": 1e-3 * 1.1**e, "loss": 1 / (e + 1), "val_score": 0.9, "val_loss": 0.3, "inputs": 40 - e, "hidden": [50 - e, 60 - e]}
        for phase in ("dense", "shrink") for e in range(12)
    ]  # fmt: skip
    events = [
        {"phase": "shrink", "epoch": e, "layer": layer, "removed": 1, "left": 3}
        for e in range(5)
        for layer in ("inputs", "hidden 1")
    ]
    summary.update(changes)
    return RunRecord(summary, epochs, events, "[data]\nsource = '<b>'\n")


def regression() -> RunRecord:
    task = {"kind": "regression", "targets": ["u", "v"], "mean": [0], "scale": [1]}
    return record(task=task, metric="rmse")


def one_point() -> RunRecord:
    start = point(300, 0.9, "front/start.safetensors")
    only = point(290, 0.9, "front/00.safetensors", (5,))
    run = record(start=start, front=[only], chosen=only)
    return RunRecord(run.summary, [], [], "")


VARIANTS = {"usual": record, "regression": regression, "one point": one_point}


class Strict(HTMLParser):
    VOID = frozenset({"meta", "br", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS.keys())
class TestEveryReport:
    def test_the_page_is_well_formed_offline_and_escaped(self, make: Any) -> None:
        page = render_html(make())
        parser = Strict()
        parser.feed(page)
        assert parser.stack == []
        assert parser.links == []
        assert not re.findall(r"(?:url\(|@import|<script|<img|<i>|<b>small)", page)
        for figure in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
            assert ElementTree.fromstring(figure).get("aria-label")
        assert page == render_html(make())

    def test_every_point_is_told(self, make: Any) -> None:
        run = make()
        for text in (render_html(run), render_table(run), render_card(run)):
            for p in run.summary["front"]:
                assert f"{p['params']:,}" in text
        assert [row.kind for row in rows(run)].count("chosen") == 1


def test_the_headline_tells_gain_and_no_gain() -> None:
    assert headline(record()).startswith("700 parameters instead of 300,000: test accuracy 95.0 % instead of 96.0 %")
    assert "No smaller network held up" in headline(one_point())


def test_end_labels_do_not_cover_each_other() -> None:
    series = [Series(f"s{i}", [(0, 1.0), (1, 1.0 + i / 1000)], "blue") for i in range(6)]
    svg = chart("t", series, x_label="x", y_label="y")
    ends = sorted(float(y) for y in re.findall(r'x="640" y="([\d.]+)"', svg))
    assert len(ends) == 6
    assert all(b - a >= 14.9 for a, b in pairwise(ends))


def test_a_heatmap_has_a_cell_for_each_number_that_counts() -> None:
    wide, lone = [[1.0, -0.5, 0.0], [0.001, 0.5, 9.0]], [[float("nan")], [-1.0]]
    figure = heatmap("a <title>", [[("p=1", wide), ("p=2", lone)], [("p=3", [])]], cell=(10, 5))
    drawn = {
        (path.get("fill"), path.get("fill-opacity")): path.get("d") or ""
        for path in ElementTree.fromstring(figure).iter("{http://www.w3.org/2000/svg}path")
    }
    assert drawn["var(--blue)", "1"] == "M0 18h10v5h-10zM20 23h10v5h-10z"
    assert drawn["var(--blue)", "0.5"].startswith("M10 23")
    assert drawn["var(--orange)", "0.5"].startswith("M10 18")
    assert drawn["var(--orange)", "1"] == "M42 23h10v5h-10z"
    assert len(drawn) == 4
    assert all(f">p={k}</text>" in figure for k in (1, 2, 3))


def test_numbers_and_long_lists_are_short() -> None:
    assert [number(v) for v in (1_500, 2_000_000, 0.0301, 12)] == ["1.5k", "2M", "0.0301", "12"]
    assert shortened([str(i) for i in range(30)]).endswith("11 and 18 more")
    run = record()
    assert run.summary == copy.deepcopy(run.summary)


@given(st.text(max_size=60))
def test_what_comes_from_the_data_is_no_markdown(text: str) -> None:
    shown = plain(text)
    assert "\n" not in shown
    assert re.sub(r"\\([^\w\s]|_)", r"\1", shown) == " ".join(text.split())
    assert not re.search(r"[`*_<>|\[\]]", re.sub(r"\\.", "", shown))
    fence, *body, last = fenced(text).split("\n")
    assert fence == last
    assert fence not in "\n".join(body)


def test_a_baseline_that_was_stopped_early_is_said_to_be() -> None:
    run = record()
    run.summary["references"][0]["limited"] = "at most 15 of 300 iterations, for 1,000 classes"
    assert "The logistic regression was stopped early: at most 15 of 300 iterations, for 1,000 classes." in sentences(
        run
    )
