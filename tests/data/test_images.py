"""IDX files, whole and damaged."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pared.data.images import read_idx, read_mnist
from pared.errors import DataError

KINDS = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx(array: np.ndarray, kind: str) -> bytes:
    head = bytes([0, 0, KINDS[kind], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(f">{kind}").tobytes()


@given(
    kind=st.sampled_from(sorted(KINDS)), shape=st.lists(st.integers(0, 4), min_size=1, max_size=3), zipped=st.booleans()
)
def test_arrays_come_back_in_their_type_and_shape(
    tmp_path_factory: pytest.TempPathFactory, kind: str, shape: list[int], zipped: bool
) -> None:
    array = (np.arange(np.prod(shape)) % 100 - (0 if kind == "u1" else 50)).reshape(shape).astype(kind)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(idx(array, kind)) if zipped else idx(array, kind))
    assert torch.equal(read_idx(path), torch.from_numpy(array))


@pytest.mark.parametrize("cut", [0, 3, 7, 20, -1])
def test_damaged_files_are_refused(tmp_path: Path, cut: int) -> None:
    whole = idx(np.zeros((3, 4)), "u1")
    for content in (whole[:cut], gzip.compress(whole)[: cut or None][:-4], whole + b"\0", b"\1" + whole[1:]):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(DataError, match="file"):
            read_idx(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "absent")


def test_images_and_labels_belong_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no train-images-idx3-ubyte"):
        read_mnist(tmp_path, "train")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.full((2, 28, 28), 7), "u1"))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([3, 9]), "u1")))
    x, y = read_mnist(tmp_path, "train")
    assert (x.shape, x.dtype, y.tolist(), y.dtype) == ((2, 1, 28, 28), torch.uint8, [3, 9], torch.int64)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([3]), "u1")))
    with pytest.raises(DataError, match="do not go with"):
        read_mnist(tmp_path, "train")
