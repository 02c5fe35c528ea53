"""UCI sets in the preparation of Fernández-Delgado et al. (2014), *Do we need hundreds of classifiers…?*, JMLR 15:3133.

A set is a folder NAME with `NAME.txt` (how many inputs, classes and rows), one or two tables `*_R.dat` of numbers, and row
numbers of the splits: `conxuntos.dat` (two halves) and `conxuntos_kfold.dat` (four pairs of three quarters and a quarter).

What there is to know of the files, all in the originals:

- Column 0 of a table is the row number, the last is the class, from 0.
- Row numbers of splits count from 0. Of a set with two tables they are those of the first one, the training table.
- The four quarters overlap: they are drawn anew each time, and are no cross-validation.
- Inputs are standardised by the mean and deviation of their own table, the test table too. Two test tables are not
  standardised at all (`RAW`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pared.errors import ConfigError, DataError

#: Sets whose test table has the numbers as they were measured, and the file with those of the training rows.
RAW = {"hill-valley": "Hill_Valley_with_noise_Training.data", "image-segmentation": "segmentation.data"}
FOLDS = 4


@dataclass(frozen=True)
class UciSet:
    """A set and its published splits; row numbers are int64, those of a test table follow those of the training table.

    Attributes:
        name: that of the folder.
        x: inputs, float32 (n, d).
        y: classes from 0, int64 (n,).
        classes: how many there are.
        fixed_test: the rows of the test table, None where there is none.
        tuning: two halves of the (training) table, to choose hyper-parameters on one by training on the other.
        folds: four pairs of rows of that table, to train on and to test on.
    """

    name: str
    x: Tensor
    y: Tensor
    classes: int
    fixed_test: Tensor | None
    tuning: tuple[Tensor, Tensor]
    folds: tuple[tuple[Tensor, Tensor], ...]

    def split(
        self, *, fold: int | Literal["tuning"] = 0, validation: float = 0.15, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows to train on, those to validate on, a share of the former drawn by `seed`, and those of the test.

        The test is the test table, which all training rows then go with; without one it is that of `fold`. The fold "tuning"
        is the two halves, whether or not there is a test table: the accuracies of the class rates' paper are shares of the
        second half. Rows are ascending and depend on nothing but the arguments.

        Raises:
            ConfigError: no such fold, a validation share outside [0, 1).
        """
        if fold != "tuning" and fold not in range(len(self.folds)):
            raise ConfigError(f'fold must be 0 to {len(self.folds) - 1} or "tuning", got {fold!r}')
        if not 0.0 <= validation < 1.0:
            raise ConfigError(f"validation is a share of the training rows, at least 0 and below 1, got {validation}")
        if fold == "tuning":
            train, test = self.tuning
        elif self.fixed_test is not None:
            train, test = torch.arange(len(self.y) - len(self.fixed_test)), self.fixed_test
        else:
            train, test = self.folds[fold]
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        held = round(validation * len(train))
        return train[order[held:]].sort().values, train[order[:held]].sort().values, test


def uci_sets(folder: str | Path) -> list[str]:
    """Return the names of the sets in a folder, those whose tables are there, in order."""
    found = []
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []:
        if (path / f"{path.name}.txt").is_file() and all((path / name).is_file() for name in _tables(_read(path))):
            found.append(path.name)
    return found


def read_uci(folder: str | Path) -> UciSet:
    """Return the set of a folder, each number where `NAME.txt` says how many there are.

    A test table that is not standardised gets the mean and deviation of the training rows as measured: what the training
    table was standardised by, so that equal numbers stay equal.

    Raises:
        DataError: a file is missing or damaged, or does not have as many rows, inputs or classes as `NAME.txt` says.
    """
    folder = Path(folder)
    facts = _read(folder)
    inputs, classes = (_count(folder, facts, key) for key in ("n_entradas", "n_clases"))
    tables = [_table(folder / name, inputs, classes) for name in _tables(facts)]
    for part, (x, _) in enumerate(tables, 1):
        if len(x) != _count(folder, facts, f"n_patrons{part}"):
            raise DataError(
                f"{folder / facts[f'fich{part}']} has {len(x)} rows, {folder.name}.txt says "
                f"{facts[f'n_patrons{part}']}; get both anew"
            )
    if len(tables) == 2:
        tables[1] = (_standardised(folder, tables[1][0]), tables[1][1])
    rows = len(tables[0][0])
    y = np.concatenate([y for _, y in tables])
    if len(np.unique(y)) != classes:
        raise DataError(
            f"{folder}: the tables have {len(np.unique(y))} classes, {folder.name}.txt says {classes}; get both anew"
        )
    halves = _indices(folder / "conxuntos.dat", 1, rows)
    sizes = [_count(folder, facts, key) for key in ("n_patrons_entrena", "n_patrons_valida")]
    if [len(half) for half in halves[0]] != sizes:
        raise DataError(
            f"{folder / 'conxuntos.dat'} has halves of {', '.join(str(len(half)) for half in halves[0])} rows, "
            f"{folder.name}.txt says {sizes[0]}, {sizes[1]}; get both anew"
        )
    return UciSet(
        folder.name,
        torch.from_numpy(np.concatenate([x for x, _ in tables]).astype(np.float32)),
        torch.from_numpy(y),
        classes,
        torch.arange(rows, len(y)) if len(tables) == 2 else None,
        halves[0],
        _indices(folder / "conxuntos_kfold.dat", FOLDS, rows),
    )


