"""The ARFF format of Weka and Mulan: dense rows of numbers, nominals, strings and dates."""

import csv
import re
from pathlib import Path

import pandas as pd

from pared.errors import DataError

_ATTRIBUTE = re.compile(r"""@attribute\s+('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)\s+(.+)""", re.IGNORECASE)


def parse_arff(path: Path, text: str) -> pd.DataFrame:
    """Return the table in ARFF `text`; `path` is for messages.

    Raises:
        DataError: no attributes, no data section, sparse rows, a row of the wrong length.
    """
    from pared.data.readers import _check_names, _column

    names: list[str] = []
    rows: list[list[str]] = []
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("%"):
            continue
        if inside:
            rows.append(_row(path, number, stripped, len(names)))
        elif stripped.lower().startswith("@data"):
            inside = True
        else:
            match = _ATTRIBUTE.match(stripped)
            if match:
                names.append(match[1].strip("'\""))
    if not names or not inside:
        raise DataError(
            f"{path}: no {'@data' if names else '@attribute'} line; this is not an ARFF file, give one or name it .csv"
        )
    _check_names(names, str(path))
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pd.DataFrame({name: _column(values, ".") for name, values in zip(names, columns, strict=True)})


def _row(path: Path, number: int, line: str, width: int) -> list[str]:
    if line.startswith("{"):
        raise DataError(f"{path}, line {number}: sparse ARFF rows are not read; convert the file to dense ARFF or .csv")
    quote = "'" if "'" in line else '"'
    row = next(csv.reader([line], quotechar=quote, skipinitialspace=True, escapechar="\\"))
    if len(row) != width:
        raise DataError(f"{path}, line {number}: expected {width} fields, got {len(row)}; mend that line")
    return row
