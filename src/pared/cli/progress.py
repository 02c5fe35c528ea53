"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pared.train.context import Observer

#: Elsewhere than on a terminal a phase prints a line at most this often, in seconds.
EVERY = 2.0
PHASES = {"dense": "dense reference", "shrink": "shrinking"}


class Progress:
    """A context that shows records as they come; `quiet` shows nothing but warnings and what an interrupt kept."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr)
        self.quiet = quiet
        self.live = Live(console=self.console, refresh_per_second=8, transient=True) if self._terminal() else None
        self.last, self.phase = 0.0, ""

    def _terminal(self) -> bool:
        return self.console.is_terminal and not self.quiet

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def observer(self) -> Observer:
        """Return the observer to hand to `pared.fit`."""
        return Observer(epoch=self._epoch, note=self._note)

    def _epoch(self, record: dict[str, Any]) -> None:
        line = describe(record)
        now = time.monotonic()
        if self.live is not None:
            self.live.update(Text(line, overflow="ellipsis", no_wrap=True))
        elif not self.quiet and (now - self.last > EVERY or record["phase"] != self.phase):
            self.console.print(line, highlight=False, soft_wrap=True)
            self.last = now
        self.phase = record["phase"]

    def _note(self, line: str) -> None:
        if line.startswith(("warning", "interrupted")):
            self.console.print(line, highlight=False, soft_wrap=True)
        elif self.live is not None:
            self.live.update(Text(line, no_wrap=True))
        elif not self.quiet and time.monotonic() - self.last > EVERY:
            self.console.print(line, highlight=False, soft_wrap=True)
            self.last = time.monotonic()


def describe(record: dict[str, Any]) -> str:
    """Return one line about an epoch: where it stands, what is alive, and how long it still takes at most."""
    done = record["epoch"] + 1
    left = record["seconds"] / done * (record["epochs"] - done)
    widths = "-".join(map(str, record["hidden"]))
    return (
        f"{PHASES[record['phase']]}: epoch {done} of at most {record['epochs']}, loss {record['loss']:.3f}, "
        f"validation {record['val_score']:.4f}, {record['inputs']} inputs, {widths} neurons, "
        f"{record['params']:,} parameters, {left:.0f} s left at most"
    )
