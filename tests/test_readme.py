"""Every Python block of the README runs as it stands, and every page of docs/ from its first block to its last."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


README = blocks(ROOT / "README.md")
PAGES = {path.name: "\n".join(blocks(path)) for path in sorted((ROOT / "docs").glob("*.md"))}
CODE = {**{f"README-{number}": block for number, block in enumerate(README)}, **PAGES}


@pytest.mark.parametrize("name", CODE)
def test_code_runs(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(CODE[name], name, "exec"), {"__name__": "page"})
    assert "Traceback" not in capsys.readouterr().err


def test_figures_are_filled_in() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"\b[A-Z]+_(?:TABLE|RATIO)\b", text)
    for image in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (ROOT / image).exists()
