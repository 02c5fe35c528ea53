"""From what a user said to a problem ready to learn from: the table read and split, the settings checked."""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pared._version import __version__
from pared.data.problem import Problem, prepare
from pared.data.source import Table, load_table
from pared.data.task import Kind
from pared.errors import ConfigError, DataError
from pared.measure.judge import Judge, arrays
from pared.measure.metrics import resolve_metric
from pared.train.arrays import Arrays, balanced
from pared.train.context import Context, Observer
from pared.train.settings import Settings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Asked:
    """A problem, who judges it, how to learn it, and what to note of all that in config.toml."""

    problem: Problem
    judge: Judge
    settings: Settings
    config: dict[str, Any]

    def context(self, folder: Path | None, observer: Observer) -> Context:
        """Return what the phases of learning share; checkpoints go to `folder`."""
        return Context(
            _weighted(self.problem, self.settings),
            arrays(self.problem.validation),
            self.problem.task.outputs,
            self.settings,
            self.judge.score,
            self.judge.baseline(self.problem.train, self.problem.validation),
            self.problem.encoder.group_sizes(),
            folder,
            observer,
        )


def ask(
    data: "str | Path | pd.DataFrame",
    target: str | Sequence[str] | None,
    *,
    test: "str | Path | pd.DataFrame | None",
    task: Kind | None,
    weights: str | None,
    drop: Sequence[str],
    settings: Settings,
    dialect: Mapping[str, Any],
    command: str,
) -> Asked:
    """Read and split a table, see `pared.fit` for the arguments; `dialect` are those of `load_table`.

    Raises:
        ParedError: anything a person can mend.
    """
    table = load_table(data, **dialect)
    tested = load_table(test, **dialect) if test is not None else None
    targets = _targets(target, table)
    problem = prepare(table, targets, kind=task, test=tested, weights=weights, drop=drop, seed=settings.seed)
    metric = resolve_metric(settings.metric, problem.task.kind)
    _check_device(settings.device)
    about = {
        "source": table.source,
        "sha256": table.sha256,
        "rows": len(table.frame),
        "target": targets,
        "task": problem.task.kind,
        "test": tested.source if tested else None,
        "test_sha256": tested.sha256 if tested else None,
        "weights": weights,
        "drop": list(drop),
    }
    config = {"command": command, "data": about, "settings": settings.to_json(), "versions": versions()}
    return Asked(problem, Judge(problem.task, metric), settings, config)


def with_options(settings: Settings | None, options: Mapping[str, Any]) -> Settings:
    """Return the settings with single ones replaced.

    Raises:
        ConfigError: an unknown name, or a value out of its range.
    """
    Settings.from_json(options)
    return dataclasses.replace(settings or Settings(), **options)


def versions() -> dict[str, str]:
    """Return what made a result, by name."""
    return {
        "pared": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(terse=True),
    }


def spoken(door: str, data: Any, target: str | Sequence[str] | None) -> str:
    """Return a call from Python as the command of a run."""
    names = "" if target is None else target if isinstance(target, str) else ", ".join(target)
    return f"pared.{door}({data if isinstance(data, str | Path) else 'frame'!s}, target={names})"


def _weighted(problem: Problem, settings: Settings) -> Arrays:
    """Training rows with row weights times class weights, mean 1."""
    rows = arrays(problem.train)
    if settings.class_weights is None:
        return rows
    if problem.task.kind != "classification":
        raise ConfigError("class_weights balance classes, and this is a regression; leave them out")
    return balanced(rows, problem.task.outputs)


def _targets(target: str | Sequence[str] | None, table: Table) -> list[str]:
    if target is None:
        if table.target is None:
            raise DataError(f"{table.source}: which column is to be predicted? name it with --target (target=…)")
        return [table.target]
    return [target] if isinstance(target, str) else list(target)


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); use cpu") from None
