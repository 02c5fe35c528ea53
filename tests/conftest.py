"""What every test shares: one thread, since two on a busy machine stall at random."""

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

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


#: Archives of public data beside the project, where they are: the folder, and what holds it.
ARCHIVES = {"uci": "uci-45.tar.xz", "snn-hyperparameters": "snn-hyperparameters.tar.xz"}


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return where a public data set is: in PARED_DATA, or unpacked from ../shared/data; without it the test is skipped."""
    found: dict[str, Path] = {}

    def find(name: str) -> Path:
        given = Path(os.environ.get("PARED_DATA", "")) / name
        archive = Path(__file__).parents[2] / "shared" / "data" / ARCHIVES[name]
        if "PARED_DATA" in os.environ and given.is_dir():
            return given
        if name not in found and archive.is_file():
            folder = tmp_path_factory.mktemp(name)
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
            found[name] = folder / name if (folder / name).is_dir() else folder
        if name not in found:
            pytest.skip(f"no {name} in PARED_DATA or ../shared/data")
        return found[name]

    return find
