"""Where the entries of a sparse matrix are."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pared.errors import ConfigError

#: The most rows, columns and entries that int32 indices can number.
MOST = 2**31 - 1
_INTEGERS = tuple(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64))


@dataclass(frozen=True, eq=False)
class Pattern:
    """The entries of a (rows, columns) matrix, by rows and by columns, int32; a value per entry is kept elsewhere.

    Row r has the entries crow[r] up to crow[r + 1], in the columns col[...], ascending. Column c has the entries
    perm[crow_t[c]] up to perm[crow_t[c + 1]], in the rows col_t[...], ascending. Make one with `from_csr`, `from_mask`,
    `from_entries` or `random`, which check it. Do not write into its tensors.

    Shapes: crow (rows + 1,), crow_t (columns + 1,), the others (count,). Memory grows with count + rows + columns.
    """

    rows: int
    columns: int
    crow: Tensor
    col: Tensor
    crow_t: Tensor
    col_t: Tensor
    perm: Tensor

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self.col)

    @classmethod
    def from_csr(cls, crow: Tensor, col: Tensor, columns: int) -> "Pattern":
        """Return the pattern with these rows; indices are copied to int32.

        Shapes: crow (rows + 1,), col (count,), of integers.

        Raises:
            ConfigError: row ends do not ascend from 0 to count, columns do not ascend inside a row, or one is out of range.
        """
        crow, col = check_csr(crow, col, columns)
        rows, device = len(crow) - 1, crow.device
        crow, col = (index.to(torch.int32, copy=True).contiguous() for index in (crow, col))
        order = col.sort(stable=True).indices
        crow_t = torch.zeros(columns + 1, dtype=torch.int32, device=device)
        crow_t[1:] = torch.bincount(col, minlength=columns).cumsum(0)
        row = rows_of(crow, len(col)).to(torch.int32)
        return cls(rows, columns, crow, col, crow_t, row[order], order.to(torch.int32))

    @classmethod
    def from_mask(cls, mask: Tensor) -> "Pattern":
        """Return the pattern of what is not 0 or False in `mask`, (rows, columns).

        Raises:
            ConfigError: `mask` is not a matrix.
        """
        if mask.ndim != 2:
            raise ConfigError(f"a mask must be a matrix (rows, columns), got shape {tuple(mask.shape)}")
        return cls._from_ascending(mask.flatten().nonzero().flatten(), *mask.shape)

    @classmethod
    def from_entries(cls, entries: Tensor, rows: int, columns: int) -> "Pattern":
        """Return the pattern of these numbers in the flat (rows, columns) matrix, integers (count,), in any order.

        Raises:
            ConfigError: a number is out of range or there twice.
        """
        ordered = entries.long().sort().values
        if len(ordered) and (int(ordered[0]) < 0 or int(ordered[-1]) >= rows * columns):
            raise ConfigError(
                f"entries must lie in 0 to {rows * columns - 1}, got {int(ordered[0])} to {int(ordered[-1])}"
            )
        if bool((ordered[1:] == ordered[:-1]).any()):
            raise ConfigError("an entry is there twice; make the numbers unique first")
        return cls._from_ascending(ordered, rows, columns)

    @classmethod
    def _from_ascending(cls, entries: Tensor, rows: int, columns: int) -> "Pattern":
        if min(rows, columns) < 1 or max(rows, columns) > MOST:
            raise ConfigError(f"rows and columns must be in 1 to {MOST}, got {rows} and {columns}")
        crow = torch.zeros(rows + 1, dtype=torch.int64, device=entries.device)
        crow[1:] = torch.bincount(entries // columns, minlength=rows).cumsum(0)
        return cls.from_csr(crow, entries % columns, columns)

    @classmethod
    def random(cls, rows: int, columns: int, density: float, generator: torch.Generator | None = None) -> "Pattern":
        """Return round(density · rows · columns) entries, drawn without replacement, on the generator's device or the CPU.

        Memory grows with the number of entries.

        Raises:
            ConfigError: density is not in [0, 1], or a size is out of range.
        """
        if not 0.0 <= density <= 1.0:
            raise ConfigError(f"density must be in [0, 1], got {density}")
        total = rows * columns
        return cls._from_ascending(choose(total, round(density * total), generator), rows, columns)

    def to(self, device: torch.device | str) -> "Pattern":
        """Return the pattern on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name not in ("rows", "columns")}
        return replace(self, **moved)

    def row_of(self) -> Tensor:
        """Return the row of each entry, int64 (count,)."""
        return rows_of(self.crow, self.count)

    def entries(self) -> Tensor:
        """Return each entry's number in the flat matrix, ascending, int64 (count,)."""
        return self.row_of() * self.columns + self.col

    def to_dense(self, values: Tensor) -> Tensor:
        """Return the matrix (rows, columns) with `values` (count,) in the entries and 0 elsewhere."""
        dense = values.new_zeros(self.rows * self.columns)
        return dense.index_put((self.entries(),), values).view(self.rows, self.columns)

    def source(self, old: "Pattern") -> Tensor:
        """Return for each entry its number among those of `old`, or -1 if it is new there, int64 (count,).

        Raises:
            ConfigError: `old` has other rows or columns.
        """
        if (old.rows, old.columns) != (self.rows, self.columns):
            raise ConfigError(
                f"expected two patterns of one size, got ({old.rows}, {old.columns}) and ({self.rows}, {self.columns})"
            )
        ours, theirs = self.entries(), old.entries()
        if not len(theirs):
            return torch.full_like(ours, -1)
        place = torch.searchsorted(theirs, ours).clamp_(max=len(theirs) - 1)
        return torch.where(theirs[place] == ours, place, -1)

    def operands(self) -> tuple[Any, ...]:
        """Return the pattern as operators of `pared.ops.csr` take it: by rows, then by columns."""
        return self.crow, self.col, None, self.crow_t, self.col_t, self.perm


