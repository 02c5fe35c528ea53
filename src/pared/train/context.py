"""What the phases of learning a front share: rows, settings, the score, checkpoints and records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pared.measure.weights import weight_figures
from pared.methods import Event
from pared.train.arrays import Arrays
from pared.train.checkpoint import load_state, save_state
from pared.train.settings import Settings

#: Larger is better; takes evaluation outputs (n, …), targets and weights.
Score = Callable[[Tensor, Tensor, Tensor | None], float]
Record = dict[str, Any]


class Observer:
    """Called on the way: `epoch` with a metrics record, `event` with a removal's record, `note` with a line of text.

    Give functions, or override the methods in a subclass; a function that is given goes before a method.
    """

    def __init__(
        self,
        epoch: Callable[[Record], None] | None = None,
        event: Callable[[Record], None] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        given = {"epoch": epoch, "event": event, "note": note}
        vars(self).update({name: function for name, function in given.items() if function is not None})

    def epoch(self, record: Record) -> None:
        """Take the metrics of an epoch."""

    def event(self, record: Record) -> None:
        """Take what was removed."""

    def note(self, line: str) -> None:
        """Take a line for a person to read."""


@dataclass
class Context:
    """One problem: rows to learn from and to judge on, and how.

    `outputs` is the number of classes or targets; `score` judges, larger is better; `baseline` is the score of knowing
    nothing. `groups` are the sizes of neighbouring inputs that live and die together, or None. With `folder`, every
    epoch is checkpointed there, and each phase goes on from what it finds.
    """

    train: Arrays
    val: Arrays
    outputs: int
    settings: Settings
    score: Score
    baseline: float
    groups: Sequence[int] | None = None
    folder: Path | None = None
    observer: Observer = field(default_factory=Observer)
    _narrowed: tuple[Tensor, Arrays, Arrays] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.settings = self.settings.resolved(len(self.train))
        device = self.settings.device
        self.train, self.val = self.train.to(device), self.val.to(device)

    @property
    def features(self) -> int:
        """How many encoded inputs there are."""
        return self.train.x.shape[1]

    @property
    def batch_size(self) -> int:
        """Rows a step."""
        assert self.settings.batch_size is not None
        return self.settings.batch_size

    @property
    def epochs(self) -> int:
        """Epochs of the shrinking run, and at most of the dense reference."""
        assert self.settings.epochs is not None
        return self.settings.epochs

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch."""
        return max(1, len(self.train) // self.batch_size)

    def narrow(self, inputs: Tensor) -> tuple[Arrays, Arrays]:
        """Return the training and validation rows with the features `inputs` only, narrowed once for each set."""
        if inputs.shape[0] == self.features:
            return self.train, self.val
        inputs = inputs.to(self.train.x.device)
        if self._narrowed is None or not torch.equal(self._narrowed[0], inputs):
            self._narrowed = (inputs.clone(), self.train.columns(inputs), self.val.columns(inputs))
        return self._narrowed[1:]

    def report(self, phase: str, epoch: int, model: nn.Sequential, **figures: float) -> None:
        """Tell the observer of one epoch; `figures` are strength, loss, val_score, val_loss and seconds.

        What there is of weights besides is `pared.measure.weights.weight_figures`, with its own threshold.
        """
        linears = [layer for layer in model if isinstance(layer, nn.Linear)]
        self.observer.epoch(
            {
                "phase": phase,
                "epoch": epoch,
                "epochs": self.epochs,
                "step": (epoch + 1) * self.steps_per_epoch,
                **figures,
                "inputs": linears[0].in_features,
                "hidden": [layer.out_features for layer in linears[:-1]],
                "params": sum(p.numel() for p in model.parameters()),
                "macs": sum(layer.weight.numel() for layer in linears),
                "lr": self.settings.lr,
                **weight_figures(model),
            }
        )

    def report_event(self, event: Event, epoch: int, inputs: Tensor) -> None:
        """Tell the observer of a removal; `inputs` are the features in use before it."""
        self.observer.event(
            {
                "phase": "shrink",
                "epoch": epoch,
                "step": event.step,
                "layer": event.layer,
                "removed": event.removed,
                "left": event.left,
                "index": inputs[list(event.index)].tolist() if event.layer == "inputs" else [],
            }
        )

    def save(self, name: str, state: Record) -> None:
        """Checkpoint `state` under `name`, if there is a folder."""
        if self.folder is not None:
            save_state(self.folder / f"{name}.safetensors", state)

    def load(self, name: str) -> Record | None:
        """Return the checkpoint `name`, or None where there is none."""
        path = self.folder / f"{name}.safetensors" if self.folder is not None else None
        return load_state(path) if path is not None and path.exists() else None
