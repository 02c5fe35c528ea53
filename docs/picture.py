"""Draw the README's picture, the front of a finished run: python docs/picture.py RUN OUT.svg."""

import sys
from pathlib import Path

from pared.report.figures import front_figure
from pared.report.html import standalone
from pared.report.reading import read_run


def main() -> None:
    """Draw the picture."""
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.write_text(standalone(front_figure(read_run(run))) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
