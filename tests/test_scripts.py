"""Every script of benchmarks/ and reproduce/ still finds what it imports; nothing is run."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(
    str(p.relative_to(ROOT)) for folder in ("benchmarks", "reproduce") for p in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str((ROOT / name).parent), *sys.path])
    before = set(sys.modules)
    try:
        runpy.run_path(str(ROOT / name), run_name="imported")
    finally:  # scripts of different folders may have neighbours of one name
        folders = tuple(f"{ROOT / folder}/" for folder in ("benchmarks", "reproduce"))
        for module in set(sys.modules) - before:
            if str(getattr(sys.modules[module], "__file__", "")).startswith(folders):
                del sys.modules[module]
