"""The figures of a run."""

from typing import Any

from pared.report.charts import COLOURS, Series, bars, chart, number
from pared.report.reading import RunRecord
from pared.report.table import microseconds


def front_figure(run: RunRecord) -> str:
    """Return parameters against score: validation and test along the front, start, chosen point, references."""
    summary = run.summary
    points = summary["front"]
    test = [(p["params"], p["test_score"]) for p in points]
    chosen, start = summary["chosen"], summary["start"]
    series = [
        Series("test", test, "blue", marker="dot"),
        Series("validation", [(p["params"], p["val_score"]) for p in points], "sky", dash="5 4", marker="open"),
        Series("dense start", [(start["params"], start["test_score"])], "red", False, "square", above=False),
        Series("chosen", [(chosen["params"], chosen["test_score"])], "orange", False, "ring"),
    ]
    colours = ("green", "pink")
    for colour, reference in zip(colours, summary["references"], strict=False):
        name = str(reference["name"]).removeprefix("histogram gradient ").split()[0]
        series.append(
            Series(
                name, [(max(reference["params"], 1), reference["test_score"])], colour, False, "diamond", above=False
            )
        )
    note = "" if run.metric.greater_is_better else " (smaller is better)"
    return chart(
        f"Front of size against {run.metric.label}",
        series,
        x_label="parameters",
        y_label=run.metric.label + note,
        x_log=True,
        y_format=run.metric.format,
        height=400,
    )


def width_figure(run: RunRecord) -> str:
    """Return the units alive in each layer over the shrinking run."""
    epochs = run.phase("shrink")
    if not epochs:
        return ""
    lines = {"inputs": [(e["epoch"] + 1, e["inputs"]) for e in epochs]}
    for layer in range(len(epochs[0]["hidden"])):
        lines[f"hidden {layer + 1}"] = [(e["epoch"] + 1, e["hidden"][layer]) for e in epochs]
    series = [Series(name, points, COLOURS[i % 6]) for i, (name, points) in enumerate(lines.items())]
    return chart("Units alive over time", series, x_label="epoch", y_label="units alive", y_log=True)


def strength_figure(run: RunRecord) -> str:
    """Return the penalty's strength over the run."""
    points = [(e["epoch"] + 1, e["strength"]) for e in run.phase("shrink")]
    figure = Series("strength", points, "pink")
    return chart("Penalty strength over time", [figure], x_label="epoch", y_label="strength", y_log=True, height=240)


def curve_figure(run: RunRecord) -> str:
    """Return the validation score of the dense reference and of the shrinking run."""
    names = (("dense", "dense start", "red"), ("shrink", "shrinking", "blue"))
    series = [
        Series(label, [(e["epoch"] + 1, run.metric.goodness(e["val_score"])) for e in run.phase(phase)], colour)
        for phase, label, colour in names
    ]
    return chart(
        "Validation score over time",
        series,
        x_label="epoch",
        y_label=f"validation {run.metric.label}",
        y_format=run.metric.format,
    )


def loss_figure(run: RunRecord) -> str:
    """Return training loss (with penalty) and validation loss of the shrinking run."""
    epochs = run.phase("shrink")
    series = [
        Series("training", [(e["epoch"] + 1, e["loss"]) for e in epochs], "orange"),
        Series("validation", [(e["epoch"] + 1, e["val_loss"]) for e in epochs], "blue"),
    ]
    return chart(
        "Loss over time", series, x_label="epoch", y_label="loss (training with penalty)", y_log=True, height=260
    )


def death_figure(run: RunRecord) -> str:
    """Return how many units died in each epoch, by layer."""
    layers: dict[str, list[tuple[float, float]]] = {}
    for event in run.events:
        layers.setdefault(event["layer"], []).append((event["epoch"] + 1, event["removed"]))
    if not layers:
        return ""
    series = [
        Series(name, points, COLOURS[i % 6], marker="dot") for i, (name, points) in enumerate(sorted(layers.items()))
    ]
    return chart("Units that died, by epoch", series, x_label="epoch", y_label="units that died", height=260)


def before_after_figure(run: RunRecord) -> str:
    """Return size and latency of start, chosen point and references, as bars on log scales."""
    summary: Any = run.summary
    named = [("dense start", summary["start"]), ("chosen", summary["chosen"])]
    named += [(r["name"].replace("histogram gradient", "hist. gradient"), r) for r in summary["references"]]
    return bars(
        "Size and latency",
        [
            ("Bytes stored", [(n, r["bytes"], number(r["bytes"]) + "B") for n, r in named]),
            ("One row, one thread", [(n, r["latency_us_1"], microseconds(r["latency_us_1"])) for n, r in named]),
            ("256 rows, one thread", [(n, r["latency_us_256"], microseconds(r["latency_us_256"])) for n, r in named]),
        ],
    )
