"""What pared raises when the caller can mend it: one sentence saying what, where, what was expected, what to do."""

import sys
import warnings
from pathlib import Path


class ParedError(Exception):
    """Base of every error a person can mend; the command line prints it and exits with status 2."""


class DataError(ParedError, ValueError):
    """A table, a column or a value is not what was expected."""


class ConfigError(ParedError, ValueError):
    """An option has a value outside its range, or two options contradict each other."""


class RunError(ParedError, RuntimeError):
    """A run folder or a saved model is missing, damaged, taken or cannot be written."""


class SurgeryError(ParedError, RuntimeError):
    """A removal is not understood or not exact; nothing was changed."""


class TrainingError(ParedError, RuntimeError):
    """Training cannot go on: a loss, a gradient or a weight is not finite."""


def warn(message: str) -> None:
    """Warn of what a user should know and can go on with, at the line of theirs that called pared, however deep this is."""
    level, frame = 1, sys._getframe()
    while frame is not None and Path(frame.f_code.co_filename).is_relative_to(_HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


_HERE = Path(__file__).parent
