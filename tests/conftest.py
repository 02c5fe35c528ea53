"""What every test shares: one thread, since two on a busy machine stall at random."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("pared", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("pared")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
