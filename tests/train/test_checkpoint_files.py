"""Files are whole or refused, whatever happens to the disk."""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pared.errors import RunError
from pared.storage import write_atomically
from pared.train import checkpoint
from pared.train.checkpoint import load_state, save_state

STATE: dict[str, Any] = {
    "a": torch.arange(6.0),
    "b": [1, (2.5, None)],
    "c": {0: {"tensor": torch.ones(1)}, "tuple": "x"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "s.safetensors"
    save_state(path, STATE)
    return path.read_bytes()


@given(st.data())
def test_a_file_with_a_changed_head_is_refused_or_read_never_worse(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "s.safetensors"
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(RunError):  # anything else is an error of this test
        load_state(path)


def test_a_file_cut_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"s\.safetensors"):
            load_state(path)


@pytest.mark.parametrize(
    "tree",
    [{"items": 3}, {"items": [["a", {"tensor": "9"}]]}, {"tuple": None}, {"items": [1]}, {"items": [[[], 1]]}, {}],
)
def test_a_tree_that_makes_no_sense_is_refused(tree: Any, tmp_path: Path) -> None:
    from safetensors.torch import save

    path = tmp_path / "s.safetensors"
    path.write_bytes(save({}, metadata={"format": checkpoint.FORMAT, "state": json.dumps(tree)}))
    with pytest.raises(RunError):
        load_state(path)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_at_either_moment_keeps_the_old_file_and_leaves_no_other(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    failing: list[Any] = []

    def full(*arguments: Any) -> None:
        failing.append(arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunError, match="No space left"):
        write_atomically(path, b"new")
    assert failing
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_a_file_or_a_file_that_is_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "y" / "x", tmp_path / "folder"):
        with pytest.raises(RunError, match="could not be written"):
            write_atomically(path, "text")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.zeros(0, 4),
        torch.ones(2, 3).T,
        torch.tensor([True, False]),
        torch.arange(4)[1:3],
        torch.ones(2, dtype=torch.bfloat16),
    ],
)
def test_tensors_of_every_kind_come_back_and_share_nothing(tensor: torch.Tensor, tmp_path: Path) -> None:
    save_state(tmp_path / "s", {"x": tensor, "again": tensor})
    back = load_state(tmp_path / "s")
    assert torch.equal(back["x"], tensor)
    assert back["x"].dtype == tensor.dtype
    assert torch.equal(back["again"], tensor)
