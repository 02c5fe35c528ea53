"""What every test shares: one thread, since two on a busy machine stall at random."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from pared.native import disabled, library

settings.register_profile("pared", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("pared")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(
    params=[pytest.param("native", marks=pytest.mark.skipif(library() is None, reason="not built")), "torch"],
    scope="module",
)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which kernels sparse layers use: the compiled ones, or torch's own."""
    if request.param == "native":
        yield "native"
        return
    with disabled():
        yield "torch"
