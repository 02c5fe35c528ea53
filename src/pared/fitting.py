"""`pared.fit`: from a table to a run folder with the whole front."""

import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pared.data.problem import Problem
from pared.data.task import Kind
from pared.errors import RunError
from pared.formats.document import Document, save_document
from pared.formats.script import write_script
from pared.interrupts import interruptible
from pared.locking import held
from pared.measure.judge import Judge, choose, measure_point
from pared.measure.latency import threads
from pared.measure.references import fit_references
from pared.measure.worth import column_records
from pared.problems import Asked, ask, spoken, with_options
from pared.run import Run, write_summary
from pared.train.checkpoint import load_state
from pared.train.context import Observer
from pared.train.folder import RunFolder
from pared.train.learner import Front, learn_front
from pared.train.point import Point
from pared.train.settings import Settings

if TYPE_CHECKING:
    import pandas as pd


def fit(
    data: "str | Path | pd.DataFrame",
    target: str | Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    test: "str | Path | pd.DataFrame | None" = None,
    task: Kind | None = None,
    weights: str | None = None,
    drop: Sequence[str] = (),
    resume: bool = False,
    settings: Settings | None = None,
    observer: Observer | None = None,
    header: bool = True,
    delimiter: str | None = None,
    decimal: str | None = None,
    command: str | None = None,
    **options: Any,
) -> Run:
    """Learn the whole front of small networks that predict `target` from the other columns of `data`.

    Args:
        data: a file, a built-in name (digits, breast-cancer, wine, diabetes, iris), openml:ID, or a data frame.
        target: the column to predict, or several to regress; a built-in or OpenML set knows its own.
        out: the run folder, new or empty; a temporary one when None.
        test: a separate table to report on; a fifth of the rows when None.
        task: "classification" or "regression", overriding the guess.
        weights: a column of row weights, at least 0.
        drop: columns to ignore.
        resume: go on with the run in `out`, which must have been started with the same data and options.
        settings: all settings at once; or single ones as keywords (`epochs=…`, `max_params=…`, see `Settings`).
        observer: called on the way; see `Observer`.
        header: whether the first line of a text file names the columns.
        delimiter: what separates its fields; detected when None.
        decimal: its decimal mark; detected when None.
        command: what to note as the command of the run.
        **options: single settings, such as `max_params=2000`.

    Raises:
        ParedError: anything a person can mend, in one sentence; nothing is lost.
    """
    began = time.perf_counter()
    asked = ask(
        data,
        target,
        test=test,
        task=task,
        weights=weights,
        drop=drop,
        settings=with_options(settings, options),
        dialect={"header": header, "delimiter": delimiter, "decimal": decimal},
        command=command or spoken("fit", data, target),
    )
    path = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="pared-"))
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; choose another --out")
    with interruptible(), held(path), threads(asked.settings.threads):
        folder = RunFolder.claim(path, asked.config, resume=resume)
        if resume and (path / "summary.json").exists():
            run = Run.open(path)
            if not run.summary["interrupted"]:
                _finish(run, folder)
                return run
        told = observer or Observer()
        try:
            return _learn(asked, folder, told, began)
        except KeyboardInterrupt as stop:
            kept = f"every finished epoch is kept in {path}; the same with --resume (resume=True) goes on"
            told.note(f"interrupted: {kept}")
            stop.add_note(kept)
            raise


def _learn(asked: Asked, folder: RunFolder, observer: Observer, began: float) -> Run:
    """Train, measure, choose, write."""
    problem, judge, settings, config = asked.problem, asked.judge, asked.settings, asked.config
    for warning in problem.warnings:
        observer.note(f"warning: {warning}")
    context = asked.context(folder.checkpoints, _recording(folder, observer, problem))
    reach = context.epochs * context.steps_per_epoch * settings.lr
    if settings.switch_init == "ones" and reach < 1.5:
        observer.note(
            f"warning: {context.epochs * context.steps_per_epoch} steps of {settings.lr:g} can hardly bring a "
            "switch from 1 to 0, so little will die; raise --epochs to "
            f"{math.ceil(1.5 / settings.lr / context.steps_per_epoch)} or more, or --lr"
        )
    folder.truncate(_finished_epochs(folder))
    front = learn_front(context)
    summary = _measure(problem, judge, settings, front, folder, observer)
    earlier = sum(front.seconds.values()) + sum(
        summary["seconds_by_phase"].get(k, 0.0) for k in ("references", "measure")
    )
    summary |= {
        "seconds": max(time.perf_counter() - began, earlier),
        "command": config["command"],
        "versions": config["versions"],
        "seed": settings.seed,
        "interrupted": front.interrupted,
        "data": _about_data(problem, config),
    }
    write_summary(folder, summary)
    run = Run.open(folder.path)
    _finish(run, folder)
    return run


def _finish(run: Run, folder: RunFolder) -> None:
    """Do what comes after summary.json, all of it again where it was cut off: the last thing to go are the checkpoints."""
    whole = all((folder.path / name).exists() for name in ("report.html", "card.md"))
    if not whole or any(folder.checkpoints.iterdir()):
        run.report()
    for partial in folder.path.rglob(".*.partial"):
        partial.unlink(missing_ok=True)
    if not run.summary["interrupted"]:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)


