"""Everything a run can be told, validated."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from pared.errors import ConfigError
from pared.nn.switch import Drawn

Select = Literal["features", "columns", "none"]

#: Optimizer steps a shrinking run takes by default: enough for switches that start at 1 to reach 0 unhurried.
STEPS = 7_500


@dataclass(frozen=True)
class Settings:
    """How a front is learned.

    Args:
        hidden: widths of the oversized start, each >= 1.
        epochs: epochs of the shrinking run; from the number of rows when None (about 7,500 steps, 15 to 400 epochs).
        batch_size: rows a step; from the number of rows when None (16 to 512).
        lr: Adam's step size.
        weight_decay: coupled L2 on everything except switches (lambda_2 of equation 2 with p = 2).
        strength: the penalty's strength at the first and last epoch, raised geometrically.
        switch_init: how switches start; the paper's experiments use "uniform".
        gamma: memory of the sign statistics, in [0, 1).
        threshold: sign variance above which a unit dies.
        select: which inputs can die: single encoded "features", whole source "columns", or "none".
        fine_tune: epochs without penalty for each point of the front; a fifth of `epochs` when None, 0 for none.
        refit: repeat the last fit of the front's points, and the dense reference, on training and validation rows
            together, once validation has chosen them; scores on validation stay those of the twins that never saw it.
        max_params: choose among points with at most this many parameters.
        max_drop: choose the smallest point at most this many points of the metric below the dense reference.
        max_latency: choose among points that answer one row within this many microseconds, one thread.
        metric: what chooses; the task's usual one when None.
        class_weights: "balanced" or None.
        seed: of splits, initial weights and order of rows.
        device: where to train, such as "cpu" or "cuda".
        threads: CPU threads while training.

    Raises:
        ConfigError: a value outside its range, named.
    """

    hidden: tuple[int, ...] = (500, 500)
    epochs: int | None = None
    batch_size: int | None = None
    lr: float = 2e-3
    weight_decay: float = 1e-3
    strength: tuple[float, float] = (1e-3, 3e-1)
    switch_init: Drawn = "ones"
    gamma: float = 0.9
    threshold: float = 0.5
    select: Select = "features"
    fine_tune: int | None = None
    refit: bool = True
    max_params: int | None = None
    max_drop: float | None = None
    max_latency: float | None = None
    metric: str | None = None
    class_weights: Literal["balanced"] | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "strength", tuple(self.strength))
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden must be one or more widths of at least 1, such as 500,500; got {self.hidden}")
        for name in ("epochs", "batch_size", "max_params", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name in ("weight_decay", "max_drop", "fine_tune", "seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite, got {value}")
        for name in ("lr", "max_latency", "threshold"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be above 0, got {value}")
        if len(self.strength) != 2 or not 0 < self.strength[0] <= self.strength[1] < math.inf:
            raise ConfigError(f"strength must be two numbers 0 < start <= stop, such as 1e-3,0.3; got {self.strength}")
        if not 0 <= self.gamma < 1:
            raise ConfigError(f"gamma must be in [0, 1), got {self.gamma}")
        for name, choices in (
            ("select", get_args(Select)),
            ("switch_init", get_args(Drawn)),
            ("class_weights", ("balanced", None)),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}; got {getattr(self, name)!r}")

    def _check_types(self) -> None:
        whole = ("epochs", "batch_size", "fine_tune", "max_params", "seed", "threads")
        real = ("lr", "weight_decay", "gamma", "threshold", "max_drop", "max_latency")
        for names, kind, what in ((whole, Integral, "a whole number"), (real, Real, "a number")):
            for name in names:
                value = getattr(self, name)
                if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                    raise ConfigError(f"{name} has a value of the wrong type: expected {what}, got {value!r}")
        for name, kind, what in (("hidden", Integral, "whole numbers"), ("strength", Real, "two numbers")):
            values = getattr(self, name)
            if (
                isinstance(values, str)
                or not isinstance(values, Iterable)
                or not all(isinstance(v, kind) for v in values)
            ):
                raise ConfigError(f"{name} has a value of the wrong type: expected {what}, got {values!r}")

    def resolved(self, rows: int) -> "Settings":
        """Return the settings with what depends on the number of training rows filled in."""
        batch = self.batch_size
        if batch is None:
            batch = 2 ** min(7, max(4, round(math.log2(max(rows, 1) / 32))))
            batch = batch if rows <= 100_000 else 256 if rows <= 500_000 else 512
        batch = min(batch, rows)
        steps = max(1, rows // batch)
        epochs = self.epochs or min(400, max(15, math.ceil(STEPS / steps)))
        tune = self.fine_tune if self.fine_tune is not None else max(1, epochs // 5)
        return dataclasses.replace(self, batch_size=batch, epochs=epochs, fine_tune=tune)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Settings":
        """Build settings from names and values, as read from a configuration file.

        Raises:
            ConfigError: an unknown name, or a value of the wrong type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(data.keys() - known)
        if unknown:
            raise ConfigError(f"unknown setting {unknown[0]!r}; choose from {', '.join(sorted(known))}")
        try:
            return cls(**data)
        except TypeError as error:
            raise ConfigError(
                f"a setting has a value of the wrong type ({error}); see the defaults in pared.train.settings"
            ) from None
