"""Options that several commands share."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from pared.errors import ConfigError, RunError

Target = Annotated[list[str] | None, typer.Option(help="The column to predict; several times to regress several.")]
Test = Annotated[str | None, typer.Option(help="A separate table to report on.")]
Task = Annotated[str | None, typer.Option(help="classification or regression, if the guess is wrong.")]
Weights = Annotated[str | None, typer.Option(help="A column of row weights.")]
Drop = Annotated[list[str] | None, typer.Option(help="A column to ignore; may be repeated.")]
Header = Annotated[bool, typer.Option(help="Whether the first line names the columns.")]
Delimiter = Annotated[str | None, typer.Option(help="What separates fields, if the guess is wrong.")]
Decimal = Annotated[str | None, typer.Option(help="The decimal mark, if the guess is wrong.")]
ClassWeights = Annotated[str | None, typer.Option(help="balanced: rare classes weigh as much as frequent ones.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …  [default: cpu]")]
Threads = Annotated[int | None, typer.Option(help="CPU threads, of each process.  [default: 1]")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
RunFolder = Annotated[Path, typer.Argument(help="The run folder.")]


def check_task(task: str | None) -> None:
    """Make sure of `--task`."""
    if task not in (None, "classification", "regression"):
        raise ConfigError(f"--task must be classification or regression, got {task!r}")


def folder_name(data: str) -> str:
    """Return what to call the folder of a run on `data`."""
    return Path(data.replace(":", "-")).name.split(".")[0]


def integers(text: str | None) -> tuple[int, ...] | None:
    """Return the numbers of `--hidden`."""
    try:
        return None if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--hidden must be whole numbers such as 500,500; got {text!r}") from None


def floats(text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of `--strength`."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--strength must be two numbers such as 1e-3,0.3; got {text!r}") from None


def print_bytes(text: str) -> None:
    """Write what other programs read to standard output, as UTF-8 whatever the terminal's letters are.

    Raises:
        RunError: standard output is closed or full.
    """
    from pared.storage import encoded

    if sys.stdout is None:
        raise RunError("standard output is closed, so there is nowhere to write; give a file with --out")
    sys.stdout.flush()
    try:
        with contextlib.suppress(AttributeError):
            sys.stdout.buffer.write(encoded(text))
            sys.stdout.buffer.flush()
            return
        sys.stdout.write(text)  # a stand-in that takes text only
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"standard output could not be written ({error.strerror})") from None


def escaped(delimiter: str | None) -> str | None:
    r"""Return the delimiter; a shell has no easy way to write a tab: \t stands for it."""
    return None if delimiter is None else delimiter.replace("\\t", "\t")