def _read(folder: Path) -> dict[str, str]:
    """What `NAME.txt` says."""
    lines = [line.partition("=") for line in _text(folder / f"{folder.name}.txt").splitlines()]
    return {key.strip(): value.strip() for key, sign, value in lines if sign}


def _tables(facts: dict[str, str]) -> list[str]:
    """The names of one table or two; none is no name, which no folder has."""
    return [facts.get("fich1", ""), *([facts["fich2"]] if "fich2" in facts else [])]


def _count(folder: Path, facts: dict[str, str], key: str) -> int:
    told = facts.get(key, "")
    if not told.isdecimal() or int(told) < 1:
        raise DataError(f"{folder / folder.name}.txt: expected a line {key}= with a number of at least 1, got {told!r}")
    return int(told)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); the set needs its folder of the archive by Fernández-Delgado et al., whole"
        ) from None


def _table(path: Path, inputs: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, float64 (n, d), and classes, int64 (n,), of a table."""
    lines = [line.split() for line in _text(path).splitlines()[1:] if line.strip()]
    wrong = next((i for i, line in enumerate(lines, 2) if len(line) != inputs + 2), None)
    if wrong is not None or not lines:
        got = f"{len(lines[wrong - 2])} in line {wrong}" if wrong is not None else "no rows"
        raise DataError(f"{path}: expected rows of {inputs + 2} numbers (row, {inputs} inputs, class), got {got}")
    try:
        numbers = np.array(lines, dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path} has a cell that is no number ({error}); get the file anew") from None
    y = numbers[:, -1]
    if not np.isfinite(numbers).all() or not np.isin(y, np.arange(classes)).all():
        raise DataError(f"{path}: expected finite inputs and classes 0 to {classes - 1}; get the file anew")
    if not (numbers[:, 0] == np.arange(1, len(numbers) + 1)).all():
        raise DataError(f"{path}: expected the row's number, from 1, in the first column; get the file anew")
    return numbers[:, 1:-1], y.astype(np.int64)


def _standardised(folder: Path, x: np.ndarray) -> np.ndarray:
    """The inputs of a test table, (n, d), standardised by the training rows as measured if it is not already."""
    if np.abs(x.mean(0)).max() < 0.01:  # by its own mean: as the archive has it, though not what the training table has
        return x
    if folder.name not in RAW:
        raise DataError(f"{folder}: the test table is not standardised, and of this set no file as measured is known")
    path = folder / RAW[folder.name]
    measured = _measured(path)
    measured = measured[:, measured.std(0) > 0]  # the archive has left out inputs that do not vary
    if measured.shape[1] != x.shape[1]:
        raise DataError(f"{path}: expected {x.shape[1]} inputs that vary, got {measured.shape[1]}; get the file anew")
    return (x - measured.mean(0)) / measured.std(0, ddof=1)


def _measured(path: Path) -> np.ndarray:
    """The numbers of a file as published, without the class, which is a name in front or a number at the end."""
    lines = [line.replace(",", " ").split() for line in _text(path).splitlines() if line.strip()]
    try:
        if not lines:
            raise ValueError("it is empty")
        return np.array([line[1:] if line[0][0].isalpha() else line[:-1] for line in lines], dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path}: expected rows of numbers and a class ({error}); get the file anew") from None


def _indices(path: Path, pairs: int, rows: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Pairs of ascending row numbers, each pair a partition of all `rows`."""
    try:
        found = [np.array(line.split(), dtype=np.int64) for line in _text(path).splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"{path} has something else than row numbers ({error}); get the file anew") from None
    if len(found) != 2 * pairs:
        raise DataError(f"{path}: expected {2 * pairs} lines of row numbers, got {len(found)}; get the file anew")
    for line in range(0, 2 * pairs, 2):
        both = np.sort(np.concatenate(found[line : line + 2]))
        if not np.array_equal(both, np.arange(rows)):
            raise DataError(
                f"{path}, lines {line + 1} and {line + 2}: expected each of the rows 0 to {rows - 1} once, got "
                f"{len(both)} numbers; get the file anew"
            )
    ordered = [torch.from_numpy(np.sort(line)) for line in found]
    return tuple(zip(ordered[::2], ordered[1::2], strict=True))
