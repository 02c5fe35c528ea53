"""What scripts share: images, means over seeds, and runs that are not run again."""

import argparse
import ctypes
import importlib
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from html import escape
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pared
from pared.data.images import read_mnist
from pared.report.html import standalone

#: Runs that were asked for: the name of each, and what it is done by.
Runs = Iterable[tuple[str, Callable[[], dict[str, Any]]]]
#: A figure's page: its name, its title and its charts.
Page = tuple[str, str, list[str]]


def read_images(data: Path, name: str, rows: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the first `rows` training images and their classes, and those of the test, each channel standardised."""
    read = read_cifar10 if name == "cifar10" else read_mnist
    x, y = read(data / name, "train")
    x_test, y_test = read(data / name, "test" if name == "cifar10" else "t10k")
    x, y = x[:rows].float() / 255.0, y[:rows]
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return (x - mean) / deviation, y, (x_test.float() / 255.0 - mean) / deviation, y_test


def read_cifar10(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Read CIFAR-10, uint8 (n, 3, 32, 32): the published binary files, or strips of 500 images in WebP (needs Pillow)."""
    if binary := sorted(folder.glob("data_batch_*.bin" if part == "train" else "test_batch.bin")):
        found = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in binary])
        return torch.from_numpy(found[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(found[:, 0]).long()
    image = importlib.import_module("PIL.Image")
    strips = [np.asarray(image.open(path)) for path in sorted(folder.glob(f"{part}_*.webp"))]
    x = torch.from_numpy(np.concatenate(strips)).view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(np.loadtxt(folder / f"{part}_labels.txt", dtype=np.int64))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share that is right, in points."""
    was = model.training
    model.eval()
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(1000), y.split(1000), strict=True))
    model.train(was)
    return 100.0 * right / len(x)


def told(values: Iterable[float]) -> str:
    """Return mean and standard error."""
    values = list(values)
    if not values:
        return "-"
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ± {error:.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def interval(values: list[float], digits: int = 2) -> str:
    """Return the mean and half the width of its 95 % interval, by Student's t."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


def arguments(doc: str | None, out: str, *, seeds: str = "0") -> argparse.ArgumentParser:
    """Return a parser of what all scripts take; results go to results/`out`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PARED_DATA"))
    parser.add_argument("--out", type=Path, default=Path("results") / out)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=math.inf, help="minutes after which no further run begins")
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--only", choices=["table"])
    return parser


def reproduce(
    parser: argparse.ArgumentParser,
    runs: Callable[[argparse.Namespace], Runs],
    table: Callable[[argparse.Namespace], None],
    instead: Callable[[argparse.Namespace], bool] | None = None,
) -> int:
    """Run what is missing and print the table, unless `instead` says that it did something else."""
    options = parser.parse_args()
    _begin(options.threads)
    if instead is not None and instead(options):
        return 0
    if options.only != "table":
        if options.data is None:
            parser.error("say where the data is with --data DIR or PARED_DATA")
        run_missing(runs(options), options)
    table(options)
    return 0


def run_missing(runs: Runs, options: argparse.Namespace) -> None:
    """Run what has no file yet, by name, each into a JSON file of its own, until the budget is spent.

    With `options.processes` above 1 as many go on at once; what is run must be picklable then. Otherwise `runs` may be a
    generator that looks at earlier results.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.time() + 60.0 * options.budget
    missing = ((name, run) for name, run in runs if not (options.out / f"{name}.json").exists())
    processes = getattr(options, "processes", 1)
    if processes > 1 and (together := list(missing)):
        with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (options.threads,)) as pool:
            done = list(pool.map(_run_into, *zip(*together, strict=True), repeat(options.out), repeat(end)))
    else:
        done = [_run_into(name, run, options.out, end) for name, run in missing]
    if not all(done):
        print(f"the budget of {options.budget:g} minutes is spent; run the same again to go on", flush=True)


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def keep_memory() -> None:
    """Have glibc keep the memory of large tensors between steps, so that it is not fetched anew; not where memory is measured."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped by itself
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is handed back


def _run_into(name: str, run: Callable[[], dict[str, Any]], folder: Path, end: float) -> bool:
    """Run into a file that is there whole or not at all, unless it is too late."""
    if time.time() > end:
        return False
    start, path = time.perf_counter(), folder / f"{name}.json"
    found = run() | {
        "seconds": time.perf_counter() - start,
        "command": " ".join(sys.argv),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pared": pared.__version__},
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(path)
    return True


def results(options: argparse.Namespace, pattern: str = "*.json") -> list[dict[str, Any]]:
    """Return what is there so far."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.out.glob(pattern))]


def write_page(page: Page, out: Path) -> None:
    """Write a page, or say that there is nothing to draw."""
    name, title, charts = page
    drawn = [standalone(one) for one in charts if one]
    if not drawn:
        print(f"{name}: no results")
        return
    titles = [one.split("<title>")[1].split("</title>")[0] for one in drawn]
    body = "".join(f"<h2>{head}</h2>{figure}" for head, figure in zip(titles, drawn, strict=True))
    path = out / f"{name}.html"
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>'
        f'<body style="max-width:60em;margin:2em auto;font-family:sans-serif"><h1>{escape(title)}</h1>{body}</body></html>\n',
        encoding="utf-8",
    )
    print(path)
