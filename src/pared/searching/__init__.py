"""`pared.search`: the searches over widths or strengths that one shrinking run stands against."""

import contextlib
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from pared.data.task import Kind
from pared.errors import ConfigError
from pared.formats.document import Document, save_document
from pared.interrupts import interruptible
from pared.locking import held
from pared.measure.judge import measure_point
from pared.measure.latency import threads
from pared.problems import Asked, ask, spoken, versions, with_options
from pared.searching.found import Search
from pared.searching.journal import Journal, Sampler, check_sampler
from pared.searching.space import Over, draw, log_size
from pared.searching.trial import EPOCHS, Dropped, train_trial
from pared.storage import write_atomically
from pared.train.context import Context, Observer
from pared.train.folder import RunFolder
from pared.train.point import Point
from pared.train.settings import Settings

if TYPE_CHECKING:
    import optuna
    import pandas as pd

__all__ = ["Search", "search"]

#: Settings that a search draws, or that only `pared.fit` knows.
_DRAWN = ("lr", "weight_decay", "strength", "gamma", "switch_init", "threshold")
_OTHERS = ("select", "fine_tune", "refit", "max_params", "max_drop", "max_latency")


def search(
    data: "str | Path | pd.DataFrame",
    target: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    sampler: Sampler = "random",
    over: Over = "widths",
    trials: int = 20,
    jobs: int = 1,
    least_width: int = 20,
    test: "str | Path | pd.DataFrame | None" = None,
    task: Kind | None = None,
    weights: str | None = None,
    drop: Sequence[str] = (),
    settings: Settings | None = None,
    observer: Observer | None = None,
    header: bool = True,
    delimiter: str | None = None,
    decimal: str | None = None,
    command: str | None = None,
    **options: Any,
) -> Search:
    """Train `trials` networks one by one, as drawn by `sampler`, and return them with their front of size and score.

    The same call goes on with a search that was cut off, adds trials to it, or, while another process is at it, joins
    in; Ctrl-C ends it and keeps what there is. Splits, encoding, scores and seeds are those of `pared.fit` on the same data.

    Args:
        data: a table, as for `pared.fit`.
        target: the column to predict, or several to regress.
        out: the search's folder; every finished trial's network lands there.
        sampler: "random", as in the paper; "tpe", which looks at size and score; or "hyperband", which draws at random
            and gives up trials whose score is behind.
        over: "widths" of networks that keep them, or the "strength" of shrinking runs that start with `hidden`.
        trials: how many there are in the end.
        jobs: processes on this machine.
        least_width: the narrowest layer drawn; the widest are those of `hidden`.
        test: a separate table to report on; a fifth of the rows when None.
        task: "classification" or "regression", overriding the guess.
        weights: a column of row weights, at least 0.
        drop: columns to ignore.
        settings: all settings at once; or single ones as keywords (`hidden=…`, `epochs=…`, `batch_size=…`,
            `class_weights=…`, `metric=…`, `seed=…`, `device=…`, `threads=…`). A trial ends after `epochs`, 400 when None,
            or when the plateau schedule has brought the learning rate to 1e-7.
        observer: its `note` is told of every finished trial.
        header: whether the first line of a text file names the columns.
        delimiter: what separates its fields; detected when None.
        decimal: its decimal mark; detected when None.
        command: what to note as the command of the search.
        **options: single settings.

    Raises:
        ParedError: anything a person can mend, in one sentence; nothing is lost.

    Source: ShrinkNets (arXiv 1806.03723), section 4.1; TPE: Bergstra et al. (2011); Hyperband: Li et al. (2018).
    """
    _check(sampler, over, trials, jobs, least_width, options)
    chosen = with_options(settings, options)
    asked = ask(
        data,
        target,
        test=test,
        task=task,
        weights=weights,
        drop=drop,
        settings=replace(chosen, epochs=chosen.epochs or EPOCHS),
        dialect={"header": header, "delimiter": delimiter, "decimal": decimal},
        command=command or spoken("search", data, target),
    )
    asked.config["settings"] |= {"sampler": sampler, "over": over, "least_width": least_width}
    with held(Path(out), wait=5.0):
        folder = RunFolder.claim(Path(out), asked.config, resume=(Path(out) / "config.toml").exists())
    work = _Work(asked, folder.path, sampler, over, trials, least_width)
    observer = observer or Observer()
    again = work.journal().take_up()
    if again:
        observer.note(f"going on: {again} trial{'s' * (again != 1)} cut off before will be done anew")
    helpers = [multiprocessing.get_context("spawn").Process(target=work.help) for _ in range(jobs - 1)]
    for helper in helpers:
        helper.start()
    interrupted = False
    with interruptible():
        try:
            work.run(observer)
        except KeyboardInterrupt as stop:
            for helper in helpers:
                helper.terminate()  # which puts its trial back, as an interrupt here does
            count = len(work.journal().finished())
            observer.note(f"interrupted: keeping {count} finished trials; the same call goes on")
            if not count:
                stop.add_note("no trial was finished; the same call starts again")
                raise
            interrupted = True
        finally:
            for helper in helpers:
                helper.join()
    for holder in () if interrupted else work.journal().elsewhere():
        observer.note(f"warning: a trial is still with {holder}; the same call afterwards takes in what it finds")
    return work.told(interrupted)


