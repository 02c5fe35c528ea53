"""`pared.shrink`: from a network that exists to smaller ones, and the one that was asked for."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError, warn
from pared.interrupts import interruptible
from pared.locking import held
from pared.measure.latency import latency_us, threads
from pared.measure.size import macs, parameters
from pared.methods import Event, Shrink, UnitMethod, UnitSession
from pared.methods.strengths import TowardSize
from pared.surgery.prune_masks import hold_zeros, masks_of, plain_copy, plain_view
from pared.train.batches import Loss, call, first_rows, recalibrate, train_on
from pared.train.checkpoint import load_state, save_state
from pared.train.context import Observer
from pared.train.feed import Feed
from pared.train.fingerprint import data_print, digest, name_of, optimizer_name
from pared.train.resuming import claim, generator_states, set_generator_states
from pared.train.shortfall import factors_of, why_nothing
from pared.train.shrunk import PER_DECADE, Shrunk, Smaller, candidates, check_drop, choose, fits, front

#: A network that has hardly shrunk is no point of the front: the one it began as stands for its size.
SHRUNK = 0.9


def _adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def shrink(
    model: nn.Module,
    train_loader: Iterable[Any],
    validate: Callable[[nn.Module], float],
    *,
    max_drop: float | None = None,
    max_params: int | None = None,
    max_macs: int | None = None,
    max_latency: float | None = None,
    loss: Loss = F.cross_entropy,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = _adam,
    epochs: int = 20,
    fine_tune: int = 3,
    dense_epochs: int = 0,
    smallest: float = 0.01,
    method: UnitMethod | None = None,
    folder: str | Path | None = None,
    observer: Observer | None = None,
) -> Shrunk:
    """Return smaller networks than `model`, trained, and the one of them that was asked for.

    The network's units die one after the other under a rising pressure, a copy being taken after every epoch and at
    every size class that is passed within one. One copy of every size class is then trained on without pressure, its
    learning rate falling to 0 along a cosine, and the last of it counts. `model` itself is left as it is; where it has masks
    of `torch.nn.utils.prune`, the smaller networks are plain and stay 0 there. Ctrl-C ends the run and keeps what there is.

    Args:
        model: any network that `torch.export` can follow, trained or not, on the device to train on.
        train_loader: gives pairs (x, y), and knows its length; x is what the network takes.
        validate: takes a network in evaluation mode and returns its score, larger being better. It decides what is
            chosen, so it must not look at test data.
        max_drop: choose the smallest that scores at most this much below the dense reference, in the units of `validate`.
        max_params: choose among those of at most so many parameters.
        max_macs: choose among those of at most so many multiply-accumulates for one row.
        max_latency: choose among those of at most so many microseconds for one row, on one thread.
        loss: takes the network's result and y, returns a scalar.
        optimizer: makes one of parameters; once for shrinking, once for each network that is trained on.
        epochs: of the shrinking run, which goes on for up to twice as many while the network does not fit yet.
        fine_tune: epochs that each chosen size is trained on for.
        dense_epochs: train a copy for so many epochs first, without pressure, which then is the dense reference; with 0
            that is `model` as it is, so a network that is not trained yet needs it.
        smallest: the share of the parameters at which the run ends; `max_params` ends it there.
        method: what presses and kills, any of `pared.methods.METHODS`; when None, `Shrink` driven to the smallest size,
            the switches' learning rate such that Adam could bring one from 1 to 0 in a twentieth of the run, but 1 to
            50 times the weights'.
        folder: where every epoch is saved. The same call goes on from there, bit-equally on a CPU if the loader draws
            from a generator of its own and the network draws nothing.
        observer: told of every epoch, every removal and every phase.

    Raises:
        ConfigError: an option out of its range.
        SurgeryError: the network is not understood, or none of its layers can lose units.
        RunError: the folder holds another run.
    """
    wishes = {"max_drop": max_drop, "max_params": max_params, "max_macs": max_macs, "max_latency": max_latency}
    _check(wishes, epochs=epochs, fine_tune=fine_tune, dense_epochs=dense_epochs, smallest=smallest)
    bare = surgery.bare(model)
    start, masked = plain_view(bare), frozenset(one.name for one in masks_of(bare))
    feed = Feed(train_loader, start)
    steps = feed.steps
    if method is None:
        least = max(1, round(smallest * parameters(start))) if max_params is None else max_params
        goal = max(1, round(0.8 * least)) if max_params is not None else least
        method = Shrink(TowardSize(goal), every=max(1, steps // 4), lr_scale=_lr_scale(optimizer, epochs * steps))
    run = _Run(start, feed, validate, loss, optimizer, method, epochs, fine_tune, dense_epochs, masked)
    run.observer = observer or Observer()
    run.folder = None if folder is None else Path(folder)
    with interruptible(), nullcontext() if run.folder is None else held(run.folder):
        return run.learn({name: limit for name, limit in wishes.items() if limit is not None})


@dataclass(eq=False)
class _Run:
    """One call of `shrink`, phase by phase."""

    start: nn.Module
    feed: Feed
    validate: Callable[[nn.Module], float]
    loss: Loss
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    method: UnitMethod
    epochs: int
    fine_tune: int
    dense_epochs: int
    masked: frozenset[str] = frozenset()
    observer: Observer = field(default_factory=Observer)
    folder: Path | None = None
    events: list[Event] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    taken: list[list[Any]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return self.feed.steps

    def learn(self, wishes: dict[str, float]) -> Shrunk:
        session = self._bind()
        start = factors_of(session)
        self._check_size(session, wishes)
        self._claim()
        try:
            dense = self._timed("dense", self._dense)
        except KeyboardInterrupt:
            self.observer.note(f"interrupted before anything shrank{self._go_on()}")
            raise
        check_drop(wishes, dense)
        snapshots: list[Smaller] = []
        points, interrupted = [dense], False
        try:
            self._timed("shrink", lambda: self._shrink(session, snapshots, wishes))
            kept = candidates([point for point in snapshots if point.params <= SHRUNK * dense.params], wishes)
            points = list(kept)
            self._timed("fine_tune", lambda: self._tune_all(points))
        except KeyboardInterrupt:
            interrupted = True
            points = points if points != [dense] else candidates(snapshots, wishes)
            self.observer.note(f"interrupted: keeping {len(points)} smaller networks{self._go_on()}")
        found = front(points) or [dense]
        chosen, because = choose(dense, found, wishes)
        least = min((point.params for point in snapshots), default=dense.params)
        done = found != [dense] or interrupted
        why = "" if done else why_nothing(session, start, least, self.steps)
        if why:
            warn(why)
        return Shrunk(chosen, because, found, dense, self.events, self.seconds, interrupted, why)

    # --- phases ---

    def _dense(self) -> Smaller:
        model = plain_copy(self.start)
        if self.dense_epochs and not self._known(model, "dense"):
            self._train(model, self.dense_epochs, "dense")
            self._keep(model, "dense")
        return self._judged(model)

    def _bind(self) -> UnitSession:
        model = plain_copy(self.start)
        hold_zeros(model, self.masked)
        optimizer = self.optimizer(model.parameters())
        total = self.epochs * self.steps
        session = self.method.bind(
            model, optimizer, self.feed.example, total_steps=total, steps_per_epoch=self.steps, generator=_generator()
        )
        session.on_event = self._tell
        self.events = session.events
        return session

    def _check_size(self, session: UnitSession, wishes: dict[str, float]) -> None:
        """Refuse, before any training, a size that this network cannot have."""
        if wishes.get("max_params", math.inf) < session.least_params:
            layers = ", ".join(session.skipped) or "none"
            raise ConfigError(
                f"max_params={wishes['max_params']:g} cannot be reached: with one unit left in every layer that can lose "
                f"units this network has {session.least_params} parameters; layers that cannot are {layers} "
                "(pared.add_switches says why)"
            )

    def _shrink(self, session: UnitSession, snapshots: list[Smaller], wishes: dict[str, float]) -> None:
        """Fill `snapshots`, one an epoch and one a size class; go on for up to as many epochs more while nothing fits."""
        model, optimizer = session.model, session.optimizer
        for epoch in range(self._resume(session, snapshots), 2 * self.epochs):
            if epoch >= self.epochs and fits(snapshots[-1], wishes):
                break
            began = time.perf_counter()
            passed: list[tuple[nn.Module, float]] = []
            watch = partial(self._watch, session, passed, min((point.params for point in snapshots), default=math.inf))
            loss = train_on(model, optimizer, self.feed, self.loss, session=session, after_step=watch)
            passed.append((session.realize(), session.strength))
            points = [self._taken(small, epoch, strength) for small, strength in passed]
            snapshots += points
            self.observer.epoch(
                {
                    "phase": "shrink",
                    "epoch": epoch,
                    "loss": loss,
                    "score": points[-1].score,
                    "params": points[-1].params,
                    "macs": points[-1].macs,
                    "strength": session.strength,
                    "seconds": time.perf_counter() - began,
                }
            )
            self._save(session, points, len(snapshots))
        session.detach()

    def _watch(self, session: UnitSession, passed: list[tuple[nn.Module, float]], least: float) -> None:
        """Take a copy within an epoch too, whenever a size class has been passed; it is judged when the epoch is over."""
        least = min([least, session.start_params, *(parameters(small) for small, _ in passed)])
        if session.params * 10 ** (1 / PER_DECADE) <= least and session.steps % self.steps:
            passed.append((session.realize(), session.strength))

    def _taken(self, small: nn.Module, epoch: int, strength: float) -> Smaller:
        recalibrate(small, self.feed)
        return self._judged(small, epoch, strength)

    def _tune_all(self, points: list[Smaller]) -> None:
        """Train each point on, in its place in `points`."""
        for place, point in enumerate(points):
            self.observer.note(f"fine-tuning {place + 1} of {len(points)}: {point.params:,} parameters")
            name, model = f"tuned/{point.epoch:04d}-{point.params}", copy.deepcopy(point.model)
            if not self._known(model, name):
                self._train(model, self.fine_tune, "fine_tune")
                self._keep(model, name)
            points[place] = replace(point, model=model, score=self._score(model))

    def _train(self, model: nn.Module, epochs: int, phase: str) -> None:
        """Train without pressure, the learning rate falling to 0 along a cosine."""
        if not epochs:
            return
        hold_zeros(model, self.masked)
        optimizer = self.optimizer(model.parameters())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * self.steps)
        for epoch in range(epochs):
            loss = train_on(model, optimizer, self.feed, self.loss, after_step=schedule.step)
            self.observer.epoch({"phase": phase, "epoch": epoch, "loss": loss, "params": parameters(model)})
        model.zero_grad(set_to_none=True)

    # --- measuring ---

    def _judged(self, model: nn.Module, epoch: int = -1, strength: float = 0.0) -> Smaller:
        row = first_rows(self.feed.example, 1)
        with threads(1), torch.inference_mode():
            model.eval()
            taken = latency_us(lambda: call(model, row))
        return Smaller(model, parameters(model), macs(model, row), taken, self._score(model), epoch, strength)

    def _score(self, model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return float(self.validate(model))

    def _timed(self, phase: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[phase] = time.perf_counter() - began

    def _tell(self, event: Event) -> None:
        self.observer.event(asdict(event))

    # --- the folder ---

    def _go_on(self) -> str:
        """How to go on after an interrupt."""
        if self.folder is None:
            return "; with folder=... the same call would go on from here"
        return f"; the same call goes on from {self.folder}"

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.safetensors"

    def _known(self, model: nn.Module, name: str) -> bool:
        """Fill `model` with what was kept under a name, and put the loader's generator where it was then."""
        path, after = self._path(name), self._path(f"{name}-generator")
        if path is None or after is None or not (path.exists() and after.exists()):
            return False
        surgery.load(model, path)
        set_generator_states(self.feed.loader, load_state(after)["generators"])
        return True

    def _keep(self, model: nn.Module, name: str) -> None:
        path, after = self._path(name), self._path(f"{name}-generator")
        if path is not None and after is not None:
            surgery.save(model, path)
            save_state(after, {"generators": generator_states(self.feed.loader)})

    def _claim(self) -> None:
        """Make the folder, or make sure that it holds this very run."""
        if self.folder is None:
            return
        for part in ("snapshots", "tuned"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        mine = {
            "epochs": self.epochs,
            "fine_tune": self.fine_tune,
            "dense_epochs": self.dense_epochs,
            "steps": self.steps,
            "method": repr(self.method),
            "shapes": [[name, list(tensor.shape)] for name, tensor in self.start.state_dict().items()],
            "start": digest(self.start.state_dict()),
            "loss": name_of(self.loss),
            "optimizer": optimizer_name(self.optimizer),
            "data": data_print(self.feed.loader),
        }
        claim(self.folder, mine | ({"masks": sorted(self.masked)} if self.masked else {}))

    def _save(self, session: UnitSession, points: Sequence[Smaller], count: int) -> None:
        """Save the snapshots of an epoch, the last of `count` so far, and what it takes to go on."""
        if self.folder is None:
            return
        for number, point in enumerate(points, count - len(points)):
            surgery.save(point.model, self.folder / f"snapshots/{number:04d}.safetensors")
            self.taken.append([point.epoch, point.strength])
        state = {
            "session": session.state_dict(),
            "epoch": points[-1].epoch + 1,
            "taken": self.taken,
            "generators": generator_states(self.feed.loader),
        }
        save_state(self.folder / "shrink.safetensors", state)

    def _resume(self, session: UnitSession, snapshots: list[Smaller]) -> int:
        """Fill the session and the snapshots with what is saved; return the epoch to go on with."""
        self.taken = []
        path = self._path("shrink")
        if path is None or not path.exists():
            return 0
        state = load_state(path)
        session.load_state_dict(state["session"])
        set_generator_states(self.feed.loader, state["generators"])
        self.taken = list(state["taken"])
        for number, (epoch, strength) in enumerate(self.taken):
            model = surgery.load(plain_copy(self.start), self._path(f"snapshots/{number:04d}") or "")
            snapshots.append(self._judged(model, epoch, strength))
        self.observer.note(f"going on after epoch {state['epoch']}")
        return state["epoch"]


def _check(wishes: dict[str, Any], *, epochs: int, fine_tune: int, dense_epochs: int, smallest: float) -> None:
    for name, value in wishes.items():
        least = 0.0 if name == "max_drop" else math.ulp(0.0)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(
                f"{name} must be {'at least' if name == 'max_drop' else 'above'} 0 and finite, got {value}"
            )
    for name, value, least in (("epochs", epochs, 1), ("fine_tune", fine_tune, 0), ("dense_epochs", dense_epochs, 0)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")
    if not 0.0 < smallest < 1.0:
        raise ConfigError(f"smallest must be between 0 and 1, got {smallest}")


def _lr_scale(optimizer: Callable[[Iterable[nn.Parameter]], Optimizer], steps: int) -> float:
    lr = optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0].get("lr", 1.0)
    return 50.0 if float(lr) * steps <= 0.4 else max(1.0, 20.0 / (float(lr) * steps))  # a rate of 0 is no error here


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