def rows_of(crow: Tensor, count: int) -> Tensor:
    """Return the row of each of the `count` entries, int64 (count,)."""
    numbers = torch.arange(len(crow) - 1, device=crow.device)
    return numbers.repeat_interleave(crow.diff(), output_size=count)


def check_csr(crow: Tensor, col: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return both in int64, since differences of unsigned numbers do not go below 0.

    Raises:
        ConfigError: they are no pattern with this many columns.
    """
    whole = all(index.dtype in _INTEGERS for index in (crow, col))
    if crow.ndim != 1 or col.ndim != 1 or len(crow) < 2 or not whole or crow.device != col.device:
        raise ConfigError(
            f"expected crow (rows + 1,) and col (count,) of integers on one device; got {crow.dtype} {tuple(crow.shape)} "
            f"on {crow.device} and {col.dtype} {tuple(col.shape)} on {col.device}"
        )
    if not 1 <= columns <= MOST or max(len(crow) - 1, len(col)) > MOST:
        raise ConfigError(
            f"rows, columns and entries must be at most {MOST} and columns at least 1; got {len(crow) - 1}, {columns}, "
            f"{len(col)}"
        )
    crow, col = crow.detach().long(), col.detach().long()
    if int(crow[0]) != 0 or int(crow[-1]) != len(col) or bool((crow.diff() < 0).any()):
        raise ConfigError(
            f"crow must ascend from 0 to the {len(col)} entries of col, got {crow[:3].tolist()} and so on"
        )
    if not len(col):
        return crow, col
    if int(col.min()) < 0 or int(col.max()) >= columns:
        raise ConfigError(f"columns must lie in 0 to {columns - 1}, got {int(col.min())} to {int(col.max())}")
    ascends = col.diff() > 0
    starts = crow[1:-1]
    ascends[starts[(starts > 0) & (starts < len(col))] - 1] = True  # from one row to the next they need not
    if not bool(ascends.all()):
        raise ConfigError("the columns of a row must ascend and be there once; make the pattern with from_entries")
    return crow, col


def choose(total: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Return `count` of the numbers below `total`, ascending, each set of them as likely as any other."""
    device = "cpu" if generator is None else generator.device
    if count > total // 4:
        return torch.randperm(total, generator=generator, device=device)[:count].sort().values
    found = torch.empty(0, dtype=torch.int64, device=device)
    while len(found) < count:
        more = torch.randint(total, (count + count // 4 + 16,), generator=generator, device=device)
        found = torch.cat([found, more]).unique()
    kept = torch.randperm(len(found), generator=generator, device=device)[:count]
    return found[kept].sort().values
