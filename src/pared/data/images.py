"""Small images: files in the IDX format of MNIST and its kin."""

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pared.errors import DataError

#: Element types by the third byte of an IDX file; numbers are big-endian.
_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | Path) -> Tensor:
    """Return the array of an IDX file, gzipped or not, in its own type and shape.

    Raises:
        DataError: the file is missing, truncated, or no IDX file.

    Source: the format's description at http://yann.lecun.com/exdb/mnist.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an IDX file ({error})") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{path} is no IDX file: it has to start with two zero bytes, a type and a number of axes")
    kind, axes = np.dtype(_TYPES[content[2]]), content[3]
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, 4))
    if len(content) != 4 + 4 * axes + kind.itemsize * math.prod(shape):
        raise DataError(
            f"{path} holds {len(content)} bytes, which are not those of an array of shape {shape}; get it anew"
        )
    array = np.frombuffer(content, kind, offset=4 + 4 * axes).reshape(shape)
    return torch.from_numpy(array.astype(kind.newbyteorder("="), copy=True))


def read_mnist(folder: str | Path, part: str) -> tuple[Tensor, Tensor]:
    """Return the images, uint8 (n, 1, 28, 28), and labels, int64 (n,), of MNIST, Fashion-MNIST or another of that kin.

    `part` is "train" or "t10k"; files are named as published (`train-images-idx3-ubyte`, perhaps with `.gz`).

    Raises:
        DataError: a file is missing or damaged, or images and labels do not belong together.
    """
    x, y = (read_idx(_find(Path(folder), f"{part}-{name}-ubyte")) for name in ("images-idx3", "labels-idx1"))
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise DataError(f"{folder}: images of shape {tuple(x.shape)} do not go with labels of shape {tuple(y.shape)}")
    return x[:, None], y.long()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if path.exists():
            return path
    raise DataError(f"{folder} has no {name} or {name}.gz; fetch the four files that its publisher lists")
