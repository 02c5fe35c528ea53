"""The command line as it was typed."""

import shlex
import sys


def command_line() -> str:
    """Return the words of this process as one could type them again, without the path of the program."""
    return shlex.join(["pared", *sys.argv[1:]])
