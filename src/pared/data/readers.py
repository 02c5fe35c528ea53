"""Read a table from a file, whatever its dialect, or say in one sentence why not."""

import csv
import gzip
import io
import threading
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pared.data.dialect import MISSING, Dialect
from pared.errors import ConfigError, DataError

_LIMITED = threading.Lock()

DELIMITERS = (",", ";", "\t", "|")
TEXT = (".csv", ".tsv", ".txt", ".data", ".test")


def read_table(
    source: str | Path, *, header: bool | None = None, delimiter: str | None = None, decimal: str | None = None
) -> pd.DataFrame:
    """Return the table in a file; see `read_with_dialect`."""
    return read_with_dialect(source, header=header, delimiter=delimiter, decimal=decimal)[0]


def read_with_dialect(
    source: str | Path,
    *,
    header: bool | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
    like: Dialect | None = None,
    texts: Collection[str] = (),
) -> tuple[pd.DataFrame, Dialect | None]:
    """Return the table in a .csv, .tsv, .txt, .data, .parquet or .arff file, each also with .gz.

    Delimiter (comma, semicolon, tab, bar) and decimal mark are detected unless given; without `header` the columns are
    named column_1, column_2, …. Numeric columns come as numbers, the rest as text, missing values as NaN.

    The dialect found is returned, too, None for formats that leave nothing open. `like` is the dialect of a table of the
    same kind, which decides where the file does not; columns named in `texts` stay text whatever they hold.

    Raises:
        DataError: the file is missing, empty, damaged or not the table it claims to be.
        ConfigError: a delimiter of several characters, or another decimal mark than a point or a comma.
    """
    _check_marks(delimiter, decimal)
    path, dialect = Path(source), None
    content = _content(path)
    suffix = Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()
    if suffix == ".parquet":
        frame = _parquet(path, content)
    elif suffix == ".arff":
        from pared.data.arff import parse_arff

        frame = parse_arff(path, _decode(path, content))
    elif suffix in TEXT:
        asked = {"header": header, "delimiter": delimiter, "decimal": decimal}
        frame, dialect = _delimited(path, _decode(path, content), asked, like, texts)
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            dialect = replace(dialect, encoding="utf-16")
    else:
        raise DataError(
            f"{path}: the extension {suffix or '(none)'!r} is not known; use .csv, .tsv, .parquet or .arff, or one "
            "of them with .gz"
        )
    if not len(frame):
        raise DataError(f"{path} holds column names but no rows; give a file with data")
    return frame, dialect


def _check_marks(delimiter: str | None, decimal: str | None) -> None:
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '\r\n"\0'):
        raise ConfigError(f"the delimiter has to be one character such as ',' or ';', got {delimiter!r}")
    if decimal not in (None, ".", ","):
        raise ConfigError(f"the decimal mark has to be '.' or ',', got {decimal!r}")
    if decimal == "," and delimiter == ",":
        raise ConfigError("the comma cannot be both delimiter and decimal mark; give another of either")


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the file inside it")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path, or use a built-in name such as digits") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error):
            raise DataError(f"{path} is not a whole gzip file; download or compress it again") from None
    if not raw.strip():
        raise DataError(f"{path} is empty; give a file with column names and rows")
    return raw


def _decode(path: Path, content: bytes) -> str:
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 text; save the file as UTF-8 (it may be Latin-1: iconv -f latin1 -t utf8)"
        ) from None
    if "\0" in text:
        raise DataError(f"{path} holds binary data, not text; give a .csv, or name it .parquet if it is that")
    return text


def _parquet(path: Path, content: bytes) -> pd.DataFrame:
    import pyarrow

    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file ({str(error).splitlines()[0]}); write it again") from None
    return tidy(frame, str(path))


def _delimited(
    path: Path, text: str, asked: dict[str, Any], like: Dialect | None, texts: Collection[str]
) -> tuple[pd.DataFrame, Dialect]:
    lines = text.splitlines()
    known = like or Dialect()
    header = known.header if asked["header"] is None else asked["header"]
    delimiter = asked["delimiter"] or ("\t" if ".tsv" in path.suffixes else detect_delimiter(lines, known.delimiter))
    rows, numbers = _rows(text, delimiter)
    if len(rows) > 1 and len(rows[0]) < len(rows[1]) and rows[0][0].lstrip().startswith(("|", "#", "%")):
        rows, numbers = rows[1:], numbers[1:]
    width = len(rows[0])
    if width == 1:
        _suspect_delimiter(path, lines, delimiter)
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != width:
            raise DataError(
                f"{path}, line {number}: expected {width} fields separated by {delimiter!r}, got {len(row)}; "
                "mend that line or give --delimiter"
            )
    names = [name.strip() for name in rows[0]] if header else [f"column_{i + 1}" for i in range(width)]
    _check_names(names, str(path))
    body = rows[1:] if header else rows
    decimal = asked["decimal"] or _detect_decimal(body, delimiter, known.decimal)
    columns = list(zip(*body, strict=True)) or [()] * width
    made = {
        name: _text(values) if name in texts else _column(values, decimal)
        for name, values in zip(names, columns, strict=True)
    }
    return pd.DataFrame(made), Dialect(header, delimiter, decimal)


