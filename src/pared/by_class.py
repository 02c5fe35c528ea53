"""`pared.train_by_class`: train with a learned step size for each weight and class, and choose when to end that."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.errors import ConfigError, RunError
from pared.interrupts import interruptible
from pared.locking import held
from pared.optim import ClassRateSGD
from pared.process import forked_random
from pared.surgery.prune_masks import plain_copy, refuse_masks
from pared.train.batches import Loss, train_on
from pared.train.checkpoint import generator_for, load_state, save_state
from pared.train.context import Observer
from pared.train.feed import Feed
from pared.train.fingerprint import data_print, name_of
from pared.train.resuming import claim, generator_states, set_generator_states

#: After fewer epochs than these a network that knows no more than how frequent classes are may just be slow.
PATIENCE = 5

State = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A network trained by class for `cutoff` epochs and plainly from there on, its score and its last training loss."""

    cutoff: int
    model: nn.Module
    score: float
    loss: float


@dataclass(frozen=True)
class ByClass:
    """What `train_by_class` found: `model`, trained with `rate_lr` for `cutoff` epochs, chosen by `score`.

    `diverged` tells why runs with higher rates were given up; `interrupted` whether candidates are missing.
    """

    model: nn.Module
    cutoff: int
    score: float
    rate_lr: float
    candidates: list[Candidate]
    diverged: list[str]
    interrupted: bool = False


