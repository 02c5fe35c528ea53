import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pared.data.encode import Encoder
from pared.data.task import Task
from pared.errors import RunError
from pared.formats.document import Document, load_document, save_document
from pared.formats.onnx import export_onnx
from pared.models import mlp


def document() -> Document:
    frame = pd.DataFrame({"x": [0.0, 1.0, 4.0, np.nan], "city": ["Rome", "Oslo", "Rome", "Oslo"]})
    encoder = Encoder.fit(frame)
    model = mlp(len(encoder.inputs), 2, (5, 4), generator=torch.Generator().manual_seed(0)).eval()
    return Document(model, encoder, Task("classification", ("y",), ("p", "q")), "accuracy", {"test": {"accuracy": 0.5}})


def test_documents_round_trip(tmp_path: Path) -> None:
    saved = document()
    save_document(tmp_path / "m", saved)
    for path in (tmp_path / "m", tmp_path / "m.json", tmp_path / "m.safetensors"):
        loaded = load_document(path)
        assert (loaded.encoder, loaded.task, loaded.metric) == (saved.encoder, saved.task, saved.metric)
        x = torch.randn(3, len(saved.encoder.inputs))
        torch.testing.assert_close(loaded.model(x), saved.model(x), rtol=0, atol=0)
    with pytest.raises(RunError, match="does not exist"):
        load_document(tmp_path / "n")
    with pytest.raises(RunError, match="is a Bilinear"):
        save_document(
            tmp_path / "b", Document(nn.Sequential(nn.Bilinear(1, 1, 1)), saved.encoder, saved.task, "accuracy", {})
        )


@given(st.data())
def test_damaged_documents_are_refused_or_load_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    saved = document()
    save_document(folder / "m", saved)
    path = folder / data.draw(st.sampled_from(["m.json", "m.safetensors"]))
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[at:]
    else:
        content[at:at] = data.draw(st.binary(min_size=1, max_size=5))
    path.write_bytes(bytes(content))
    try:
        loaded = load_document(folder / "m")
    except RunError:
        return
    shapes = [p.shape for p in loaded.model.parameters()]
    assert shapes == [p.shape for p in saved.model.parameters()]
    assert len(loaded.encoder.inputs) == len(saved.encoder.inputs)


def test_hostile_structures_are_refused(tmp_path: Path) -> None:
    save_document(tmp_path / "m", document())
    good = json.loads((tmp_path / "m.json").read_text())
    changes = (
        {"format": "other"}, {"version": 99}, {"layers": [{"type": "__import__", "name": "0"}]}, {"layers": []},
        {"layers": [{**good["layers"][0], "out_features": 10**12}]}, {"encoder": {}}, {"task": {"kind": "x"}},
    )  # fmt: skip
    for change in changes:
        (tmp_path / "m.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(RunError):
            load_document(tmp_path / "m")


def test_onnx_answers_as_torch_does_for_any_batch(tmp_path: Path) -> None:
    saved = document()
    names = [item.name for item in saved.encoder.inputs]
    export_onnx(saved.model, tmp_path / "m.onnx", names, about={"classes": "p\nq"})
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_modelmeta().custom_metadata_map["inputs"].split("\n") == names
    for rows in (1, 5):
        x = torch.randn(rows, len(names))
        got = np.asarray(session.run(None, {"inputs": x.numpy()})[0])
        np.testing.assert_allclose(got, saved.model(x).detach().numpy(), atol=1e-5)


def test_a_model_that_onnx_gets_wrong_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = document()
    monkeypatch.setattr("pared.formats.onnx.TOLERANCE", -1.0)
    with pytest.raises(RunError, match="differ by"):
        export_onnx(saved.model, tmp_path / "m.onnx", ["a"] * len(saved.encoder.inputs))
    assert not (tmp_path / "m.onnx").exists()
