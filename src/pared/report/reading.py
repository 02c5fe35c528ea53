"""Read a finished run folder back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pared.measure.metrics import METRICS, Metric
from pared.run import Run
from pared.train.folder import read_lines


@dataclass(frozen=True)
class RunRecord:
    """All that a report needs: summary.json, the lines of metrics.jsonl and events.jsonl, config.toml as text."""

    summary: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    config: str

    @property
    def metric(self) -> Metric:
        """The metric that chose."""
        return METRICS[self.summary["metric"]]

    def phase(self, name: str) -> list[dict[str, Any]]:
        """Return the epochs of a phase, "dense" or "shrink"."""
        return [record for record in self.metrics if record["phase"] == name]


def read_run(folder: Path) -> RunRecord:
    """Return the record of a finished run.

    Raises:
        RunError: the run is unfinished or a file is damaged.
    """
    run = Run.open(folder)
    config = folder / "config.toml"
    text = config.read_text(encoding="utf-8", errors="replace") if config.exists() else ""
    return RunRecord(run.summary, read_lines(folder / "metrics.jsonl"), read_lines(folder / "events.jsonl"), text)
