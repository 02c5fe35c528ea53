"""Stacks of sparse layers and their dense twins, for benchmarks of them: taking turns, and saying what was found."""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Collection
from statistics import median
from typing import Any

import torch
from torch import nn

import pared
from pared.native import disabled
from pared.nn import BatchMajor, SparseLinear, SparseSequential

INPUTS, OUTPUTS = 784, 10
SHORT = 0.02  # seconds: what takes longer reads and writes more than the caches hold
Claim = dict[str, Any]
#: Seconds that passed, and those that the processor worked.
Turns = list[tuple[float, float]]


def sparse_network(width: int, sparsity: float) -> nn.Sequential:
    """Return 784-W-W-W-10 with biases and ReLU: three sparse layers, and a dense one behind a `BatchMajor`."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (INPUTS, width, width):
        layers += [SparseLinear(inputs, width, density=1.0 - sparsity, generator=generator), nn.ReLU()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SparseSequential(*layers, BatchMajor(), nn.Linear(width, OUTPUTS))


def rebuilt(model: nn.Sequential, change: Callable[[SparseLinear], nn.Module]) -> nn.Sequential:
    """Return the network with each sparse layer changed, all weights its own."""
    copied: list[nn.Module] = []
    for layer in list(model)[:-1]:
        one = change(layer) if isinstance(layer, SparseLinear) else type(layer)()
        copied += [] if isinstance(one, BatchMajor) and not isinstance(copied[0], SparseLinear) else [one]
    last = nn.Linear(model[-1].in_features, OUTPUTS)
    last.load_state_dict(model[-1].state_dict())
    return nn.Sequential(*copied, last)


def without_native(call: Callable[[], Any]) -> Callable[[], Any]:
    def inside() -> Any:
        with disabled():
            return call()

    return inside


def take_turns(calls: dict[str, Callable[[], object]], often: Collection[str], seconds: float) -> dict[str, Turns]:
    """Return each call's times; those not in `often` have every fourth turn. There are 12 turns at least.

    A turn of less than `SHORT` seconds is two calls of which the second counts, so that all find their own numbers in the
    caches and not their rivals', as where one network is at work. What uses more processor time than has passed computes on
    several threads, and ends the benchmark.
    """
    times: dict[str, Turns] = {name: [] for name in calls}
    began, number = time.perf_counter(), 0
    while number < 12 or time.perf_counter() - began < seconds:
        for name, call in calls.items():
            if number % 4 == 0 or name in often:
                if not times[name] or times[name][-1][0] < SHORT:
                    call()
                start, busy = time.perf_counter(), time.process_time()
                call()
                busy = time.process_time() - busy
                times[name].append((time.perf_counter() - start, busy))
        number += 1
    for name, turns in times.items():
        passed, used = (sum(one) for one in zip(*turns, strict=True))
        if used > 1.2 * passed:
            raise SystemExit(f"{name} used {used / passed:.2f} threads, not one")
    return times


def claim(name: str, times: dict[str, Turns], path: str, rival: str, bar: float | None) -> Claim:
    """Return how much faster our `path` is than `rival`, by the minima, and what all took.

    The ratio is the smaller one of that of the time that passed and that of processor time: where others use the processor
    too, long calls are always interrupted, and short ones are not.
    """
    passed = {one: [turn[0] for turn in turns] for one, turns in times.items()}
    best = {one: min(t) for one, t in passed.items()}
    busy = {one: min(turn[1] for turn in turns) for one, turns in times.items()}
    by_wall = best[rival] / best[path]
    by_processor = busy[rival] / busy[path] if busy[path] > 0 else by_wall  # where its clock is too coarse
    ratio = min(by_wall, by_processor)
    return {
        "name": name,
        "ratio": ratio,
        "bar": bar,
        "holds": bar is None or ratio >= bar,
        "detail": {
            "milliseconds, minimum": {one: round(1e3 * t, 3) for one, t in best.items()},
            "times faster, by medians": median(passed[rival]) / median(passed[path]),
            "times faster, by time passed and processor time": [round(by_wall, 2), round(by_processor, 2)],
            "times faster than": {r: round(t / best[path], 2) for r, t in best.items() if r not in ("native", "torch")},
            "times measured": {one: len(t) for one, t in times.items()},
        },
    }


def compiler() -> str:
    """Return why dense torch cannot be compiled here, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda t: t + 1)(torch.zeros(4))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def options(about: str | None, quick: str, widths: Collection[int], batches: Collection[int]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help=f"{quick}: under a minute")
    parser.add_argument("--width", type=int, choices=widths, help="this width only")
    parser.add_argument("--batch", type=int, choices=batches, help="this batch only")
    return parser.parse_args()


def say(claims: list[Claim]) -> None:
    for one in claims:
        bar = "" if one["bar"] is None else f" (bar {one['bar']}, {'holds' if one['holds'] else 'MISSED'})"
        print(f"{one['name']}: {one['ratio']:.2f}{bar}  {one['detail']['milliseconds, minimum']}", flush=True)


def finish(claims: list[Claim], rivals: dict[str, str], *, as_json: bool) -> None:
    """Print the machine, and the claims too if they are to be JSON; leave with 1 if a bar was missed."""
    machine = {
        "processor": platform.processor() or platform.machine(),
        "config": str(pared.show_config()),
        "threads": 1,
        **rivals,
    }
    print(json.dumps({"claims": claims, "machine": machine} if as_json else machine, indent=1))
    sys.exit(0 if all(one["holds"] for one in claims) else 1)