def train_by_class(
    model: nn.Module,
    train_loader: Iterable[Any],
    validate: Callable[[nn.Module], float],
    *,
    classes: int,
    lr: float = 0.01,
    rate_lr: float = 1e5,
    cutoffs: Sequence[int] = (10, 20, 30),
    epochs: int = 100,
    loss: Loss = F.cross_entropy,
    groups: Callable[[Any, Any], Tensor] | None = None,
    restarts: int = 3,
    seed: int = 0,
    folder: str | Path | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> ByClass:
    """Return the network trained with rates by class up to a cutoff, which validation chooses, and by plain SGD behind it.

    All candidates are one run up to their cutoffs, see the same batches and the same dropout, and train for `epochs` in
    all; 0 among `cutoffs` is plain SGD. Rates become 1 again after every half epoch. A run begins anew with a tenth of
    `rate_lr` that is not finite, be it behind a cutoff or plain throughout, or that at the last cutoff, which is 5 or more,
    knows no more than how frequent classes are, as the default `loss` tells. `model` itself is left as it is. Ctrl-C keeps
    the candidates that are complete.

    Args:
        model: the network to begin with, on the device to train on.
        train_loader: gives pairs (x, y), and knows its length; x is what the network takes, y are integers (n,).
        validate: takes a network in evaluation mode and returns its score, larger being better, NaN being worst; no test
            data.
        classes: how many there are.
        lr: the rate, > 0.
        rate_lr: how fast rates grow; the paper has 1e5 for SELU and tanh, 1e4 for ReLU.
        cutoffs: epochs after which a candidate goes on plainly, each in 0 to `epochs`.
        epochs: of each candidate.
        loss: takes the network's result and y, returns a scalar, the mean over samples.
        groups: returns what takes the place of classes for the rates, (n,) of integers below `classes`, given x and y.
        restarts: how often rates are divided by 10 at most; after the last one a collapsed run is kept.
        seed: of dropout, and of a loader without a generator of its own.
        folder: where every epoch is saved. The same call goes on from there, bit-equally on a CPU.
        observer: told of every epoch and every phase.
        **options: of `pared.optim.ClassRateSGD`: layers, momentum, per, trade_off, decay_lr.

    Raises:
        ConfigError: an option is out of its range.
        SurgeryError: a weight has a mask of torch.nn.utils.prune.
        RunError: the loss is not finite even after the last restart, or the folder holds another run.

    Source: per-weight class-based learning rates (ICLR 2018 submission), section 4. It does not say what counts as not
    converging; that is read as above.
    """
    cutoffs = sorted(set(cutoffs))
    _check(cutoffs, epochs, restarts, options)
    feed = Feed(train_loader, model)
    steps = feed.steps
    halves = (steps // 2, steps - steps // 2) if steps > 1 else 1

    def make(net: nn.Module, rate: float) -> ClassRateSGD:
        return ClassRateSGD(net, lr, rate, classes=classes, reset_every=halves, **options)

    refuse_masks(model, "train_by_class")
    make(plain_copy(model), rate_lr)  # options are looked at before anything begins
    about = {
        "epochs": epochs,
        "steps": steps,
        "lr": lr,
        "rate_lr": rate_lr,
        "seed": seed,
        "classes": classes,
        "cutoffs": cutoffs,
        "restarts": restarts,
        "options": repr(options),
        "start": model.state_dict(),
        "loss": name_of(loss),
        "groups": "" if groups is None else name_of(groups),
    }
    run = _Run(model, feed, validate, loss, make, cutoffs, epochs, groups, seed)
    run.observer = observer or Observer()
    run.folder = None if folder is None else Path(folder)
    if steps < 3:
        run.observer.note(f"warning: with {steps} steps an epoch all rates are 1 when they are used: this is plain SGD")
    with interruptible(), nullcontext() if run.folder is None else held(run.folder):
        if run.folder is not None:
            claim(run.folder, about | {"data": data_print(train_loader)})
        return run.learn(rate_lr, restarts)


@dataclass(eq=False)
class _Run:
    """One call of `train_by_class`."""

    start: nn.Module
    feed: Feed
    validate: Callable[[nn.Module], float]
    loss: Loss
    make: Callable[[nn.Module, float], ClassRateSGD]
    cutoffs: Sequence[int]
    epochs: int
    groups: Callable[[Any, Any], Tensor] | None
    seed: int
    observer: Observer = field(default_factory=Observer)
    folder: Path | None = None
    counts: Tensor | None = None

    def learn(self, rate_lr: float, restarts: int) -> ByClass:
        diverged: list[str] = []
        candidates: list[Candidate] = []
        interrupted = False
        try:
            while why := self._attempt(rate_lr, len(diverged), candidates, last=len(diverged) == restarts):
                diverged.append(f"rate_lr={rate_lr:g}: {why}")
                if len(diverged) > restarts:
                    raise RunError(f"training diverged with every rate ({'; '.join(diverged)}); lower lr")
                self.observer.note(f"{diverged[-1]}; beginning anew with a tenth")
                rate_lr /= 10
        except KeyboardInterrupt:
            more = (
                "with folder=... the same call would go on"
                if self.folder is None
                else f"the same call goes on in {self.folder}"
            )
            self.observer.note(f"interrupted: keeping the {len(candidates)} candidates that are complete; {more}")
            if not candidates:
                raise
            interrupted = True
        best = max(candidates, key=lambda one: (-math.inf if math.isnan(one.score) else one.score, -one.cutoff))
        return ByClass(best.model, best.cutoff, best.score, rate_lr, candidates, diverged, interrupted)

    def _attempt(self, rate: float, number: int, candidates: list[Candidate], *, last: bool) -> str:
        """Fill `candidates`, or return why this rate was given up."""
        candidates.clear()
        starts, why = self._rated(rate, number, last=last)
        if why:
            return why
        for cutoff in self.cutoffs:
            model, loss = self._plain(cutoff, starts[cutoff], rate, number)
            if not math.isfinite(loss):
                candidates.clear()
                return f"loss or weights were not finite behind cutoff {cutoff}"
            with torch.no_grad():
                candidates.append(Candidate(cutoff, model, float(self.validate(model)), loss))
            self.observer.note(f"cutoff {cutoff}: {candidates[-1].score:g}")
        return ""

    def _rated(self, rate: float, attempt: int, *, last: bool) -> tuple[dict[int, State], str]:
        """Train with rates by class; return the states at cutoffs, and why that was given up, if it was."""
        model = plain_copy(self.start)
        optimizer = self.make(model, rate)
        name = f"rates-{attempt}"
        state = self._load(name) or self._state(model, optimizer, 0, math.nan) | {"why": ""}
        starts = {cutoff: found for cutoff in self.cutoffs if (found := self._load(f"{name}-at-{cutoff}"))}
        if state["epoch"] == 0 and 0 in self.cutoffs:
            starts[0] = state
            self._save(f"{name}-at-0", state)
        self._fill(model, optimizer, state)
        for epoch in range(state["epoch"], self.cutoffs[-1]):
            if state["why"]:
                break
            loss = self._epoch(model, optimizer, epoch, {"phase": "rates", "rate_lr": rate})
            why = self._failure(model, epoch, loss, or_collapsed=not last)
            state = self._state(model, optimizer, epoch + 1, loss) | {"why": why}
            if epoch + 1 in self.cutoffs:
                starts[epoch + 1] = state
                self._save(f"{name}-at-{epoch + 1}", state)
            self._save(name, state)
        return starts, str(state["why"])

    def _plain(self, cutoff: int, state: State, rate: float, attempt: int) -> tuple[nn.Module, float]:
        """Go on plainly from a cutoff; return the network and its last loss."""
        model = plain_copy(self.start)
        optimizer = self.make(model, rate)
        name = f"plain-{attempt}-{cutoff}"
        state = self._load(name) or state
        self._fill(model, optimizer, state)
        optimizer.param_groups[0]["cutoff"] = 0
        for epoch in range(state["epoch"], self.epochs):
            if not math.isfinite(state["loss"]) and epoch > cutoff:
                break
            loss = self._epoch(model, optimizer, epoch, {"phase": "plain", "cutoff": cutoff})
            state = self._state(model, optimizer, epoch + 1, loss if _finite(model) else math.nan)
            self._save(name, state)
        model.zero_grad(set_to_none=True)
        return model.eval(), state["loss"]

    def _epoch(self, model: nn.Module, optimizer: ClassRateSGD, epoch: int, about: dict[str, Any]) -> float:
        """Train one epoch, whose random numbers depend on `seed` and its number alone; the global state stays as it was."""
        began = time.perf_counter()
        device = next(model.parameters()).device

        def around(x: Any, y: Any) -> AbstractContextManager[None]:
            return optimizer.classes(y if self.groups is None else self.groups(x, y))

        with _seeded(generator_for(self.seed, epoch).initial_seed(), device):
            loss = train_on(model, optimizer, self.feed, self.loss, around=around)
        seconds = time.perf_counter() - began
        self.observer.epoch({**about, "epoch": epoch, "epochs": self.epochs, "loss": loss, "seconds": seconds})
        return loss

    def _failure(self, model: nn.Module, epoch: int, loss: float, *, or_collapsed: bool) -> str:
        if not (math.isfinite(loss) and _finite(model)):
            return f"loss or weights were not finite in epoch {epoch + 1}"
        at_the_end = epoch + 1 == self.cutoffs[-1] >= PATIENCE
        judged = or_collapsed and at_the_end and self.loss is F.cross_entropy
        if judged and loss > 0.999 * self._uninformed():
            return f"the loss of epoch {epoch + 1}, {loss:.4g}, is that of knowing how frequent classes are"
        return ""

    def _uninformed(self) -> float:
        """The cross-entropy of an answer that is the same for all samples, or infinity where targets are no classes."""
        if self.counts is None:
            before = generator_states(self.feed.loader)
            with _seeded(0, torch.device("cpu")):
                ys = [batch[1] for batch in self.feed]
            set_generator_states(self.feed.loader, before)
            plain = all(isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point() for y in ys)
            known = torch.cat(ys) if plain else torch.zeros(0, dtype=torch.long)
            self.counts = known[known >= 0].bincount()  # those below 0 are of no account to the loss
        share = self.counts[self.counts > 0].double() / self.counts.sum()
        return float(-(share * share.log()).sum()) if len(share) else math.inf

    # --- states and the folder ---

    def _state(self, model: nn.Module, optimizer: ClassRateSGD, epoch: int, loss: float) -> State:
        """What it takes to go on behind an epoch. Rates are 1 there, and are left out."""
        kept: Any = optimizer.state_dict()
        kept["state"] = {
            key: {name: value for name, value in state.items() if name not in ("mu", "decay")}
            for key, state in kept["state"].items()
        }
        return copy.deepcopy(
            {
                "model": model.state_dict(),
                "optimizer": kept,
                "epoch": epoch,
                "loss": loss,
                "generators": generator_states(self.feed.loader),
            }
        )

    def _fill(self, model: nn.Module, optimizer: ClassRateSGD, state: State) -> None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        set_generator_states(self.feed.loader, state["generators"])

    def _save(self, name: str, state: Mapping[str, Any]) -> None:
        if self.folder is not None:
            save_state(self.folder / f"{name}.safetensors", state)

    def _load(self, name: str) -> State | None:
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        return load_state(path) if path is not None and path.exists() else None


def _check(cutoffs: Sequence[int], epochs: int, restarts: int, options: Mapping[str, Any]) -> None:
    if not cutoffs or not all(isinstance(one, int) for one in cutoffs) or not 0 <= cutoffs[0] <= cutoffs[-1] <= epochs:
        raise ConfigError(f"cutoffs must be epochs in 0 to epochs={epochs}, at least one, got {tuple(cutoffs)}")
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    if restarts < 0:
        raise ConfigError(f"restarts must be at least 0, got {restarts}")
    if mine := options.keys() & {"reset_every", "cutoff"}:
        raise ConfigError(
            f"{', '.join(sorted(mine))} is chosen here: rates are reset every half epoch, up to `cutoffs`"
        )


def _finite(model: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let random numbers on the CPU and on `device` begin at a seed, and go on behind it as if nothing had been drawn."""
    cuda = [device] if device.type == "cuda" else []
    with forked_random(cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
