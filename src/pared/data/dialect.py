"""How a text file writes a table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: Texts that mean "missing", compared after stripping blanks.
MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "none", "#N/A", "<NA>")


@dataclass(frozen=True)
class Dialect:
    """Whether the first line names the columns, what separates fields, the decimal mark, the marks of missing values.

    `thousands` is the mark between groups of digits, None if numbers are written without. A model keeps the dialect of
    its training table: where a new file leaves something open, it is taken to be written alike.
    """

    header: bool = True
    delimiter: str = ","
    decimal: str = "."
    thousands: str | None = None
    missing: tuple[str, ...] = MISSING
    encoding: str = "utf-8"

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {**asdict(self), "missing": list(self.missing)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Dialect":
        """Rebuild a dialect from `to_json`'s data.

        Raises:
            ValueError: a value that is none of a dialect.
        """
        found = cls(**{**data, "missing": tuple(data.get("missing", MISSING))})
        marks = (found.delimiter, found.decimal, found.encoding, *found.missing)
        if not isinstance(found.header, bool) or not all(isinstance(mark, str) for mark in marks):
            raise ValueError(f"dialect {dict(data)}")
        if len(found.delimiter) != 1 or found.decimal not in (".", ",") or found.thousands is not None:
            raise ValueError(f"delimiter {found.delimiter!r}, decimal mark {found.decimal!r}")
        return found
