import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.data.encode import Encoder
from pared.data.inspect import find_ids, warnings_of
from pared.data.problem import prepare
from pared.data.readers import read_table
from pared.data.source import BUILTIN, Table, load_table
from pared.data.split import split_rows
from pared.data.task import Task, detect_task, standardised
from pared.errors import DataError

CELL = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=8).filter(
    lambda s: s.strip() == s
)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@given(
    names=st.lists(CELL, min_size=2, max_size=4, unique=True),
    numbers=st.lists(st.integers(-(10**9), 10**9), min_size=2, max_size=6),
    texts=st.lists(CELL.filter(lambda s: any(c.isalpha() for c in s)), min_size=2, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
)
def test_any_dialect_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], numbers: list[int], texts: list[str], delimiter: str
) -> None:
    rows = [[str(n), f"x{t}"] + ["1.5"] * (len(names) - 2) for n, t in zip(numbers, texts, strict=False)]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    path = write(tmp_path_factory.mktemp("t") / "t.csv", text.getvalue())
    frame = read_table(path, delimiter=delimiter)
    assert list(frame.columns) == [name.strip() for name in names]
    assert frame.iloc[:, 0].tolist() == [int(row[0]) for row in rows]
    assert frame.iloc[:, 1].tolist() == [row[1].strip() for row in rows]


def test_dialects_are_detected(tmp_path: Path) -> None:
    german = read_table(write(tmp_path / "g.csv", "a;b\n1,5;x\n2,25;y\n"))
    assert german["a"].tolist() == [1.5, 2.25]
    adult = read_table(
        write(tmp_path / "a.test", "|1x3 Cross validator\n25, Private, ?, <=50K.\n38, ?, 7, >50K.\n\n"), header=False
    )
    assert list(adult.columns) == ["column_1", "column_2", "column_3", "column_4"]
    assert adult["column_1"].tolist() == [25, 38]
    assert adult["column_2"].isna().tolist() == [False, True]
    assert adult["column_3"].isna().tolist() == [True, False]
    quoted = read_table(write(tmp_path / "q.csv", 'a,b\n"x, y",1\n"say ""hi""",2\n'))
    assert quoted["a"].tolist() == ["x, y", 'say "hi"']


def test_gz_parquet_and_arff(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1.5, np.nan, 3.0], "t": ["a", "b", None]})
    plain = read_table(write(tmp_path / "f.csv.gz", gzip.compress(frame.to_csv(index=False).encode())))
    frame.to_parquet(tmp_path / "f.parquet")
    arff = "@relation r\n% note\n@attribute 'n' numeric\n@ATTRIBUTE t {a, 'b'}\n@data\n1.5,a\n?,'b'\n3.0,?\n"
    tables: list[Any] = [plain, read_table(tmp_path / "f.parquet"), read_table(write(tmp_path / "f.arff", arff))]
    for table in tables:
        assert list(table.columns) == ["n", "t"]
        assert table["n"].isna().tolist() == [False, True, False]
        assert table["t"].isna().tolist() == [False, False, True]
        assert table["t"][0] == "a"


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_sets_are_ready(name: str) -> None:
    table = load_table(name)
    assert table.target is not None
    problem = prepare(table, [table.target])
    assert problem.task.kind == ("regression" if name == "diabetes" else "classification")
    assert not problem.warnings
    total = len(problem.train) + len(problem.validation) + len(problem.test)
    assert total == len(table.frame)


def frame_of_everything(rows: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "number": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(5, 3, rows)),
            "whole": rng.integers(0, 1000, rows),
            "city": rng.choice(["Rome", "Oslo", "Bern", "Riga"], rows),
            "flag": rng.random(rows) < 0.5,
            "yes": rng.choice(["no", "yes"], rows),
            "when": pd.date_range("2020-01-31", periods=rows, freq="37h").strftime("%Y-%m-%d %H:%M:%S"),
            "constant": 7,
            "empty": np.nan,
            "rare": np.where(np.arange(rows) < 4, [f"r{i}" for i in range(rows)], "common"),
        }
    )


def test_encoding_round_trips_and_narrows() -> None:
    frame = frame_of_everything()
    encoder = Encoder.fit(frame)
    x = encoder.transform(frame)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    again = Encoder.from_json(encoder.to_json())
    assert again == encoder
    np.testing.assert_array_equal(again.transform(frame), x)
    np.testing.assert_array_equal(encoder.transform(frame.sample(frac=1, random_state=1).sort_index()), x)
    names = {item.column for item in encoder.inputs}
    assert names == set(frame.columns) - {"constant", "empty"}
    kept = encoder.keep([0, 3, len(encoder.inputs) - 1])
    np.testing.assert_array_equal(kept.transform(frame[[c.name for c in kept.columns]]), x[:, [0, 3, -1]])
    assert sum(encoder.group_sizes()) == len(encoder.inputs)
    assert abs(x[:, 0].mean()) < 1e-6
    assert [i.name for i in encoder.inputs][:2] == ["number", "number is missing"]


def test_new_rows_may_hold_what_training_did_not() -> None:
    frame = frame_of_everything()
    encoder = Encoder.fit(frame)
    row = frame.head(2).copy()
    row["city"], row["number"], row["whole"] = ["Atlantis", None], [1e9, None], 10**9
    x = encoder.transform(row)
    city = [i for i, item in enumerate(encoder.inputs) if item.column == "city"]
    assert x[:, city].sum() == 0
    assert x.max() == 20.0
    assert encoder.unseen(row) == {"city": 1}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("whole", ["12", "n/a?"], "column 'whole' expects numbers, got 'n/a\\?' in row 2"),
        ("whole", [1.0, np.inf], "infinite in row 2"),
        ("when", ["2020-01-01 00:00:00", "yesterday"], "expects dates such as 2024-12-31, got 'yesterday' in row 2"),
    ],
)
def test_values_that_cannot_be_read_are_named(column: str, values: list[Any], message: str) -> None:
    frame = frame_of_everything()
    encoder, row = Encoder.fit(frame), frame.head(2).copy()
    row[column] = values
    with pytest.raises(DataError, match=message):
        encoder.transform(row)
    with pytest.raises(DataError, match=r"lacks 1 of the .* 'citi' meant to be 'city'"):
        encoder.transform(frame.rename(columns={"city": "citi"}))


