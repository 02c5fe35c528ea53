"""A graph that is learned: edges compete at both their ends, and those that fall behind get exactly nothing."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn.gate import GUARD, LARGEST, DeadGrad, Positive
from pared.nn.graph import Adjacency, Edges, FixedAdjacency, checked
from pared.ops.competition import check_p, p_powers, p_root, thresholded
from pared.ops.lines import Lines
from pared.ops.sinkhorn import Scaling, by_rows, scaled

#: How a learned matrix is scaled: towards sums of 1 of rows and columns, or of rows alone.
Normalization = Scaling | Literal["row"]
#: What an edge has to exceed: the thresholds of its row and its column together, or the larger one.
Thresholds = Literal["sum", "max"]


class SparseAdjacency(Adjacency):
    """Multiply by a non-negative matrix A over nodes whose entries are learned, many of them as exactly 0.

    Shapes: (..., nodes, features) -> the same. Parameters are `theta` (E,), the paper's alpha, one for each entry of the
    pattern (`row`, `col`), and `beta_row` and `beta_col` (nodes,); `rest_row` and `rest_col` (nodes,) are what edges that
    were killed still add to the sums of strengths, so that others keep their values; a method notes in `awake` (E,) who was
    not 0 of late.

        gamma = sigmoid(theta),  raw_ij = max(gamma_ij - sigmoid(beta_row_i) · sum_j gamma_ij
                                                       - sigmoid(beta_col_j) · sum_i gamma_ij, 0),  A = scaled raw

    With `symmetric` entries (i, j) and (j, i) have one theta, kept at i <= j, and rows and columns one beta and one rest,
    those of the rows; A is symmetric unless "sinkhorn" stops before it has converged, or "row" scales it.

    Args:
        nodes: how many there are, >= 1.
        edges: rows and columns of the pattern, each in 0 to nodes - 1; all pairs when None. One given twice is one.
        scaling: "sinkhorn" or "balanced", both towards a doubly stochastic A, or "row": sums of rows are 1.
        iterations: of the scaling; when None 20, or 30 if the pattern leaves pairs out. "row" takes none.
        symmetric: whether A is to be the same in both directions.
        thresholds: "sum", or "max", the larger of the two.
        loops: put self loops into the pattern, and never let one die: its threshold stays below its gamma, so that no row or
            column is all 0. Without, such a row or column stays 0, and so do its sums.
        positive, dead_grad, slope: as for `Gate`.

    Raises:
        ConfigError: an argument is out of range.

    Source: differentiable sparsification (arXiv 1910.03201), section GCN, with equations 2 and 3 for rows and columns.
    Where the paper says only that they are parameterized "similarly", thresholds are added up. Initial values: theta = 0,
    sigmoid(beta) = 1 / (2 n (n + 1)), or without the 2 for "max", n the entries of that row or column. As in the paper an
    entry then loses a share of 1 / (n + 1) of its strength where rows and columns are alike, and at most half anywhere.
    Deviation: self loops stay, as scaling needs support. Edges of one direction only can lack total support even so.
    """

    theta: nn.Parameter
    beta_row: nn.Parameter
    beta_col: nn.Parameter | None
    alive: Tensor
    awake: Tensor
    row: Tensor
    col: Tensor
    rest_row: Tensor
    rest_col: Tensor | None

    def __init__(
        self,
        nodes: int,
        *,
        edges: Edges | None = None,
        scaling: Normalization = "sinkhorn",
        iterations: int | None = None,
        symmetric: bool = False,
        thresholds: Thresholds = "sum",
        loops: bool = True,
        positive: Positive = "sigmoid",
        dead_grad: DeadGrad = "none",
        slope: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_options(scaling, iterations, thresholds, positive, dead_grad, slope)
        super().__init__()
        row, col = _pattern(nodes, edges, symmetric=symmetric, loops=loops)
        everything = len(row) == (nodes * (nodes + 1) // 2 if symmetric else nodes**2)
        self.nodes, self.symmetric, self.thresholds, self.loops = nodes, symmetric, thresholds, loops
        ends = [torch.cat([row, col[row != col]])] if symmetric else [row, col]
        self.longest = max(
            int(end.bincount(minlength=nodes).max()) for end in ends
        )  # entries of a row or column, at most
        self.scaling: Normalization = scaling
        self.iterations = (20 if everything else 30) if iterations is None else iterations
        self.positive, self.dead_grad, self.slope = positive, dead_grad, slope
        self.theta = nn.Parameter(torch.empty(len(row), device=device, dtype=dtype))
        self.register_buffer("alive", torch.ones(len(row), dtype=torch.bool, device=device))
        self.register_buffer("awake", torch.zeros_like(self.alive))
        self.register_buffer("row", row.to(device))
        self.register_buffer("col", col.to(device))
        for side in ("row", "col"):
            shared = symmetric and side == "col"
            beta = None if shared else nn.Parameter(torch.empty(nodes, device=device, dtype=dtype))
            self.register_parameter(f"beta_{side}", beta)
            self.register_buffer(f"rest_{side}", None if beta is None else torch.zeros_like(beta.detach()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Bring all entries of the pattern back to life, with equal strengths; nothing is drawn."""
        del generator
        self.theta.zero_()
        self.alive.fill_(True)
        self.awake.zero_()
        lines, ones = self.lines(), self._mirrored(torch.ones_like(self.theta))
        both = 2.0 if self.thresholds == "sum" else 1.0
        for beta, rest, n in (
            (self.beta_row, self.rest_row, lines.row_sums(ones)),
            (self.beta_col, self.rest_col, lines.col_sums(ones)),
        ):
            if beta is not None and rest is not None:
                n = n.clamp(min=1.0)  # of a line without entries, whose beta does nothing
                beta.copy_((both * n * (n + 1.0) - 1.0).log().neg())
                rest.zero_()

    @property
    def channels(self) -> int:
        """How many entries of the pattern compete."""
        return len(self.alive)

    def live_channels(self) -> Tensor:
        """Return the numbers of the entries that are alive, int64 (kept,)."""
        return self.alive.nonzero().flatten()

    def silence(self) -> None:
        """Do nothing: dead entries are out of all sums."""

    def entry_state(self) -> dict[str, Tensor]:
        """Return what has a number for each entry of the pattern, by name, what a method remembers of them included."""
        return {key: t for key, t in self.state_dict(keep_vars=True).items() if key not in _OF_NODES}

    def lines(self) -> Lines:
        """Return which rows and columns the entries are in; with `symmetric` each entry and then each mirrored one."""
        if self.symmetric:
            return Lines(self.nodes, torch.cat([self.row, self.col]), torch.cat([self.col, self.row]))
        everything = len(self.theta) == self.nodes**2  # in the order of a matrix
        return Lines(self.nodes) if everything else Lines(self.nodes, self.row, self.col)

    def gamma(self) -> Tensor:
        """Return how strong each entry is, (E,): above 0, but 0 where it was killed."""
        alpha = self.theta.clamp(-LARGEST, LARGEST)
        gamma = alpha.sigmoid() if self.positive == "sigmoid" else alpha.exp()
        return gamma.masked_fill(self.alive.logical_not(), 0.0)

    def values(self) -> Tensor:
        """Return the entries of A: (nodes, nodes) where all pairs are there, or else (E,), with `symmetric` (2 E,)."""
        raw, lines = self._raw(), self.lines()
        return by_rows(raw, lines) if self.scaling == "row" else scaled(raw, lines, self.iterations, self.scaling)

    def _raw(self) -> Tensor:
        """The entries before they are scaled, which are 0 where they are 0 afterwards."""
        gamma, lines = self._mirrored(self.gamma()), self.lines()
        raw = thresholded(
            gamma - self._threshold(gamma, lines),
            0.0 if self.dead_grad == "none" else self.slope,
            smooth=self.dead_grad == "elu",
        )
        return raw.masked_fill(gamma == 0, 0.0)

    def _threshold(self, gamma: Tensor, lines: Lines) -> Tensor:
        beta_col = self.beta_row if self.beta_col is None else self.beta_col
        rest_col = self.rest_row if self.rest_col is None else self.rest_col
        of_rows = lines.at_rows(self.beta_row.sigmoid() * (lines.row_sums(gamma) + self.rest_row))
        of_cols = lines.at_cols(beta_col.sigmoid() * (lines.col_sums(gamma) + rest_col))
        threshold = of_rows + of_cols if self.thresholds == "sum" else torch.maximum(of_rows, of_cols)
        if self.loops:
            held = torch.minimum(threshold, gamma / (1.0 + GUARD))
            threshold = torch.where(lines.on_diagonal(gamma), held, threshold)
        return threshold

    def _mirrored(self, x: Tensor) -> Tensor:
        """Return numbers of pairs as those of entries: of both directions, where one stands for both."""
        if self.symmetric:
            return torch.cat([x, x.masked_fill(self.row == self.col, 0.0)])
        return x.view(self.nodes, self.nodes) if len(x) == self.nodes**2 else x

    def penalty(self, p: float = 0.5, values: Tensor | None = None) -> Tensor:
        """Return the sum of the p-norms of all rows and columns of A, a scalar; `values` as for a forward pass.

        Raises:
            ConfigError: p is not above 0 and below 1, or too small for the entries of the longest row or column.

        Source: the paper's regularization term in section GCN; without lambda.
        """
        check_p(p, self.longest)
        lines, powers = self.lines(), p_powers(self.values() if values is None else values, p)
        return (p_root(lines.row_sums(powers), p) + p_root(lines.col_sums(powers), p)).sum()

    @torch.no_grad()
    def dead(self) -> Tensor:
        """Return which entries of the pattern are 0 now, boolean (E,), but for self loops that are kept.

        Where that would be all of them the strongest is spared.
        """
        zero = (self._raw() == 0).flatten()[: len(self.theta)]
        if self.loops:
            return zero & (self.row != self.col)
        return zero & ~(zero.all() & (self.gamma() == self.gamma().amax())) if len(zero) else zero

    @torch.no_grad()
    def kill(self, dead: Tensor) -> None:
        """Let the entries `dead`, boolean (E,), never come back; no other value changes if theirs are 0.

        Raises:
            ConfigError: one of them is a self loop that scaling needs.
        """
        dead = dead & self.alive
        if self.loops and bool((dead & (self.row == self.col)).any()):
            raise ConfigError("self loops cannot be killed, as rows and columns could not be scaled; use loops=False")
        gone = self.gamma().masked_fill(~dead, 0.0)
        self.rest_row.index_add_(0, self.row, gone)
        other = gone.masked_fill(self.row == self.col, 0.0) if self.rest_col is None else gone
        (self.rest_row if self.rest_col is None else self.rest_col).index_add_(0, self.col, other)
        self.alive &= ~dead

    @torch.no_grad()
    def realize(self) -> FixedAdjacency:
        """Return a module without learned structure that multiplies by the same A."""
        row, col, value = self.edges()
        return FixedAdjacency(self.nodes, (row, col), value).train(self.training)

    def extra_repr(self) -> str:
        """Say how many nodes and entries there are, and what differs from the defaults."""
        told = f"{self.nodes}, entries={len(self.theta)}, scaling={self.scaling!r}"
        told += ", symmetric=True" if self.symmetric else ""
        return told + ("" if self.dead_grad == "none" else f", dead_grad={self.dead_grad!r}")


