"""What pared raises when the caller can mend it: one sentence saying what, where, what was expected, what to do."""


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