def _measure(
    problem: Problem, judge: Judge, settings: Settings, front: Front, folder: RunFolder, observer: Observer
) -> dict[str, Any]:
    """Write every point, measure it on the test rows, choose one, and fit the references."""
    began = time.perf_counter()
    observer.note("measuring")
    names = [f"front/{number:02d}.safetensors" for number in range(len(front.points))]
    records = [
        measure_point(judge, point, problem.test, file=name, seed=settings.seed)
        for point, name in zip(front.points, names, strict=True)
    ]
    start = measure_point(judge, front.dense, problem.test, file="front/start.safetensors", seed=settings.seed)
    for point, record in zip([front.dense, *front.points], [start, *records], strict=True):
        _save_point(folder.path / record["file"], problem, judge, point, record)
    index, because = choose(judge, start, records, settings, _standard_error(problem, judge, front))
    chosen = front.points[index]
    document = _save_point(folder.path / "model", problem, judge, chosen, records[index])
    write_script(folder.path / "model.py", document)
    _export(document, folder.path / "model.onnx", observer)
    columns = column_records(judge, problem, chosen, seed=settings.seed)
    seconds = {**front.seconds, "measure": time.perf_counter() - began}
    began = time.perf_counter()
    references: list[dict[str, Any]] = []
    if not front.interrupted:
        observer.note("fitting the references")
        try:
            references = _references(problem, judge, settings)
        except KeyboardInterrupt:
            front.interrupted = True
            observer.note("interrupted: leaving the references out; resuming fits them")
    return {
        "format": "pared.run",
        "version": 1,
        "task": problem.task.to_json(),
        "metric": judge.metric.name,
        "start": start,
        "chosen": records[index],
        "chosen_because": because,
        "test_interval": records[index]["test_interval"],
        "front": records,
        "references": references,
        "columns": columns,
        "seconds_by_phase": {**seconds, "references": time.perf_counter() - began},
    }


def _save_point(path: Path, problem: Problem, judge: Judge, point: Point, record: dict[str, Any]) -> Document:
    encoder = problem.encoder.keep(point.inputs.tolist())
    scores = {"validation": {judge.metric.name: record["val_score"]}, "test": record["test_metrics"]}
    document = Document(point.model, encoder, problem.task, judge.metric.name, scores, problem.dialect)
    save_document(path, document)
    return document


def _export(document: Document, path: Path, observer: Observer) -> None:
    try:
        from pared.formats.onnx import export_onnx

        about = {"task": document.task.kind, "classes": "\n".join(document.task.classes)}
        export_onnx(document.model, path, [item.name for item in document.encoder.inputs], about=about)
    except ImportError:
        observer.note("model.onnx was not written: install pared[export] for it")


def _references(problem: Problem, judge: Judge, settings: Settings) -> list[dict[str, Any]]:
    parts = {"train": problem.train, "validation": problem.validation, "test": problem.test}

    def score(y: np.ndarray, predictions: np.ndarray, probabilities: Any, part: str) -> float:
        if problem.task.kind == "regression":
            y, predictions = problem.task.values(y), problem.task.values(predictions)
        return judge.metric.function(y, predictions, probabilities, parts[part].w)

    return fit_references(
        {name: (part.x, part.y) for name, part in parts.items()},
        problem.task.kind,
        score,
        better=judge.metric.goodness,
        refit=settings.refit,
        seed=settings.seed,
        weights=problem.train.w,
    )


def _standard_error(problem: Problem, judge: Judge, front: Front) -> float:
    """The standard error of the best point's validation score, by bootstrap over a twin of its outputs."""
    rows, best = len(problem.validation), max(point.score for point in front.points)
    if judge.metric.name == "accuracy":
        # Agresti and Coull (1998): two hits and two misses more, or a perfect score would claim to be certain.
        share = (best * rows + 2) / (rows + 4)
        return float(np.sqrt(share * (1 - share) / (rows + 4)))
    point = max(front.points, key=lambda p: p.score)
    x = torch.from_numpy(problem.validation.x).index_select(1, point.inputs)
    with torch.inference_mode():
        outputs = point.model(x).numpy()
    low, high = judge.interval(outputs, problem.validation, 0, resamples=200)
    return (high - low) / (2 * 1.96)


def _recording(folder: RunFolder, observer: Observer, problem: Problem) -> Observer:
    names = [item.name for item in problem.encoder.inputs]

    def epoch(record: dict[str, Any]) -> None:
        folder.append("metrics.jsonl", record)
        observer.epoch(record)

    def event(record: dict[str, Any]) -> None:
        named = {key: value for key, value in record.items() if key != "index"}
        named["names"] = [names[i] for i in record["index"]]
        folder.append("events.jsonl", named)
        observer.event(named)

    return Observer(epoch, event, observer.note)


def _finished_epochs(folder: RunFolder) -> dict[str, int]:
    paths = {phase: folder.checkpoints / f"{phase}.safetensors" for phase in ("dense", "shrink")}
    return {phase: int(load_state(path)["epoch"]) for phase, path in paths.items() if path.exists()}


def _about_data(problem: Problem, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": config["data"]["source"],
        "rows": config["data"]["rows"],
        "train": len(problem.train),
        "validation": len(problem.validation),
        "test": len(problem.test),
        "columns": len(problem.columns),
        "inputs": len(problem.encoder.inputs),
        "warnings": list(problem.warnings),
    }