def test_stray_text_among_numbers_is_a_mistake() -> None:
    frame = pd.DataFrame({"a": ["1.5"] * 99 + ["oops"], "b": range(100)})
    with pytest.raises(DataError, match="'oops' in row 100"):
        Encoder.fit(frame)


@given(st.lists(st.integers(0, 3), min_size=12, max_size=200), st.integers(0, 5))
def test_splits_are_whole_disjoint_stratified_and_repeatable(labels: list[int], seed: int) -> None:
    y = np.array(labels)
    split = split_rows(y, seed=seed)
    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts)) == list(range(len(y)))
    for label in np.unique(y):
        count = int((y == label).sum())
        inside = [int((y[part] == label).sum()) for part in parts]
        assert inside[0] >= 1
        if count >= 3:
            assert min(inside) >= 1
        assert abs(inside[2] - 0.2 * count) <= 1
    for mine, other in zip(parts, [split_rows(y, seed=seed).train, split_rows(y, seed=seed).validation], strict=False):
        np.testing.assert_array_equal(mine, other)


def test_tasks_are_detected_and_decoded() -> None:
    frame = pd.DataFrame(
        {"c": ["b", "a", "b", "a"] * 5, "k": [1.0, 2.0] * 10, "r": np.linspace(0, 1, 20), "b": [True, False] * 10}
    )
    kinds = {name: detect_task(frame, [name]) for name in frame}
    assert [kinds[n].kind for n in "ckrb"] == ["classification", "classification", "regression", "classification"]
    assert kinds["k"].classes == ("1", "2")
    assert kinds["k"].labels(np.array([1, 0])) == [2, 1]
    assert kinds["b"].labels(np.array([1, 0])) == [True, False]
    regression = standardised(kinds["r"], frame)
    np.testing.assert_allclose(regression.values(regression.encode(frame))[:, 0], frame["r"], atol=1e-6)
    for task in (*kinds.values(), regression):
        assert Task.from_json(task.to_json()) == task
    assert detect_task(frame, ["r", "k"], kind="regression").targets == ("r", "k")


def table(frame: pd.DataFrame) -> Table:
    return load_table(frame)


def test_test_labels_with_a_full_stop_are_those_of_training() -> None:
    frame = pd.DataFrame({"x": np.arange(40) % 7, "y": ["<=50K", ">50K"] * 20})
    dotted = frame.assign(y=frame["y"] + ".")
    problem = prepare(table(frame), ["y"], test=table(dotted))
    assert len(problem.test) == 40
    assert any("'<=50K.' were read as '<=50K'" in w for w in problem.warnings)
    with pytest.raises(DataError, match="label 'huh' is not among"):
        prepare(table(frame), ["y"], test=table(frame.assign(y="huh")))


def test_ids_leaks_gaps_copies_and_rare_classes_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.3).astype(int)
    frame = pd.DataFrame(
        {
            "row": np.arange(400),
            "name": [f"person {i}" for i in range(400)],
            "leak": y * 3.7 + 1,
            "code": np.where(y == 1, "A", "B"),
            "honest": y + rng.normal(0, 0.5, 400),
            "holes": np.where(rng.random(400) < 0.7, np.nan, 1.0) * rng.random(400),
        }
    )
    task = Task("classification", ("y",), ("0", "1"))
    assert find_ids(frame) == ["name"]
    found = "\n".join(warnings_of(frame.drop(columns="name"), task, y))
    for name in ("'row' numbers the rows", "'leak' by itself", "'code' by itself", "'holes' is missing in"):
        assert name in found
    assert "honest" not in found
    assert "repeat an earlier row" in "\n".join(warnings_of(pd.concat([frame[["honest"]]] * 2), task, np.tile(y, 2)))
    assert "class '1' has only" in "\n".join(warnings_of(frame[["honest"]], task, np.r_[np.zeros(399, int), 1]))


def test_weights_are_checked_and_scaled() -> None:
    frame = pd.DataFrame({"x": np.arange(40) % 7, "y": ["a", "b"] * 20, "w": [1.0, 3.0] * 20})
    problem = prepare(table(frame), ["y"], weights="w")
    assert problem.train.w is not None
    assert set(np.round(problem.train.w, 3)) == {0.5, 1.5}
    assert problem.columns == ("x",)
    with pytest.raises(DataError, match="weights in column 'w'"):
        prepare(table(frame.assign(w=-1)), ["y"], weights="w")
    with pytest.raises(DataError, match="no column 'v'"):
        prepare(table(frame), ["y"], weights="v")


def test_openml_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    import sklearn.datasets

    def refuse(**_: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", refuse)
    with pytest.raises(DataError, match="openml:31 could not be fetched .* give a file"):
        load_table("openml:31")
    with pytest.raises(DataError, match="number of a data set"):
        load_table("openml:adult")


def test_fields_may_be_long_and_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    before, path = csv.field_size_limit(), tmp_path / "long.csv"
    path.write_text("a,b\n" + "".join(f"{i},{'x' * 150_000}\n" for i in range(3)))
    assert read_table(path)["b"].str.len().tolist() == [150_000] * 3
    assert csv.field_size_limit() == before
