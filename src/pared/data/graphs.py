"""Graphs whose nodes have features and classes, and networks of sensors that measure in time."""

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pared.errors import DataError


@dataclass(frozen=True)
class Graph:
    """A graph for learning the classes of some nodes from those of others.

    Attributes:
        x: the nodes' features, sparse COO float32 (nodes, features), coalesced.
        y: their classes, int64 (nodes,), -1 where unknown.
        edges: undirected, int64 (2, edges), each once.
        train, validation, test: which nodes are for what, int64, ascending.
    """

    x: Tensor
    y: Tensor
    edges: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    def both_ways(self) -> tuple[Tensor, Tensor]:
        """Return rows and columns of the edges in both directions, each (2 edges,); a self loop twice."""
        return torch.cat([self.edges[0], self.edges[1]]), torch.cat([self.edges[1], self.edges[0]])


def read_planetoid(path: str | Path) -> Graph:
    """Return the graph of an .npz file of Cora, CiteSeer or their kin, without pickle.

    Arrays are `x_data`, `x_indices`, `x_indptr` and `x_shape` (CSR), `y`, `edges` (edges, 2) and `split`: 0 for training, 1
    for validation, 2 for the test, -1 for none.

    Raises:
        DataError: the file is missing or damaged, an array is missing or does not fit the others.
    """
    path = Path(path)
    names = ("x_data", "x_indices", "x_indptr", "x_shape", "y", "edges", "split")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise DataError(f"{path} has no {', '.join(missing)}; expected the arrays {', '.join(names)}")
            data, indices, indptr, shape, y, edges, split = (torch.from_numpy(file[name]) for name in names)
    except DataError:
        raise
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an .npz file of numbers ({error})") from None
    nodes, features = _shape(path, shape, indptr, indices, data)
    row = torch.repeat_interleave(torch.arange(nodes), indptr.long().diff())
    x = torch.sparse_coo_tensor(
        torch.stack([row, indices.long()]), data.float(), (nodes, features), check_invariants=False
    )
    if y.shape != (nodes,) or split.shape != (nodes,):
        raise DataError(f"{path}: expected y and split of {nodes} nodes, got {tuple(y.shape)} and {tuple(split.shape)}")
    if edges.ndim != 2 or edges.shape[1] != 2 or not _within(edges, nodes):
        raise DataError(f"{path}: edges must be (edges, 2), each of nodes 0 to {nodes - 1}; got {tuple(edges.shape)}")
    parts = [(split == part).nonzero().flatten() for part in (0, 1, 2)]
    if any(bool((y[part] < 0).any()) for part in parts):
        raise DataError(f"{path}: a node for training, validation or test has no class")
    return Graph(x.coalesce(), y.long(), edges.long().t().contiguous(), *parts)


def _shape(path: Path, shape: Tensor, indptr: Tensor, indices: Tensor, data: Tensor) -> tuple[int, int]:
    """Check a CSR matrix, and return its shape."""
    nodes, features = (int(size) for size in shape) if shape.shape == (2,) else (-1, -1)
    steps = indptr.long().diff() if indptr.ndim == 1 else indptr.new_empty(0)
    fits = nodes >= 1 and len(indptr) == nodes + 1 and int(indptr[0]) == 0 and int(indptr[-1]) == len(data)
    if not fits or data.shape != indices.shape or bool((steps < 0).any()) or not _within(indices, features):
        raise DataError(
            f"{path}: x is no CSR matrix of shape {tuple(shape.tolist())}, with {len(data)} numbers, {len(indices)} indices "
            f"and {len(indptr)} starts of rows; get the file anew"
        )
    return nodes, features


def _within(x: Tensor, size: int) -> bool:
    return not x.numel() or 0 <= int(x.min()) <= int(x.max()) < size


@dataclass(frozen=True)
class Traffic:
    """Speeds that sensors on roads measured in equal steps of time, and which of them are near each other.

    Attributes:
        speed: float32 (steps, sensors), NaN where there is no reading.
        adjacency: float32 (sensors, sensors), >= 0.
        sensors: their names.
    """

    speed: Tensor
    adjacency: Tensor
    sensors: tuple[str, ...]


def read_traffic(speed: str | Path, adjacency: str | Path) -> Traffic:
    """Return a table of speeds, a column for each sensor with its name at the head, and the matrix between sensors.

    A speed of 0, as detectors write where they have no reading, or an empty cell becomes NaN.

    Raises:
        DataError: a file is missing, a cell is no number or below 0, or the two do not belong together.
    """
    rows = _rows(Path(speed))
    head, table = (rows[0], _numbers(Path(speed), rows[1:], first=2)) if rows else ([], torch.empty(0, 0))
    matrix = _numbers(Path(adjacency), _rows(Path(adjacency)), first=1)
    if not head or table.shape[1:] != (len(head),) or matrix.shape != (len(head), len(head)):
        raise DataError(
            f"{adjacency}: expected a matrix of the {len(head)} sensors of {speed}, got shape {tuple(matrix.shape)} with "
            f"speeds of shape {tuple(table.shape)}"
        )
    if bool(matrix.isnan().any()):
        raise DataError(f"{adjacency} has an empty cell; every pair of sensors needs a number, 0 for none")
    return Traffic(table.masked_fill(table == 0, torch.nan), matrix, tuple(head))


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as comma-separated text ({error})") from None


def _numbers(path: Path, rows: list[list[str]], first: int) -> Tensor:
    """Numbers of cells, none below 0; the first row is line `first` of the file, for messages."""
    found: list[list[float]] = []
    for line, row in enumerate(rows, first):
        try:
            found.append([float(cell) if cell.strip() else float("nan") for cell in row])
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
        if len(row) != len(rows[0]) or any(number < 0 or number == float("inf") for number in found[-1]):
            raise DataError(f"{path}, line {line}: expected {len(rows[0])} numbers, finite and at least 0")
    return torch.tensor(found, dtype=torch.float32).reshape(len(found), len(rows[0]) if rows else 0)
