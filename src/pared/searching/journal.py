"""The journal of a search: which trials there are, whose they are, and which comes next; several processes may share it."""

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pared.errors import ConfigError, RunError
from pared.locking import Lock

if TYPE_CHECKING:
    import optuna

#: How trials are drawn.
Sampler = Literal["random", "tpe", "hyperband"]


def check_sampler(sampler: str) -> None:
    """Make sure that `sampler` is one of those known.

    Raises:
        ConfigError: it is not.
    """
    if sampler not in get_args(Sampler):
        raise ConfigError(f"sampler must be one of {', '.join(get_args(Sampler))}; got {sampler!r}")


class Journal:
    """Optuna's study in a file of JSON lines.

    "random" and "tpe" look at size and score, "hyperband" at the score alone, as its early stopping knows one goal only;
    it draws at random. Each trial has a place, 0 to `trials` - 1, on which alone its random numbers depend: a trial that
    was cut off is done anew in its place by whoever comes next.
    """

    def __init__(self, path: Path, sampler: Sampler, seed: int, epochs: int) -> None:
        optuna = _optuna()
        from filelock import FileLock
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.sampler, self.seed = sampler, seed
        self.workers = path.with_name("workers")
        self._lock: Lock | None = None
        # Optuna's own locks are files that stay when their process is killed; these end with it.
        self.lock, writing = FileLock(path.with_name("asking.lock")), FileLock(path.with_name("writing.lock"))
        directions = ["maximize"] if sampler == "hyperband" else ["minimize", "maximize"]
        pruner = optuna.pruners.HyperbandPruner(1, max(1, epochs)) if sampler == "hyperband" else None
        try:
            with quiet():
                storage = JournalStorage(JournalFileBackend(str(path), cast(Any, writing)))
                self.study = optuna.create_study(
                    storage=storage, study_name="search", directions=directions, pruner=pruner, load_if_exists=True
                )
        except (ValueError, KeyError, OSError) as error:
            raise RunError(f"{path} is no journal of a search ({error}); start the search in another folder") from None

    def next(self, trials: int) -> "optuna.Trial | None":
        """Return the next trial, those cut off before new ones; None when all of `trials` are taken."""
        with quiet(), self.lock:
            taken = {trial.user_attrs["place"] for trial in self.study.get_trials(deepcopy=False)}
            if not self._in("WAITING"):
                if len(taken) >= trials:
                    return None
                self.study.enqueue_trial({}, user_attrs={"place": len(taken)})  # so that no trial is without a place
            self.study.sampler = self._sampler(len(taken))
            trial = self.study.ask()
            self.study.sampler = self._sampler(trial.user_attrs["place"])
            trial.set_user_attr("worker", self._worker())
            return trial

    def take_up(self) -> int:
        """Put trials that were cut off back in line, and return how many."""
        with self.lock:
            running = [trial for trial in self._in("RUNNING") if self._cut_off(trial.user_attrs)]
            for trial in running:
                self.put_back(trial)
        return len(running)

    def put_back(self, trial: Any) -> None:
        """Let a trial that was cut off be done anew in its place."""
        place = trial.user_attrs["place"]
        with quiet(), self.lock:
            failed = _optuna().trial.TrialState.FAIL
            others = [one for one in self.study.get_trials(deepcopy=False) if one.number != trial.number]
            if not any(one.user_attrs["place"] == place and one.state != failed for one in others):
                self.study.enqueue_trial(dict(trial.params), user_attrs={"place": place})
            self.study.tell(trial.number, state=failed)  # last, so that a kill in between loses no place

    def finish(self, trial: "optuna.Trial", size: float, score: float) -> None:
        """Note a trial's figures."""
        with quiet():
            self.study.tell(trial, score if self.sampler == "hyperband" else (size, score))

    def drop(self, trial: "optuna.Trial", record: Mapping[str, float]) -> None:
        """Note that a trial was given up early, and what it took."""
        with quiet():
            trial.set_user_attr("record", dict(record))
            self.study.tell(trial, state=_optuna().trial.TrialState.PRUNED)

    def goes_on(self, trial: "optuna.Trial", epoch: int, score: float) -> bool:
        """Whether a trial is worth going on with after an epoch."""
        if self.sampler != "hyperband":
            return True
        with quiet():
            trial.report(score, epoch)
            return not trial.should_prune()

    def finished(self) -> list[dict[str, Any]]:
        """Return the records of the trials that were finished, by place."""
        records = [dict(trial.user_attrs["record"]) for trial in self._in("COMPLETE")]
        return sorted(records, key=lambda record: record["place"])

    def dropped(self) -> list[dict[str, float]]:
        """Return what each trial took that was given up early."""
        return [dict(trial.user_attrs["record"]) for trial in self._in("PRUNED")]

    def elsewhere(self) -> list[str]:
        """Return who is at trials that are not finished, in words, once for each trial."""
        held = [trial.user_attrs for trial in self._in("RUNNING")]
        return [Lock(self.workers / attrs["worker"]).holder() for attrs in held if not self._cut_off(attrs)]

    def close(self) -> None:
        """Say that this process takes no more trials."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _worker(self) -> str:
        """The name of the lock that this process holds while it is at trials; a pid would come again."""
        if self._lock is None:
            self.workers.mkdir(exist_ok=True)
            self._lock = Lock(self.workers / f"{uuid.uuid4().hex}.lock")
            self._lock.take()
        return self._lock.path.name

    def _cut_off(self, attrs: Mapping[str, Any]) -> bool:
        """Whether the process that had a trial is gone: its lock is free."""
        if "worker" not in attrs:  # killed while it held the lock that is ours now
            return True
        lock = Lock(self.workers / attrs["worker"])
        if lock.path.exists() and not lock.take():
            return False
        lock.release()
        return True

    def _in(self, state: str) -> list[Any]:
        states = (_optuna().trial.TrialState[state],)
        with quiet():
            return self.study.get_trials(deepcopy=False, states=states)

    def _sampler(self, place: int) -> Any:
        samplers = _optuna().samplers
        seed = (self.seed * 1_000_003 + place) % 2**32
        return samplers.TPESampler(seed=seed) if self.sampler == "tpe" else samplers.RandomSampler(seed=seed)


def _optuna() -> Any:
    import optuna

    return optuna


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let Optuna say nothing below warnings, as it would on stderr at every trial."""
    logging = _optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
