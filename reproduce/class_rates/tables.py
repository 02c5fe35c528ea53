"""Class rates on UCI sets: tables 2 and 3 of the paper, beside what it printed.

    python reproduce/class_rates/tables.py --data DIR --cheapest 25 --processes 2   # DIR holds uci/ (the prepared archive)
    python reproduce/class_rates/tables.py --data DIR --sets car,bank --activations selu --seeds 0
    python reproduce/class_rates/tables.py --only table                              # what is there so far
    python reproduce/class_rates/tables.py --data DIR --plan                         # what each set costs

For each set, activation and seed one run gives four networks: plain SGD, and rates by class for the first 10, 20 or 30
epochs, of which validation chooses one. They begin alike, and see the same batches and the same dropout. As in the paper:
networks of table 1, 100 epochs, learning rate 0.01 throughout, rates at 1e5 (SELU, tanh) or 1e4 (ReLU), a tenth of that where
a run does not converge, 15 % of the training rows for validation. Batches of 128 rows, and weights N(0, 1/n), N(0, 2/n) for
ReLU, are choices: the paper does not say. Rows are trained on and tested on as the numbers it printed say: the two halves of
`conxuntos.dat`, also where there is a table for tests; `--test table` takes that, and else the first of the four folds.

Seeds draw the validation rows, the weights, the batches and the dropout. Chance alone makes networks differ too: the table has
plain networks of one seed against those of the next, counted by the same tests.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import accuracy, arguments, reproduce, results  # noqa: E402
from published import COLUMNS, TABLE_1, TABLE_2, TABLE_3, tally  # noqa: E402
from scipy.stats import t as student  # noqa: E402

import pared  # noqa: E402
from pared.data.uci import read_uci, uci_sets  # noqa: E402
from pared.measure.statistics import holm, mcnemar, sign_test, signed_rank_test, specialised  # noqa: E402
from pared.models import mlp  # noqa: E402

RATES = {"selu": (nn.SELU, 1e5), "relu": (nn.ReLU, 1e4), "tanh": (nn.Tanh, 1e5)}
CUTOFFS = (0, 10, 20, 30)
EPOCHS = 100


class Batches:
    """Rows in a new order each time."""

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int) -> None:
        self.x, self.y, self.size = x, y, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator).to(self.x.device)
        for rows in order.split(self.size):
            yield self.x[rows], self.y[rows]


def network(name: str, activation: str, inputs: int, classes: int, seed: int) -> nn.Sequential:
    """Return the network of table 1."""
    shape = TABLE_1[name]
    return mlp(
        inputs,
        classes,
        shape.widths(classes),
        activation=RATES[activation][0],
        dropout=shape.dropout,
        init="normal",
        generator=torch.Generator().manual_seed(seed),
    )


def run(name: str, activation: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train the four networks of one start, and keep which test rows each has right."""
    found = read_uci(options.data / "uci" / name)
    train, held, test = found.split(fold=0 if options.test == "table" else "tuning", seed=seed)
    x, y = found.x.to(options.device), found.y.to(options.device)
    model = network(name, activation, x.shape[1], found.classes, seed).to(options.device)
    learned = pared.train_by_class(
        model,
        Batches(x[train], y[train], options.batch, seed),
        lambda net: accuracy(net, x[held], y[held]),
        classes=found.classes,
        rate_lr=RATES[activation][1],
        cutoffs=CUTOFFS,
        epochs=EPOCHS,
        seed=seed,
    )
    if learned.interrupted:  # what is kept is no whole run
        raise KeyboardInterrupt
    rated = max(learned.candidates[1:], key=lambda one: (one.score, -one.cutoff))
    record: dict[str, Any] = {}
    for one in learned.candidates:
        right = _right(one.model, x[test], y[test])
        record[str(one.cutoff)] = {
            "validation": one.score,
            "loss": one.loss,
            "right": np.packbits(right).tobytes().hex(),
            "test": 100.0 * float(right.mean()),
        }
        if one.cutoff in (0, rated.cutoff):
            record[str(one.cutoff)]["special"] = _special(one.model, x[test], y[test])
    return {
        "set": name,
        "activation": activation,
        "seed": seed,
        "split": options.test,
        "batch": options.batch,
        "rows": [len(train), len(held), len(test)],
        "steps": math.ceil(len(train) / options.batch),
        "rate_lr": learned.rate_lr,
        "diverged": learned.diverged,
        "cutoff": rated.cutoff,
        "candidates": record,
    }


