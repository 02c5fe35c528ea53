import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.errors import ConfigError
from pared.train.settings import Settings

WHOLE = ("epochs", "batch_size", "fine_tune", "max_params", "seed", "threads")
REAL = ("lr", "weight_decay", "gamma", "threshold", "max_drop", "max_latency")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [2.5, float("nan"), "3", True, -1, [1]])
def test_whole_numbers_are_whole_and_not_negative(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", ["1", True, -0.1, math.inf, math.nan, (1.0,)])
def test_numbers_are_finite_and_not_negative(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden", 5), ("hidden", "500"), ("hidden", (2.5,)), ("hidden", None), ("strength", 1.0), ("strength", "1,2"), ("strength", (1.0,)), ("strength", (0.0, 1.0)), ("strength", (1.0, math.inf)), ("strength", (math.nan, 1.0))],
)  # fmt: skip
def test_lists_are_lists_of_numbers(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        Settings(**{name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    settings = Settings(hidden=tuple(np.array([4, 5])), epochs=np.int64(3), lr=np.float32(0.5), seed=np.int32(2))  # pyright: ignore[reportArgumentType]
    assert settings.hidden == (4, 5)
    assert settings.resolved(100).epochs == 3


@given(
    st.integers(1, 10**6),
    st.none() | st.integers(1, 500),
    st.none() | st.integers(1, 2000),
    st.none() | st.integers(0, 50),
)
def test_resolving_keeps_what_was_given_fills_the_rest_and_is_idempotent(
    rows: int, epochs: int | None, batch: int | None, tune: int | None
) -> None:
    settings = Settings(epochs=epochs, batch_size=batch, fine_tune=tune)
    resolved = settings.resolved(rows)
    assert resolved == resolved.resolved(rows)
    assert resolved.epochs == (epochs or resolved.epochs)
    assert resolved.batch_size == (min(batch, rows) if batch else resolved.batch_size)
    assert resolved.fine_tune is not None
    assert resolved.fine_tune == tune if tune is not None else resolved.fine_tune >= 1
    rest = {"epochs": None, "batch_size": None, "fine_tune": None}
    assert dataclasses.replace(resolved, **rest) == dataclasses.replace(settings, **rest)
