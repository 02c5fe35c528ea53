"""What a search found: its trials, their front, and their networks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pared.errors import RunError
from pared.formats.document import Document, load_document
from pared.measure.metrics import METRICS
from pared.run import answer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Search:
    """A search's folder and its search.json: `trials` are the records of those finished, by place."""

    folder: Path
    summary: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Search":
        """Open what `pared.search` wrote.

        Raises:
            RunError: no search is there, or its summary is damaged.
        """
        path = Path(folder) / "search.json"
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{path} does not exist; give the folder of a search that has finished a trial") from None
        except (ValueError, OSError) as error:
            raise RunError(f"{path} is damaged ({error}); run the same search again to write it anew") from None
        if summary.get("format") != "pared.search" or summary.get("version") != 1:
            raise RunError(f"{path} is of another format; use the pared version that wrote it")
        return cls(Path(folder), summary)

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The records of all finished trials."""
        return list(self.summary["trials"])

    @property
    def front(self) -> list[dict[str, Any]]:
        """The trials that no smaller one equals on validation, largest first."""
        return best_of_each_size(self.trials, METRICS[self.summary["metric"]].goodness)

    def best(self, *, max_params: float | None = None, max_latency: float | None = None) -> dict[str, Any]:
        """Return the record that validation prefers among those within the limits (µs for one row, one thread).

        Raises:
            RunError: there is none.
        """
        goodness = METRICS[self.summary["metric"]].goodness
        limits = (("params", max_params), ("latency_us_1", max_latency))
        within = [r for r in self.trials if all(most is None or r[key] <= most for key, most in limits)]
        if not within:
            smallest = min((r["params"] for r in self.trials), default=0)
            raise RunError(f"no trial is within the limits; the smallest has {smallest} parameters")
        return max(within, key=lambda r: (goodness(r["val_score"]), -r["params"]))

    def document(self, record: Mapping[str, Any]) -> Document:
        """Return the network of a trial with its preprocessing and task."""
        return load_document(self.folder / record["file"])

    def predict(self, data: "str | Path | pd.DataFrame", record: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Return one row of answers for each row of `data`, by a trial's network; by the best when None."""
        from pared.data.source import load_table

        document = self.document(record or self.best())
        return answer(document, load_table(data, **document.reading()).frame)

    def table(self) -> str:
        """Return the front as text, and what it took."""
        metric, summary = METRICS[self.summary["metric"]], self.summary
        lines = [f"{'trial':>5}  {'network':<20}{'params':>10}{'validation':>12}{'test':>10}{'1 row':>10}  file"]
        for record in self.front:
            widths = "-".join(map(str, (record["inputs"], *record["hidden"], summary["outputs"])))
            lines.append(
                f"{record['place']:>5}  {widths:<20}{record['params']:>10,}{metric.format(record['val_score']):>12}"
                f"{metric.format(record['test_score']):>10}{record['latency_us_1']:>7.0f} µs  {record['file']}"
            )
        dropped = f", {summary['dropped']} given up early" if summary["dropped"] else ""
        told = f"{len(self.trials)} trials finished{dropped}; {summary['seconds']:.1f} s of training in all."
        return "\n".join([*lines, "", told])


def best_of_each_size(records: Sequence[dict[str, Any]], goodness: Any) -> list[dict[str, Any]]:
    """Return the records that no smaller one equals on validation, largest first."""
    kept: list[dict[str, Any]] = []
    for record in sorted(records, key=lambda r: (r["params"], -goodness(r["val_score"]))):
        if not kept or goodness(record["val_score"]) > goodness(kept[-1]["val_score"]):
            kept.append(record)
    return kept[::-1]
