"""`pared predict` and the generated model.py read a new file as the training table was read."""

import dataclasses
import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pared.data.problem import prepare
from pared.data.source import load_table
from pared.errors import ConfigError, RunError
from pared.formats.document import Document, load_document, save_document
from pared.formats.script import write_script
from pared.models import mlp
from pared.run import answer

ROWS = [(f"{i / 4 - 3:.2f}", ["01", "1", "b"][i % 3], str(i % 7 * 1000), "pq"[i % 2]) for i in range(60)]


def table(delimiter: str, decimal: str, header: bool, rows: list[Any] = ROWS) -> str:
    lines = [["x", "kind", "count", "y"]] if header else []
    lines += [[row[0].replace(".", decimal), *row[1:]] for row in rows]
    return "".join(delimiter.join(line) + "\n" for line in lines)


def trained(folder: Path, text: bytes, **asked: Any) -> Document:
    (folder / "train.csv").write_bytes(text)
    read = load_table(folder / "train.csv", **asked)
    problem = prepare(read, [read.frame.columns[-1]])
    model = mlp(len(problem.encoder.inputs), problem.task.outputs, (5,)).eval()
    document = Document(model, problem.encoder, problem.task, "accuracy", {}, problem.dialect)
    save_document(folder / "model", document)
    write_script(folder / "model.py", document)
    return load_document(folder / "model")


def both(folder: Path, document: Document, name: str) -> np.ndarray:
    """The probabilities of `pared predict`, which are those of model.py."""
    frame = load_table(folder / name, **document.reading()).frame
    answers = answer(document, frame).iloc[:, 1:].to_numpy()
    spec = importlib.util.spec_from_file_location("generated_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model = script.load()
    others = [list(row["probabilities"].values()) for row in model.predict(script.read(str(folder / name), model))]
    np.testing.assert_allclose(others, answers, atol=1e-6)
    return answers


@pytest.mark.parametrize(("delimiter", "decimal"), [(";", ","), (";", "."), (",", "."), ("\t", ","), ("|", ",")])
@pytest.mark.parametrize("header", [True, False])
def test_both_read_every_dialect(delimiter: str, decimal: str, header: bool, tmp_path: Path) -> None:
    document = trained(tmp_path, table(delimiter, decimal, header).encode(), header=header)
    assert document.dialect is not None
    assert (document.dialect.header, document.dialect.delimiter, document.dialect.decimal) == (
        header,
        delimiter,
        decimal,
    )
    wanted = both(tmp_path, document, "train.csv")
    # In another dialect, marked by byte orders, compressed, and with rows that leave open what their commas mean.
    (tmp_path / "other.csv").write_text(table(",", ".", header), encoding="utf-8-sig")
    (tmp_path / "wide.csv").write_text(table(delimiter, decimal, header), encoding="utf-16")
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(table(delimiter, decimal, header).encode()))
    for name in ("other.csv", "wide.csv", "packed.csv.gz"):
        np.testing.assert_array_equal(both(tmp_path, document, name), wanted)
    (tmp_path / "few.csv").write_text(table(delimiter, decimal, header, ROWS[:1]))
    np.testing.assert_allclose(both(tmp_path, document, "few.csv"), wanted[:1], atol=1e-6)


def test_a_text_column_stays_text_in_a_file_that_has_numbers_in_it_only(tmp_path: Path) -> None:
    document = trained(tmp_path, table(",", ".", True).encode())
    wanted = both(tmp_path, document, "train.csv")
    (tmp_path / "new.csv").write_text(table(",", ".", True, ROWS[::3]))  # "01" throughout, which is not "1"
    np.testing.assert_allclose(both(tmp_path, document, "new.csv"), wanted[::3], atol=1e-6)


def test_models_of_the_first_version_are_read_without_a_dialect(tmp_path: Path) -> None:
    trained(tmp_path, table(";", ",", True).encode())
    spec = json.loads((tmp_path / "model.json").read_text())
    del spec["table"]
    (tmp_path / "model.json").write_text(json.dumps({**spec, "version": 1}))
    old = load_document(tmp_path / "model")
    assert old.dialect is None
    both(tmp_path, old, "train.csv")
    (tmp_path / "model.json").write_text(json.dumps({**spec, "version": 3}))
    with pytest.raises(RunError, match="version 1 to 2"):
        load_document(tmp_path / "model")


@pytest.mark.parametrize("change", [{"delimiter": ""}, {"decimal": "x"}, {"header": 1}, {"missing": [1]}, {"other": 1}])
def test_a_dialect_that_is_none_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    trained(tmp_path, table(";", ",", True).encode())
    spec = json.loads((tmp_path / "model.json").read_text())
    spec["table"] |= change
    (tmp_path / "model.json").write_text(json.dumps(spec))
    with pytest.raises(RunError, match="no model document"):
        load_document(tmp_path / "model")


@pytest.mark.parametrize(
    "asked", [{"delimiter": ",,"}, {"delimiter": ""}, {"decimal": ";"}, {"delimiter": ",", "decimal": ","}]
)
def test_marks_that_are_none_are_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table(",", ".", True))
    with pytest.raises(ConfigError, match="mark|delimiter"):
        load_table(tmp_path / "t.csv", **asked)


def test_no_name_breaks_the_generated_script(tmp_path: Path) -> None:
    document = trained(tmp_path, table(",", ".", True).encode())
    for name in ("a\0b", '"""', "\\", "new\nline", "𝛼", "\u202e", "$x"):
        task = dataclasses.replace(document.task, targets=(name,))
        write_script(tmp_path / "model.py", dataclasses.replace(document, task=task))
        compile((tmp_path / "model.py").read_bytes(), "model.py", "exec")
