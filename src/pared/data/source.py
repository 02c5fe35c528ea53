"""One door for data: a path, a built-in name, openml:ID, or a frame."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.util import hash_pandas_object

from pared.data.dialect import Dialect
from pared.data.readers import read_with_dialect, tidy
from pared.errors import DataError
from pared.process import silent

BUILTIN = ("digits", "breast-cancer", "wine", "diabetes", "iris")


@dataclass(frozen=True)
class Table:
    """A frame, where it came from, the target if the source names one, the sha256 of its content, a text's dialect."""

    frame: pd.DataFrame
    source: str
    target: str | None
    sha256: str
    dialect: Dialect | None = None


def load_table(source: str | Path | pd.DataFrame, **dialect: Any) -> Table:
    """Return the table behind `source`; `dialect` are the keywords of `read_with_dialect`.

    Raises:
        DataError: the source cannot be read.
    """
    if isinstance(source, pd.DataFrame):
        frame = tidy(source, "the data frame")
        if not len(frame):
            raise DataError("the data frame has no rows; give a frame with data")
        return Table(frame, "data frame", None, fingerprint(frame))
    name, found = str(source), None
    if name in BUILTIN:
        frame, target = _builtin(name)
    elif name.startswith("openml:"):
        frame, target = _openml(name)
    elif "://" in name:
        raise DataError(f"{name} is an address; pared reads files only, so download it first and give the file")
    else:
        (frame, found), target = read_with_dialect(source, **dialect), None
    return Table(frame, name, target, fingerprint(frame), found)


def fingerprint(frame: pd.DataFrame) -> str:
    """Return a sha256 over column names and values."""
    digest = hashlib.sha256("\0".join(frame.columns).encode())
    hashes: Any = hash_pandas_object
    digest.update(hashes(frame, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _builtin(name: str) -> tuple[pd.DataFrame, str]:
    from sklearn import datasets

    loaders: dict[str, Any] = {
        "digits": datasets.load_digits,
        "breast-cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
        "diabetes": datasets.load_diabetes,
        "iris": datasets.load_iris,
    }
    bunch: Any = loaders[name]()
    frame = pd.DataFrame(bunch.data, columns=[str(column) for column in bunch.feature_names])
    labels: Any = getattr(bunch, "target_names", None)
    if labels is None or name == "digits":
        frame["target"] = bunch.target
    else:
        frame["target"] = pd.Series([str(labels[i]) for i in bunch.target], dtype="object")
    return frame, "target"


def _openml(name: str) -> tuple[pd.DataFrame, str | None]:
    from urllib.error import URLError

    from sklearn.datasets import fetch_openml

    number = name.removeprefix("openml:")
    if not number.isdigit():
        raise DataError(f"{name}: expected openml: and the number of a data set, such as openml:1590")
    try:
        with silent(UserWarning):  # each try without a network warns; one sentence is enough
            bunch: Any = fetch_openml(data_id=int(number), as_frame=True, parser="auto", n_retries=1)
    except (URLError, OSError, ValueError) as error:
        raise DataError(
            f"{name} could not be fetched ({error}); check the number and the network, or give a file"
        ) from None
    targets = [bunch.target.name] if bunch.target is not None and hasattr(bunch.target, "name") else []
    return tidy(bunch.frame, name), targets[0] if targets else None
