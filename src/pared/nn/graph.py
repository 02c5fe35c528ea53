"""Matrices between the nodes of a graph that stay as they are."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.ops.lines import DENSE_FROM, Lines
from pared.ops.sinkhorn import by_rows, scaled

#: Rows and columns of the edges of a graph.
Edges = tuple[Tensor | Sequence[int], Tensor | Sequence[int]]


class Adjacency(nn.Module):
    """Multiply what nodes know by a non-negative matrix A over the nodes: what each takes from which.

    Shapes: (..., nodes, features) -> the same.
    """

    nodes: int

    def values(self) -> Tensor:
        """Return the entries of A: (nodes, nodes), or (entries,) in the order of `lines()`."""
        raise NotImplementedError

    def lines(self) -> Lines:
        """Return which rows and columns the entries are in."""
        raise NotImplementedError

    def forward(self, h: Tensor, values: Tensor | None = None) -> Tensor:
        """Return A h; `values`, if given, are those of `values()`, for several products in one pass.

        Raises:
            ValueError: `h` has another number of nodes.
        """
        return self.lines().product(self.values() if values is None else values, h)

    def matrix(self) -> Tensor:
        """Return A, (nodes, nodes); it can be derived."""
        return self.lines().matrix(self.values())

    @torch.no_grad()
    def edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, columns and values of the entries that are not 0, each (edges,)."""
        values, lines = self.values(), self.lines()
        live = values.nonzero(as_tuple=True)
        if lines.row is None or lines.col is None:
            return live[0], live[1], values[live]
        return lines.row[live], lines.col[live], values[live]

    def needed(self, read: Tensor | Sequence[int], products: int | None = None) -> Tensor:
        """Return the nodes by which `read` are reached, themselves too, int64 (needed,): along so many edges, any if None.

        Of a network that multiplies by A so many times, and else treats each node by itself, the results of `read` depend on
        the features of these nodes alone.

        Raises:
            ConfigError: `read` are no nodes of this graph.
        """
        row, col, _ = self.edges()
        start, _ = checked(self.nodes, (read, read))
        reached = torch.zeros(self.nodes, dtype=torch.bool, device=row.device).index_fill(0, start.to(row.device), True)
        for _ in range(self.nodes if products is None else products):
            wider = reached.index_fill(0, col[reached[row]], True)
            if torch.equal(wider, reached):
                break
            reached = wider
        return reached.nonzero().flatten()

    def isolated(self) -> Tensor:
        """Return the nodes with no edge to or from another, int64 (isolated,)."""
        row, col, _ = self.edges()
        linked = torch.cat([row[row != col], col[row != col]])
        return (
            torch.ones(self.nodes, dtype=torch.bool, device=row.device).index_fill(0, linked, False).nonzero().flatten()
        )


class FixedAdjacency(Adjacency):
    """Multiply by a matrix A that is not learned: of edges, or dense where that is faster.

    Shapes: (..., nodes, features) -> the same. Buffers are `value`, (nodes, nodes) or (edges,), and `row` and `col`, (edges,),
    which are empty where `value` is a matrix.

    Args:
        nodes: how many there are, >= 1.
        edges: rows and columns of the entries, each in 0 to nodes - 1; those at one place are added up.
        value: the entries, (edges,), >= 0; all 1 when None.

    Raises:
        ConfigError: the edges do not fit the nodes, or the values the edges.
    """

    value: Tensor
    row: Tensor
    col: Tensor

    def __init__(
        self, nodes: int, edges: Edges, value: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        row, col = checked(nodes, edges)
        value = torch.ones(len(row), dtype=dtype, device=row.device) if value is None else value.to(dtype)
        if value.shape != row.shape or not bool((value >= 0).all()):
            raise ConfigError(f"expected {len(row)} values of edges, each at least 0; got shape {tuple(value.shape)}")
        self.nodes = nodes
        dense = len(row) >= DENSE_FROM * nodes**2
        self.register_buffer("value", Lines(nodes, row, col).matrix(value) if dense else value.clone())
        self.register_buffer("row", row.new_empty(0) if dense else row)
        self.register_buffer("col", col.new_empty(0) if dense else col)

    @classmethod
    def normalized(
        cls,
        nodes: int,
        edges: Edges,
        value: Tensor | None = None,
        *,
        scaling: Literal["balanced", "row"] = "balanced",
        loops: bool = True,
    ) -> "FixedAdjacency":
        """Return D^-1/2 (A + I) D^-1/2, "balanced", or D^-1 (A + I), "row"; of A alone if not `loops`.

        Raises:
            ConfigError: as for the class, or an unknown scaling.

        Source: Kipf and Welling (arXiv 1609.02907), section 2.2. For a matrix that is not symmetric D_r^-1/2 A D_c^-1/2.
        """
        if scaling not in get_args(Literal["balanced", "row"]):
            raise ConfigError(f"scaling must be balanced or row, got {scaling!r}")
        row, col = checked(nodes, edges)
        value = torch.ones(len(row), device=row.device) if value is None else value
        if loops:
            own = torch.arange(nodes, device=row.device)
            row, col, value = torch.cat([row, own]), torch.cat([col, own]), torch.cat([value, value.new_ones(nodes)])
        lines = Lines(nodes, row, col)
        return cls(
            nodes, (row, col), by_rows(value, lines) if scaling == "row" else scaled(value, lines, 1, "balanced")
        )

    def part(self, nodes: Tensor | Sequence[int]) -> "FixedAdjacency":
        """Return the graph of `nodes` alone, (kept,), numbered in their order, with the entries that are among them.

        Raises:
            ConfigError: `nodes` are none of this graph's, or one is there twice.
        """
        kept, _ = checked(self.nodes, (nodes, nodes))
        row, col, value = self.edges()
        place = torch.full((self.nodes,), -1, device=row.device)
        place[kept] = torch.arange(len(kept), device=row.device)
        if len(kept) != int((place >= 0).sum()):
            raise ConfigError("a node of the part is given twice; name each once")
        row, col = place[row], place[col]
        inside = (row >= 0) & (col >= 0)
        made = FixedAdjacency(len(kept), (row[inside], col[inside]), value[inside])
        return made.train(self.training)

    def values(self) -> Tensor:
        """Return the entries of A, (nodes, nodes) or (edges,)."""
        return self.value

    def lines(self) -> Lines:
        """Return which rows and columns the entries are in."""
        return Lines(self.nodes) if self.value.ndim == 2 else Lines(self.nodes, self.row, self.col)

    def extra_repr(self) -> str:
        """Say how large the graph is, and how it is stored."""
        return f"{self.nodes}, dense" if self.value.ndim == 2 else f"{self.nodes}, edges={len(self.row)}"


def checked(nodes: int, edges: Edges) -> tuple[Tensor, Tensor]:
    """Return rows and columns of edges as int64.

    Raises:
        ConfigError: they do not fit the nodes.
    """
    row, col = (torch.as_tensor(part, dtype=torch.long) for part in edges)
    if nodes < 1:
        raise ConfigError(f"a graph needs at least one node, got nodes={nodes}")
    if row.ndim != 1 or row.shape != col.shape:
        raise ConfigError(
            f"edges are rows and columns of one length, got shapes {tuple(row.shape)} and {tuple(col.shape)}"
        )
    if len(row) and not 0 <= int(torch.stack([row, col]).min()) <= int(torch.stack([row, col]).max()) < nodes:
        raise ConfigError(f"edges join nodes 0 to {nodes - 1}, got numbers from {int(row.min())} to {int(row.max())}")
    return row, col
