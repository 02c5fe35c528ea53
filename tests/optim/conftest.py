"""What tests of optimizers share."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from pared.native import disabled, library


@pytest.fixture(params=["native", "torch"], scope="module", autouse=True)
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test with the compiled kernels, if there are any, and without."""
    native = request.param == "native"
    if native and library() is None:
        pytest.skip("the kernels are not built")
    with nullcontext() if native else disabled():
        yield