def _rows(text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    rows, numbers = [], []
    with _long_fields():
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        for row in reader:
            if row and (len(row) > 1 or row[0].strip()):
                rows.append(row)
                numbers.append(reader.line_num)
    return rows, numbers


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let fields be as long as texts get; the limit is the process's, so it is put back, and one thread reads at a time."""
    with _LIMITED:
        before = csv.field_size_limit(2**27)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def detect_delimiter(lines: list[str], usual: str = ",") -> str:
    """Return the delimiter that splits the first lines into the same number of fields, the most fields winning.

    Where nothing tells them apart, it is the `usual` one.
    """
    sample = [line for line in lines[:200] if line.strip()][:100]
    scores: list[tuple[float, int, bool, str]] = []
    for delimiter in dict.fromkeys((*DELIMITERS, usual)):
        with _long_fields():
            widths = Counter(len(row) for row in csv.reader(sample, delimiter=delimiter, skipinitialspace=True))
        width, count = max(widths.items(), key=lambda item: item[1], default=(1, 0))
        if width > 1:
            scores.append((round(count / sum(widths.values()), 1), width, delimiter == usual, delimiter))
    return max(scores)[-1] if scores else usual


def _suspect_delimiter(path: Path, lines: list[str], delimiter: str) -> None:
    found = detect_delimiter(lines)
    if found != delimiter and any(found in line for line in lines[:3]):
        raise DataError(
            f"{path}: split by {delimiter!r} there is a single column; the file seems to use {found!r}, give "
            f"--delimiter {found!r}"
        )
    if sum(len(line.split()) > 1 for line in lines[:20]) > 10:
        raise DataError(
            f"{path}: a single column was found, and blanks inside it; separate the fields by commas or give "
            "--delimiter"
        )


def _detect_decimal(rows: list[list[str]], delimiter: str, usual: str) -> str:
    """The mark in most numbers that have one, else the `usual` one; never a comma when the comma separates fields."""
    if delimiter == ",":
        return "."
    cells = [cell.strip() for row in rows[:500] for cell in row]
    commas = sum(_number(cell, ",") is not None and "," in cell for cell in cells)
    points = sum(_number(cell, ".") is not None and "." in cell for cell in cells)
    return usual if commas == points else "," if commas > points else "."


def _number(cell: str, decimal: str) -> float | None:
    try:
        return float(cell if decimal == "." else cell.replace(".", "x").replace(",", "."))
    except ValueError:
        return None


def _column(values: tuple[str, ...], decimal: str) -> Any:
    """Numbers where every value present is one, text otherwise; missing marks become NaN."""
    cells = [value.strip() for value in values]
    present = [None if cell in MISSING else cell for cell in cells]
    numbers = [None if cell is None else _number(cell, decimal) for cell in present]
    if all((number is None) == (cell is None) for number, cell in zip(numbers, present, strict=True)):
        column = pd.Series(numbers, dtype="float64")
        whole = column.notna().all() and bool((column % 1 == 0).all()) and bool((column.abs() < 2**53).all())
        return column.astype("int64") if whole else column
    return pd.Series(present, dtype="object")


def _text(values: tuple[str, ...]) -> Any:
    cells = [value.strip() for value in values]
    return pd.Series([None if cell in MISSING else cell for cell in cells], dtype="object")


def _check_names(names: list[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{where}: the column name {twice[0]!r} appears {names.count(twice[0])} times; give every column its "
            "own name"
        )


def tidy(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a frame from any source in the readers' form: text columns as objects with NaN, plain string names.

    Raises:
        DataError: two columns share a name.
    """
    frame = frame.copy()
    frame.columns = [str(name).strip() for name in frame.columns]
    _check_names(list(frame.columns), where)
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_bool_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
            continue
        if pd.api.types.is_numeric_dtype(column):
            frame[name] = column if column.dtype.kind in "iuf" else column.astype("float64")
            continue
        texts = [None if pd.isna(value) or str(value).strip() in MISSING else str(value).strip() for value in column]
        frame[name] = pd.Series(texts, dtype="object", index=frame.index)
    return frame.reset_index(drop=True)