@torch.no_grad()
def _right(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    return torch.cat([model(a).argmax(1) == b for a, b in zip(x.split(4096), y.split(4096), strict=True)]).cpu().numpy()


@torch.no_grad()
def _special(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The mean over classes of the share of hidden neurons that tell the class from all others, in per cent."""
    shares, (*hidden, _) = [], model.children()
    for layer in hidden:
        x = torch.cat([layer(part) for part in x.split(4096)])
        if not isinstance(layer, nn.Linear | nn.Dropout | nn.AlphaDropout):
            shares.append(specialised(x.cpu().numpy(), y.cpu().numpy()))
    return 100.0 * float(np.concatenate(shares).mean())


# --- what to run ---


def cost(name: str, folder: Path) -> float:
    """Return the multiply-accumulates of a run: 340 epochs of plain steps, and 30 of some 2.5 times as much, forward and back."""
    found = read_uci(folder / name)
    model = network(name, "relu", found.x.shape[1], found.classes, 0)
    weights = sum(p.numel() for p in model.parameters())
    return 3.0 * weights * 0.85 * len(found.tuning[0]) * (4 * EPOCHS - 10 - 20 - 30 + 2.5 * 30)


def names_of(options: argparse.Namespace) -> list[str]:
    """Return the sets to run, the cheapest first."""
    if options.data is None:
        raise SystemExit("say where the data is with --data DIR or PARED_DATA")
    folder = options.data / "uci"
    there = [name for name in uci_sets(folder) if name in TABLE_1]
    asked = options.sets.split(",") if options.sets else there
    if missing := sorted(set(asked) - set(there)):
        raise SystemExit(f"not in {folder}: {', '.join(missing)}; there are {', '.join(there) or 'none'}")
    return sorted(asked, key=lambda name: cost(name, folder))[: options.cheapest]


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield what is to be run, one seed whole before the next, the cheapest sets first."""
    names = names_of(options)
    other = ("" if options.test == "paper" else f"-{options.test}") + (
        "" if options.batch == 128 else f"-{options.batch}"
    )
    if missing := sorted(set(options.activations.split(",")) - set(RATES)):
        raise SystemExit(f"no such activation: {', '.join(missing)}; there are {', '.join(RATES)}")
    for seed in map(int, options.seeds.split(",")):
        for name in names:
            for activation in options.activations.split(","):
                yield f"{name}-{activation}-{seed}{other}", partial(run, name, activation, seed, options)


def plan(options: argparse.Namespace) -> bool:
    """Print what each set costs, if that is asked for."""
    if options.plan:
        for name in names_of(options):
            print(f"{name:32} {cost(name, options.data / 'uci') / 1e12:10.3f} TMAC a run")
    return options.plan


# --- what came of it ---


def table(options: argparse.Namespace) -> None:
    """Print tables 2 and 3, and what they come to."""
    found = [one for one in results(options) if (one["split"], one.get("batch", 128)) == (options.test, options.batch)]
    if not found:
        print("nothing has been run yet")
        return
    summary = {}
    for activation in RATES:
        some = [one for one in found if one["activation"] == activation]
        if some:
            print_sets(activation, some)
            summary[activation] = told(activation, some)
    tests = [one["signed_rank"] for one in summary.values()]
    for one, adjusted in zip(summary.values(), holm(np.array(tests)), strict=True):
        one["signed_rank_holm"] = float(adjusted)
    print_summary(summary)
    missing = sorted(set(TABLE_1) - {one["set"] for one in found})
    print(f"\nnot run: {', '.join(missing) or 'none'}")
    (options.out / "summary.txt").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def by_set(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of each set, by seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in sorted(found, key=lambda one: (one["set"], one["seed"])):
        groups.setdefault(one["set"], []).append(one)
    return groups


def rights(one: dict[str, Any], cutoff: int) -> np.ndarray:
    """Return which test rows a network has right."""
    packed = np.frombuffer(bytes.fromhex(one["candidates"][str(cutoff)]["right"]), np.uint8)
    return np.unpackbits(packed, count=one["rows"][2]).astype(bool)


def pair(one: dict[str, Any], key: str = "test") -> tuple[float, float]:
    """Return a figure of the plain network, and of the one with rates that validation chose."""
    return one["candidates"]["0"][key], one["candidates"][str(one["cutoff"])][key]


def interval(values: list[float]) -> str:
    """Return the mean and half its 95 % interval (Student)."""
    if len(values) < 2:
        return f"{values[0]:+.2f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):+.2f} ± {half:.2f}"


def print_sets(activation: str, found: list[dict[str, Any]]) -> None:
    """Print a line a set: our means over seeds, and the paper's numbers."""
    at = COLUMNS.index(activation)
    print(f"\n### {activation}\n")
    print("| set | seeds | steps | plain | by class | difference | paper | cutoffs | rate | special | paper |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, seeds in by_set(found).items():
        plain, rated = zip(*(pair(one) for one in seeds), strict=True)
        special = [statistics.mean(part) for part in zip(*(pair(one, "special") for one in seeds), strict=True)]
        paper, theirs = TABLE_2[name][at : at + 2], TABLE_3[name][at : at + 2]
        print(
            f"| {name} | {len(seeds)} | {seeds[0]['steps']} | {statistics.mean(plain):.2f} | {statistics.mean(rated):.2f} | "
            f"{interval([b - a for a, b in zip(plain, rated, strict=True)])} | {paper[0]:.2f} {paper[1]:.2f} | "
            f"{' '.join(str(one['cutoff']) for one in seeds)} | {' '.join(format(one['rate_lr'], '.0e') for one in seeds)} | "
            f"{special[0]:.1f} {special[1]:.1f} | {theirs[0]:.1f} {theirs[1]:.1f} |"
        )


def told(activation: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return wins, ties and losses, the mean difference, and what tests say, for rates and for another seed."""
    sets = by_set(found)
    # Rounded, as what is equal in hits is equal in signs and ranks as well.
    differences = [round(statistics.mean(b - a for a, b in map(pair, seeds)), 9) + 0.0 for seeds in sets.values()]
    each = [b - a for a, b in map(pair, found)]
    chance, chance_tests = [], []
    for seeds in sets.values():
        for one, other in zip(seeds, [*seeds[1:], seeds[0]], strict=True):
            if one is not other:
                chance.append(pair(other)[0] - pair(one)[0])
                chance_tests.append(judged(rights(one, 0), rights(other, 0)))
    judgements = [judged(rights(one, 0), rights(one, one["cutoff"])) for one in found]
    at = COLUMNS.index(activation)
    paper = [TABLE_2[name][at + 1] - TABLE_2[name][at] for name in sets]
    special = [pair(one, "special")[1] - pair(one, "special")[0] for one in found]
    return {
        "sets": len(sets),
        "runs": len(found),
        "by_set": counts(differences),
        "by_run": counts(each),
        "chance_by_run": counts(chance),
        "paper_on_these": counts(paper),
        "paper": list(tally(activation)),  # pyright: ignore[reportArgumentType]
        "difference": interval(differences),
        "paper_difference": interval(paper),
        "mcnemar": [judgements.count(1), judgements.count(-1)],
        "chance_mcnemar": [chance_tests.count(1) + chance_tests.count(-1), len(chance_tests)],
        "sign": sign_test(np.array(differences)),
        "signed_rank": signed_rank_test(np.array(differences)),
        "special": interval(special),
        "diverged": sum(bool(one["diverged"]) for one in found),
    }


def judged(plain: np.ndarray, rated: np.ndarray) -> int:
    """Return 1 where the second is better by McNemar's exact test at 0.05, -1 where it is worse, else 0."""
    if mcnemar(plain, rated) >= 0.05:
        return 0
    return 1 if rated.sum() > plain.sum() else -1


def counts(differences: list[float]) -> list[int]:
    """Return wins, ties and losses."""
    return [
        sum(d > 1e-9 for d in differences),
        sum(abs(d) <= 1e-9 for d in differences),
        sum(d < -1e-9 for d in differences),
    ]


def print_summary(summary: dict[str, dict[str, Any]]) -> None:
    """Print a column an activation."""
    print("\n| | " + " | ".join(summary) + " |\n|---|" + "---|" * len(summary))
    for key in next(iter(summary.values())):
        cells = []
        for one in summary.values():
            value = one[key]
            cells.append("-".join(map(str, value)) if isinstance(value, list) else _short(value))
        print(f"| {key} | " + " | ".join(cells) + " |")


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> int:
    """Run what is missing, and print the tables."""
    parser = arguments(__doc__, "class_rates", seeds="0,1,2")
    parser.add_argument("--sets", help="by name; all that are there without")
    parser.add_argument("--cheapest", type=int, help="how many sets, those of the least arithmetic")
    parser.add_argument("--activations", default=",".join(RATES))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--test", choices=["paper", "table"], default="paper", help="the rows to test on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--plan", action="store_true", help="only say what each set costs")
    return reproduce(parser, runs, table, plan)


if __name__ == "__main__":
    sys.exit(main())
