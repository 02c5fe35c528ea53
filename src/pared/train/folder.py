"""The run folder: claimed once, appended to line by line, every file written whole or not at all."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pared.errors import RunError
from pared.locking import NAME
from pared.storage import write_atomically


class RunFolder:
    """A folder that belongs to one run; `checkpoints` is where the run goes on from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    @classmethod
    def claim(cls, path: Path, config: Mapping[str, Any], *, resume: bool) -> "RunFolder":
        """Create the folder for a run with `config` (sections of values), or take it up again.

        Raises:
            RunError: it holds another run, is no folder, or cannot be written; or there is nothing to resume.
        """
        folder = cls(path)
        stored = path / "config.toml"
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; choose another --out")
        if resume:
            if not stored.exists():
                raise RunError(f"{path} holds no run to resume; leave --resume out to start one")
            folder._check_same(config)
        elif path.exists() and any(item.name != NAME for item in path.iterdir()):
            raise RunError(f"{path} is not empty; add --resume to go on with its run, or choose another --out")
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path} cannot be created ({error.strerror}); choose another --out") from None
        if not resume:
            write_atomically(stored, to_toml(config))
        return folder

    def _check_same(self, config: Mapping[str, Any]) -> None:
        """Everything that decides the result must be as it was; versions may only be told apart by a note."""
        try:
            stored = tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.path / 'config.toml'} is damaged ({error}); start the run anew in another --out"
            ) from None
        wanted = tomllib.loads(to_toml(config))
        for section in ("data", "settings"):
            before, now = stored.get(section, {}), wanted.get(section, {})
            for key in before.keys() | now.keys():
                if before.get(key) != now.get(key):
                    raise RunError(
                        f"{self.path} was started with {key} = {before.get(key)!r}, now it is {now.get(key)!r}; "
                        "resume with the same data and options"
                    )

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the run atomically."""
        write_atomically(self.path / name, content)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one JSON line."""
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.path / name} could not be written ({error.strerror}); free some space and use --resume"
            ) from None

    def truncate(self, done: Mapping[str, int]) -> None:
        """Drop the lines of epochs that a resumed run will do again; `done` maps a phase to its finished epochs."""
        for name in ("metrics.jsonl", "events.jsonl"):
            kept = [r for r in read_lines(self.path / name) if r["epoch"] < done.get(r["phase"], 0)]
            self.write(name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a .jsonl file; a last line cut off by a crash is left out, a missing file is empty."""
    if not path.exists():
        return []
    records = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise RunError(f"{path}, line {number} is damaged; delete that line") from None
    return records


def to_toml(config: Mapping[str, Any]) -> str:
    """Return sections of scalars and lists as TOML; None is left out, as TOML has no such value."""
    lines = []
    for section, values in config.items():
        if not isinstance(values, Mapping):
            lines.insert(0, f"{section} = {json.dumps(values)}")
            continue
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines).lstrip("\n") + "\n"
