"""Graphs and sensor networks, whole and damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pared.data.graphs import read_planetoid, read_traffic
from pared.errors import DataError

WHOLE: dict[str, Any] = {
    "x_data": np.array([1, 2, 3], np.float32),
    "x_indices": np.array([2, 0, 1], np.int32),
    "x_indptr": np.array([0, 1, 1, 3], np.int32),
    "x_shape": np.array([3, 4]),
    "y": np.array([1, -1, 0], np.int16),
    "edges": np.array([[0, 1], [1, 2]], np.int32),
    "split": np.array([0, -1, 2], np.int8),
}


def test_a_graph_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "graph.npz", **WHOLE)
    graph = read_planetoid(tmp_path / "graph.npz")
    assert graph.x.to_dense().tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [2, 3, 0, 0]]
    assert graph.x.is_coalesced()
    assert (graph.y.tolist(), graph.y.dtype) == ([1, -1, 0], torch.int64)
    assert graph.edges.tolist() == [[0, 1], [1, 2]]
    assert [part.tolist() for part in graph.both_ways()] == [[0, 1, 1, 2], [1, 2, 0, 1]]
    assert [graph.train.tolist(), graph.validation.tolist(), graph.test.tolist()] == [[0], [], [2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None}, "has no y"),
        ({"y": np.array([1, 0])}, "y and split of 3 nodes"),
        ({"split": np.array([0, 1, 2])}, "has no class"),
        ({"edges": np.array([[0, 3]])}, "nodes 0 to 2"),
        ({"edges": np.array([0, 1])}, "edges must be"),
        ({"x_indptr": np.array([0, 1, 3])}, "no CSR matrix"),
        ({"x_indptr": np.array([0, 2, 1, 3])}, "no CSR matrix"),
        ({"x_indices": np.array([0, 4, 1])}, "no CSR matrix"),
        ({"x_shape": np.array([3])}, "no CSR matrix"),
        ({"y": np.array([1, None, 0], dtype=object)}, "cannot be read"),
    ],
)
def test_graphs_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (WHOLE | change).items() if array is not None}
    np.savez(tmp_path / "graph.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_planetoid(tmp_path / "graph.npz")


@pytest.mark.parametrize("cut", [0, 10, 300, None])
def test_damaged_graphs_are_refused(tmp_path: Path, cut: int | None) -> None:
    np.savez(tmp_path / "whole.npz", **WHOLE)
    if cut is not None:
        (tmp_path / "graph.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:cut])
    with pytest.raises(DataError, match="cannot be read"):
        read_planetoid(tmp_path / "graph.npz")


def test_an_array_alone_is_no_graph(tmp_path: Path) -> None:
    with (tmp_path / "graph.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="cannot be read"):
        read_planetoid(tmp_path / "graph.npz")


def written(folder: Path, speed: str, matrix: str) -> tuple[Path, Path]:
    (folder / "speed.csv").write_text(speed)
    (folder / "matrix.csv").write_text(matrix)
    return folder / "speed.csv", folder / "matrix.csv"


def test_speeds_are_read_and_missing_ones_are_no_numbers(tmp_path: Path) -> None:
    traffic = read_traffic(*written(tmp_path, "a,b\n60.5,0\n,2\n1,3\n\n", "1,0.5\n0,1\n"))
    assert traffic.sensors == ("a", "b")
    expected = torch.tensor([[60.5, torch.nan], [torch.nan, 2.0], [1.0, 3.0]])
    torch.testing.assert_close(traffic.speed, expected, equal_nan=True)
    assert traffic.adjacency.tolist() == [[1.0, 0.5], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("speed", "matrix", "message"),
    [
        ("a,b\n1,x\n", "1,0\n0,1\n", "speed.csv, line 2: could not convert"),
        ("a,b\n1,2\n1\n", "1,0\n0,1\n", "speed.csv, line 3: expected 2 numbers"),
        ("a,b\n1,-2\n", "1,0\n0,1\n", "finite and at least 0"),
        ("a,b\n1,inf\n", "1,0\n0,1\n", "finite and at least 0"),
        ("a,b\n1,2\n", "1,0\n", "expected a matrix of the 2 sensors"),
        ("a,b\n1,2\n", "1,0\n0,y\n", "matrix.csv, line 2"),
        ("a,b\n1,2\n", "1,\n0,1\n", "has an empty cell"),
        ("a,b\n1,2,3\n", "1,0\n0,1\n", "speeds of shape"),
        ("", "", "matrix of the 0 sensors"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, speed: str, matrix: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_traffic(*written(tmp_path, speed, matrix))


def test_missing_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as comma-separated text"):
        read_traffic(tmp_path / "speed.csv", tmp_path / "matrix.csv")
