"""Planted structure is found: learned end to end, no threshold, and no one says how many branches made the data."""

from types import ModuleType

import pytest

from helpers import script


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    return script("gates/planted.py")


def test_exactly_the_planted_branches_are_left(planted: ModuleType) -> None:
    found = planted.run(planted.BASE, seed=104)
    assert len(found["planted"]) == 3
    assert found["left"] == found["planted"]
    assert sum(found["shares"]) == pytest.approx(1.0, abs=1e-5)
    assert all(share == pytest.approx(1 / 3, abs=0.03) for share in found["shares"] if share)
    assert found["mse"] < 0.02


def test_without_norms_a_branch_of_no_use_takes_shares(planted: ModuleType) -> None:
    found = planted.run(planted.FORMS["fast, plain"], seed=104)
    assert not found["exact"]
    assert found["useless"] > 0.3
