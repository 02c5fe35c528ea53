"""Every Python block of the README and of docs/ runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = [
    (path.name, number, block)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("block", [b for *_, b in BLOCKS], ids=[f"{name}-{number}" for name, number, _ in BLOCKS])
def test_block_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "block", "exec"), {})
    assert "Traceback" not in capsys.readouterr().err


def test_figures_are_filled_in() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"\b[A-Z]+_(?:TABLE|RATIO)\b", text)
    for image in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (ROOT / image).exists()
