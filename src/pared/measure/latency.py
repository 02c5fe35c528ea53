"""How long an answer takes, in microseconds, one thread."""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from pared.process import threads as threads


def latency_us(call: Callable[[], object], *, seconds: float = 0.03, blocks: int = 7) -> float:
    """Return the median over `blocks` of the mean microseconds of `call`, after a warm-up; about `seconds` in all."""
    call()
    began = time.perf_counter()
    call()
    once = max(time.perf_counter() - began, 1e-7)
    repeats = max(1, int(seconds / blocks / once))
    means = []
    for _ in range(blocks):
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        means.append((time.perf_counter() - began) / repeats)
    return median(means) * 1e6


def model_latency_us(model: nn.Module, rows: Tensor) -> float:
    """Return the microseconds of one forward pass on `rows`, (n, inputs), in inference mode on one thread."""
    with threads(1), torch.inference_mode():
        return latency_us(lambda: model(rows))


def least_us(calls: Sequence[Callable[[], object]], *, seconds: float = 0.1) -> list[float]:
    """Return the least microseconds of each call, in inference mode, taken in turns for about so many `seconds`."""
    least = [math.inf] * len(calls)
    with torch.inference_mode():
        for call in calls:
            call()
        began = time.perf_counter()
        for turn in range(1000):
            if turn >= 5 and time.perf_counter() - began > seconds:
                break
            for place, call in enumerate(calls):
                start = time.perf_counter()
                call()
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                least[place] = min(least[place], 1e6 * (time.perf_counter() - start))
    return least