@dataclass(frozen=True)
class _Work:
    """A share of a search: whoever runs it takes trials until none is left."""

    asked: Asked
    folder: Path
    sampler: Sampler
    over: Over
    trials: int
    least_width: int

    def journal(self) -> Journal:
        """Return the search's journal, opened anew."""
        settings = self.asked.settings
        assert settings.epochs is not None
        return Journal(self.folder / "journal.jsonl", self.sampler, settings.seed, settings.epochs)

    def run(self, observer: Observer | None = None) -> None:
        """Train trial after trial."""
        observer = observer or Observer()
        journal, context = self.journal(), self.asked.context(None, Observer())
        with threads(self.asked.settings.threads):
            while (trial := journal.next(self.trials)) is not None:
                try:
                    note = self._one(journal, context, trial)
                except BaseException:
                    journal.put_back(trial)
                    journal.close()
                    raise
                observer.note(note)
        journal.close()

    def help(self) -> None:
        """Do a share in a process of its own; an interrupt ends it quietly, as the first process tells of it."""
        torch.set_flush_denormal(True)  # as the command line does; a user's own process is left as it is
        with contextlib.suppress(KeyboardInterrupt), interruptible():
            self.run()

    def _one(self, journal: Journal, context: Context, trial: "optuna.Trial") -> str:
        place = trial.user_attrs["place"]
        title = f"trial {place + 1} of {self.trials}"
        choice = draw(trial, self.over, self.asked.settings.hidden, self.least_width)
        began, spent = time.perf_counter(), time.process_time()
        try:
            point, epochs = train_trial(
                context, choice, place, lambda epoch, score: journal.goes_on(trial, epoch, score)
            )
        except Dropped:
            journal.drop(trial, {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent})
            return f"{title}: given up early"
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
        record = self._record(point, place) | {"epochs": epochs, "seconds": seconds, "cpu_seconds": spent}
        record["drawn"] = dict(trial.params)
        trial.set_user_attr("record", record)
        journal.finish(trial, log_size(record["params"]), point.score)
        show = self.asked.judge.metric.format
        return f"{title}: {record['params']:,} parameters, validation {show(record['val_score'])}, {seconds:.1f} s"

    def _record(self, point: Point, place: int) -> dict[str, Any]:
        """Measure a trial's network and write it."""
        problem, judge = self.asked.problem, self.asked.judge
        name = f"trials/{place:03d}.safetensors"
        record = measure_point(judge, point, problem.test, file=name, seed=self.asked.settings.seed)
        scores = {"validation": {judge.metric.name: record["val_score"]}, "test": record["test_metrics"]}
        document = Document(point.model, problem.encoder, problem.task, judge.metric.name, scores, problem.dialect)
        save_document(self.folder / name, document)
        return {"place": place, **record}

    def told(self, interrupted: bool) -> Search:
        """Write search.json and open it."""
        journal = self.journal()
        records, dropped = journal.finished(), journal.dropped()
        summary = {
            "format": "pared.search",
            "version": 1,
            "command": self.asked.config["command"],
            "metric": self.asked.judge.metric.name,
            "outputs": self.asked.problem.task.outputs,
            "sampler": self.sampler,
            "over": self.over,
            "seed": self.asked.settings.seed,
            "seconds": sum(record["seconds"] for record in [*records, *dropped]),
            "cpu_seconds": sum(record["cpu_seconds"] for record in [*records, *dropped]),
            "dropped": len(dropped),
            "interrupted": interrupted,
            "trials": records,
            "versions": versions(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_atomically(self.folder / "search.json", json.dumps(summary, indent=1, ensure_ascii=False))
        return Search.open(self.folder)


def _check(sampler: str, over: str, trials: int, jobs: int, least_width: int, options: dict[str, Any]) -> None:
    check_sampler(sampler)
    if over not in get_args(Over):
        raise ConfigError(f"over must be one of {', '.join(get_args(Over))}; got {over!r}")
    for name, value in (("trials", trials), ("jobs", jobs), ("least_width", least_width)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    for name in options:
        if name in _DRAWN:
            raise ConfigError(f"{name} is drawn by a search; leave it out, or use pared.fit")
        if name in _OTHERS:
            raise ConfigError(f"{name} is an option of pared.fit; a search has none, leave it out")
