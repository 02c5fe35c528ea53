"""The published tables of class rates: what the paper's text says of them, and the files that they come from."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import helpers
from helpers import write_uci


@pytest.fixture(autouse=True)
def _processor_as_it_was() -> Iterator[None]:
    """Scripts set what holds for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def published() -> ModuleType:
    return helpers.script("class_rates/published.py")


def test_every_table_has_the_45_sets(published: ModuleType) -> None:
    assert len(published.TABLE_1) == 45
    assert list(published.TABLE_1) == list(published.TABLE_2) == list(published.TABLE_3) == sorted(published.TABLE_1)
    for table in (published.TABLE_2, published.TABLE_3):
        assert all(len(row) == 6 and all(0 <= number <= 100 for number in row) for row in table.values())


def test_what_is_counted_is_what_the_text_says(published: ModuleType) -> None:
    told = {"selu": (21, 10, 14), "relu": (23, 11, 11), "tanh": (15, 21, 9)}
    assert {activation: tuple(published.tally(activation)) for activation in told} == told


def test_networks_narrow_or_do_not(published: ModuleType) -> None:
    assert published.TABLE_1["abalone"].widths(3) == (512, 269, 142, 75, 39, 21, 11, 6)
    assert published.TABLE_1["car"].widths(4) == (512,) * 4


def test_networks_are_the_best_of_the_search_they_were_taken_from(
    published: ModuleType, public: Callable[[str], Path]
) -> None:
    folder = public("snn-hyperparameters") / "UCI"
    for name, shape in published.TABLE_1.items():
        with (folder / f"{name}_result_selu_final.csv").open(newline="") as file:
            best = next(csv.DictReader(file))
        form = {"cone": "conic", "rect": "rectangular"}[best["layerForm"]]
        assert (int(best["nlayers"]), int(best["nstart"]), form, float(best["dR"])) == shape, name


@pytest.mark.slow
def test_accuracies_are_of_the_second_half_of_conxuntos(published: ModuleType, public: Callable[[str], Path]) -> None:
    """No other part of the files has a number of rows of which all of table 2 are shares."""
    strange = []
    for name, row in published.TABLE_2.items():
        lines = (public("uci") / name / "conxuntos.dat").read_text().splitlines()
        rows = len(lines[1].split())
        strange += [(name, one) for one in row if all(abs(100 * k / rows - one) > 0.005001 for k in near(one, rows))]
    assert strange == [("waveform", 86.10), ("waveform-noise", 84.50)]  # half a row of 2500: misprints


@pytest.fixture
def script() -> ModuleType:
    return helpers.script("class_rates/tables.py")


def test_small_runs_give_both_tables(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "uci").mkdir()
    write_uci(tmp_path / "uci" / "car", rows=(240,), classes=3)
    write_uci(tmp_path / "uci" / "noise", rows=(40,))  # not one of the paper's
    monkeypatch.setitem(script.TABLE_1, "car", script.TABLE_1["bank"]._replace(hidden=12))
    monkeypatch.setattr(script, "EPOCHS", 40)
    options = ["tables.py", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "0,1", "--batch", "16"]
    monkeypatch.setattr(sys, "argv", [*options, "--plan"])
    assert script.main() == 0
    assert "car" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*options, "--activations", "selu,tanh"])
    assert script.main() == 0
    printed = capsys.readouterr().out
    for name in ("car-selu-0-16", "car-tanh-1-16"):
        found = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert found["rows"] == [102, 18, 120]
        assert sorted(found["candidates"]) == ["0", "10", "20", "30"]
        plain = found["candidates"]["0"]
        assert plain["test"] == 100 * float(script.rights(found, 0).mean())
        assert found["candidates"][str(found["cutoff"])]["special"] >= 0
    assert printed.count("| car | 2 |") == 2
    assert "| sets | 1 | 1 |" in printed
    monkeypatch.setattr(sys, "argv", [*options, "--activations", "selu,tanh", "--processes", "2"])
    assert script.main() == 0  # nothing is missing
    assert capsys.readouterr().out == printed
    for other in (["--batch", "32"], ["--test", "table"]):  # of which nothing has been run
        monkeypatch.setattr(sys, "argv", [*options, *other, "--only", "table"])
        assert script.main() == 0
        assert "nothing has been run yet" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*options, "--activations", "sele"])
    with pytest.raises(SystemExit, match="sele; there are selu"):
        script.main()
    monkeypatch.setattr(sys, "argv", ["tables.py", "--plan"])
    monkeypatch.delenv("PARED_DATA", raising=False)
    with pytest.raises(SystemExit, match="PARED_DATA"):
        script.main()
    monkeypatch.setattr(sys, "argv", [*options, "--sets", "bank"])
    with pytest.raises(SystemExit, match="bank; there are car"):
        script.main()


def test_an_interrupted_run_leaves_no_record(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uci").mkdir()
    write_uci(tmp_path / "uci" / "car", rows=(60,), classes=3)
    monkeypatch.setitem(script.TABLE_1, "car", script.TABLE_1["bank"]._replace(hidden=12))
    monkeypatch.setattr(script, "EPOCHS", 30)
    scores = iter([1.0, 2.0])

    def accuracy(*_: Any) -> float:
        for score in scores:
            return score
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "accuracy", accuracy)
    options = [
        "tables.py",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--activations",
        "selu",
        "--seeds",
        "0",
    ]
    monkeypatch.setattr(sys, "argv", options)
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert not list((tmp_path / "out").iterdir())


def test_sums_that_cancel_are_ties(script: ModuleType) -> None:
    def one(seed: int, plain: int, rated: int) -> dict[str, Any]:
        hits = [{"test": 100 * k / 7, "special": 0.0, "right": f"{256 - 2 ** (8 - k):02x}"} for k in (plain, rated)]
        return {
            "set": "car",
            "seed": seed,
            "rows": [9, 2, 7],
            "diverged": [],
            "cutoff": 10,
            "candidates": dict(zip(("0", "10"), hits, strict=True)),
        }

    told = script.told("selu", [one(0, 5, 6), one(1, 3, 4), one(2, 4, 2)])
    assert told["by_set"] == [0, 1, 0]
    assert told["by_run"] == [2, 0, 1]
    assert told["sign"] == told["signed_rank"] == 1.0
    assert told["difference"] == "+0.00"
    assert told["chance_by_run"] == [2, 0, 1]
    assert told["mcnemar"] == [0, 0]


def near(share: float, rows: int) -> range:
    k = int(share * rows / 100)
    return range(k - 1, k + 3)
