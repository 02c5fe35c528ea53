"""A shrinking run against the same run without removal: same network, data, penalty and steps, one thread, interleaved.

    python benchmarks/shrinking_run.py [--json] [--quick]

Both runs kill by the same rule; one removes what is dead at each epoch's end, the other keeps carrying it as zeros.
"""

import argparse
import json
import platform
import sys
import time
from typing import Any

import torch
from sklearn.datasets import load_digits

from pared.measure.latency import threads
from pared.methods import Session, Shrink
from pared.methods.strengths import Geometric
from pared.models import mlp
from pared.train.arrays import Arrays, predict
from pared.train.checkpoint import generator_for
from pared.train.loop import adam, train_epoch
from pared.train.settings import Settings

BAR, POINTS = 0.6, 0.5
#: What `pared fit` does by default, so that the claim is about the product.
SETTINGS = Settings()


class Twin:
    """One of the two runs, trained an epoch at a time."""

    def __init__(self, data: Arrays, epochs: int, seed: int, *, remove: bool) -> None:
        self.data, self.epochs, self.remove = data, epochs, remove
        self.generator = generator_for(seed, 0)
        model = mlp(data.x.shape[1], 10, SETTINGS.hidden, generator=self.generator)
        method = Shrink(strength=SETTINGS.strength[0], inputs=True, every="epoch" if remove else 10**9)
        optimizer = adam(model, lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay)
        self.session: Session = method.bind(model, optimizer, data.x[:1], steps_per_epoch=len(data) // 32)
        self.path, self.seconds = Geometric(*SETTINGS.strength), 0.0

    def epoch(self, number: int) -> None:
        """Train one epoch and add its seconds."""
        self.session.strength = self.path.at(number / (self.epochs - 1))
        began = time.perf_counter()
        data = self.data.columns(self.session.inputs) if self.remove else self.data
        train_epoch(
            self.session.model,
            self.session.optimizer,
            data,
            batch_size=32,
            generator=self.generator,
            session=self.session,
        )
        self.seconds += time.perf_counter() - began


def accuracy(twin: Twin, rows: Arrays) -> float:
    """Return the accuracy of the realised network."""
    small = twin.session.realize()
    return float((predict(small, rows.x[:, twin.session.inputs]).argmax(1) == rows.y).float().mean())


def claim(epochs: int, seeds: int) -> dict[str, Any]:
    """Return the claim's ratio and what stands behind it."""
    digits = load_digits(return_X_y=True)
    x, y = torch.tensor(digits[0] / 8 - 1, dtype=torch.float32), torch.tensor(digits[1])
    ratios, gaps, sizes = [], [], []
    for seed in range(seeds):
        order = torch.randperm(len(x), generator=generator_for(seed, 9))
        train, test = Arrays(x[order[:1437]], y[order[:1437]]), Arrays(x[order[1437:]], y[order[1437:]])
        twins = [Twin(train, epochs, seed, remove=remove) for remove in (True, False)]
        for number in range(epochs):
            for twin in twins if number % 2 else twins[::-1]:
                twin.epoch(number)
        scores = [accuracy(twin, test) for twin in twins]
        ratios.append(twins[0].seconds / twins[1].seconds)
        gaps.append(100 * (scores[0] - scores[1]))
        sizes.append(sum(p.numel() for p in twins[0].session.realize().parameters()))
    worst, gap = max(ratios), sum(gaps) / len(gaps)
    detail = {
        "ratios": ratios,
        "accuracy gap in points": gaps,
        "mean gap": gap,
        "final parameters": sizes,
        "epochs": epochs,
    }
    holds = worst <= BAR and gap >= -POINTS
    return {
        "name": "shrinking run / same run without removal",
        "ratio": worst,
        "bar": BAR,
        "holds": holds,
        "detail": detail,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed instead of three: under a minute")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    with threads(1):
        claims = [claim(160, 1 if arguments.quick else 3)]
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    if arguments.json:
        print(json.dumps({"claims": claims, "machine": machine}, indent=1))
    else:
        for one in claims:
            print(f"{one['name']}: {one['ratio']:.2f} (bar {one['bar']}, {'holds' if one['holds'] else 'MISSED'})")
            print(json.dumps(one["detail"], indent=1))
    sys.exit(0 if all(one["holds"] for one in claims) else 1)


if __name__ == "__main__":
    main()