#: Parameters and buffers with a number for each node.
_OF_NODES = ("beta_row", "beta_col", "rest_row", "rest_col")


def fix_adjacency(model: nn.Module) -> nn.Module:
    """Put a `FixedAdjacency` of the same A wherever `model` holds a `SparseAdjacency`.

    `model` is changed, unless it is itself one: its fixed form is returned then.
    """
    made: dict[int, FixedAdjacency] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, SparseAdjacency):
                parent._modules[name] = made.setdefault(id(child), child.realize())
    return model.realize() if isinstance(model, SparseAdjacency) else model


def _pattern(nodes: int, edges: Edges | None, *, symmetric: bool, loops: bool) -> tuple[Tensor, Tensor]:
    """Return rows and columns in the order of a matrix; with `symmetric` those on and above the diagonal."""
    own = torch.arange(max(nodes, 0))
    if edges is None:
        edges = own.repeat_interleave(len(own)), own.repeat(len(own))
    row, col = (part.cpu() for part in checked(nodes, edges))
    if symmetric:
        row, col = torch.minimum(row, col), torch.maximum(row, col)
    if loops:
        row, col = torch.cat([row, own]), torch.cat([col, own])
    place = (row * nodes + col).unique()
    return place // nodes, place % nodes


def _check_options(
    scaling: str, iterations: int | None, thresholds: str, positive: str, dead_grad: str, slope: float
) -> None:
    for name, got, known in (
        ("scaling", scaling, (*get_args(Scaling), "row")),
        ("thresholds", thresholds, get_args(Thresholds)),
        ("positive", positive, get_args(Positive)),
        ("dead_grad", dead_grad, get_args(DeadGrad)),
    ):
        if got not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}; got {got!r}")
    if iterations is not None and iterations < 0:
        raise ConfigError(f"iterations must be at least 0, got {iterations}")
    if not 0.0 < slope < math.inf:
        raise ConfigError(f"slope must be above 0 and finite, got {slope}")
