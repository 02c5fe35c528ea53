"""A card in Markdown: what the model is, what it was judged on, what it is not."""

import re
from pathlib import Path

from pared.report.html import LIMITS, headline
from pared.report.reading import RunRecord, read_run
from pared.report.table import render_table
from pared.storage import write_named


def write_card(folder: Path) -> Path:
    """Write card.md into a finished run folder and return its path."""
    path = folder / "card.md"
    write_named(path, render_card(read_run(folder)))
    return path


def render_card(run: RunRecord) -> str:
    """Return the card."""
    summary, data, show = run.summary, run.summary["data"], run.metric.format
    low, high = summary["test_interval"]
    warnings = "".join(f"- {plain(line)}\n" for line in data["warnings"]) or "- none\n"
    scores = "".join(
        f"| {name.replace('_', ' ')} | {value:.4f} |\n" for name, value in summary["chosen"]["test_metrics"].items()
    )
    limits = "".join(f"- {line}\n" for line in LIMITS)
    return f"""# {plain(", ".join(summary["task"]["targets"]))} from {plain(str(data["source"]))}

{headline(run)}

Test {run.metric.label}: {show(summary["chosen"]["test_score"])}, 95 % interval {show(low)} to {show(high)}.

| test metric | chosen point |
|---|---|
{scores}
## Front

{fenced(render_table(run))}

## Data

{data["rows"]:,} rows, {data["columns"]:,} columns encoded as {data["inputs"]:,} inputs; {data["train"]:,} training,
{data["validation"]:,} validation and {data["test"]:,} test rows, seed {summary["seed"]}. Everything was chosen on
validation rows and is reported on test rows.

Warnings:

{warnings}
## Use

`python model.py NEW.csv` answers with torch and safetensors alone; `pared predict` writes a table.
`model.onnx` takes the encoded inputs.

## Limits

{limits}
## Run

{fenced(summary["command"])}
"""


def plain(text: str) -> str:
    """Return `text` on one line, such that Markdown and HTML show it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|~&$])", r"\\\1", " ".join(text.split()))


def fenced(text: str) -> str:
    """Return `text` as a block of code, whose fence is longer than any row of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
