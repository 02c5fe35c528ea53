"""A finished run: its front, its chosen model, its answers."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pared.errors import RunError
from pared.formats.document import Document, load_document
from pared.measure.judge import softmax
from pared.train.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

#: Columns of front.csv; the rest of a point's record is in summary.json.
COLUMNS = (
    *("params", "macs", "bytes", "inputs", "hidden", "val_score", "val_loss", "test_score"),
    *("latency_us_1", "latency_us_256", "file", "epoch", "strength"),
)


@dataclass(frozen=True)
class Run:
    """A run folder that is complete; `summary` is its summary.json."""

    folder: Path
    summary: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Open a finished run.

        Raises:
            RunError: no such folder, an unfinished run, or a damaged summary.
        """
        path = Path(folder)
        if not path.is_dir():
            raise RunError(f"{path} is no run folder; give the folder that pared fit wrote")
        try:
            summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            hint = (
                "it was not finished, go on with --resume" if (path / "config.toml").exists() else "give a run folder"
            )
            raise RunError(f"{path} holds no summary.json; {hint}") from None
        except (ValueError, OSError) as error:
            raise RunError(f"{path / 'summary.json'} is damaged ({error}); run pared fit again") from None
        if summary.get("format") != "pared.run" or summary.get("version") != 1:
            raise RunError(f"{path / 'summary.json'} is of another format; use the pared version that wrote it")
        return cls(path, summary)

    @property
    def front(self) -> list[dict[str, Any]]:
        """The points from largest to smallest, as in summary.json."""
        return list(self.summary["front"])

    @property
    def chosen(self) -> dict[str, Any]:
        """The chosen point's record."""
        return dict(self.summary["chosen"])

    def document(self, point: int | None = None) -> Document:
        """Return the chosen model with preprocessing and task, or that of point number `point` of the front."""
        if point is None:
            return load_document(self.folder / "model")
        if not -len(self.front) <= point < len(self.front):
            raise RunError(f"the front has {len(self.front)} points, 0 to {len(self.front) - 1}; got {point}")
        return load_document(self.folder / self.front[point]["file"])

    def model(self, point: int | None = None) -> torch.nn.Sequential:
        """Return the chosen plain network, or that of point number `point`; it takes encoded inputs, (n, inputs)."""
        return self.document(point).model

    def predict(self, data: "str | Path | pd.DataFrame", *, point: int | None = None, **dialect: Any) -> "pd.DataFrame":
        """Return one row of answers for each row of `data`: `prediction` and a probability per class, or the targets.

        Raises:
            DataError: a column is missing or holds what cannot be read.
        """
        from pared.data.source import load_table

        document = self.document(point)
        return answer(document, load_table(data, **document.reading(), **dialect).frame)

    def report(self) -> Path:
        """Write report.html and card.md anew and return the report's path."""
        from pared.report.card import write_card
        from pared.report.html import write_report

        write_card(self.folder)
        return write_report(self.folder)

    def table(self) -> str:
        """Return the table of dense start, front, chosen point and references as text."""
        from pared.report.reading import read_run
        from pared.report.table import render_table

        return render_table(read_run(self.folder))


def answer(document: Document, frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return a frame of answers for the rows of `frame`: `prediction` and probabilities, or the targets."""
    import pandas as pd

    with torch.inference_mode():
        outputs = document.model(torch.from_numpy(document.encoder.transform(frame))).numpy()
    task = document.task
    if task.kind == "regression":
        return pd.DataFrame(task.values(outputs), columns=list(task.targets))
    labels = pd.DataFrame({"prediction": task.labels(outputs.argmax(1))})
    names = [f"probability of {name}" for name in task.classes]
    return pd.concat([labels, pd.DataFrame(softmax(outputs), columns=names)], axis=1)


def write_summary(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write front.csv, then summary.json, which makes the run complete."""
    rows = io.StringIO()
    writer = csv.DictWriter(rows, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in summary["front"]:
        writer.writerow({**record, "hidden": "-".join(map(str, record["hidden"]))})
    folder.write("front.csv", rows.getvalue())
    folder.write("summary.json", json.dumps(summary, indent=1, ensure_ascii=False))
