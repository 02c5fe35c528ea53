"""One shrinking run's front against the searches that ShrinkNets argues against: random and TPE, 20 trials each.

    python reproduce/shrinknets/search.py --data DIR                       # DIR/covtype-20k/covtype.20k.data, or $PARED_DATA
    python reproduce/shrinknets/search.py --data DIR --only fit,random-widths --seeds 1 --jobs 2
    python reproduce/shrinknets/search.py --data DIR --only table          # what is there so far
    python reproduce/shrinknets/search.py --set digits --only all          # scikit-learn's, needs no data

Every repeat has its own split, which all share. Networks are chosen on validation rows; areas are told of both validation
and test scores. The area is that of log10 parameters and accuracy down to the linear model's accuracy and the start's
size; compute is seconds of training, the run's dense reference included and alone.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import pared
from pared.measure.hypervolume import hypervolume
from pared.searching import Search
from pared.train.context import Observer

#: What is searched, and how: name -> (over, sampler).
SEARCHES = {
    "random-widths": ("widths", "random"),
    "tpe-widths": ("widths", "tpe"),
    "random-strength": ("strength", "random"),
    "tpe-strength": ("strength", "tpe"),
    "hyperband-widths": ("widths", "hyperband"),
}
PIECES = ("fit", *SEARCHES)


def covtype(folder: Path) -> pd.DataFrame:
    """Read the first 20,000 rows of Covertype; the columns are numbered, "cover" is the target."""
    frame = pd.read_csv(folder / "covtype-20k" / "covtype.20k.data", header=None)
    return frame.rename(columns={name: f"x{name}" for name in frame.columns[:-1]} | {frame.columns[-1]: "cover"})


def run(name: str, data: Any, target: str | None, seed: int, options: argparse.Namespace, out: Path) -> None:
    """Make one piece, or go on with it."""
    hidden = tuple(int(width) for width in options.hidden.split(","))
    common: dict[str, Any] = {"hidden": hidden, "seed": seed, "threads": options.threads}
    observer = Observer(note=lambda line: print(f"{name}, seed {seed}: {line}", flush=True))
    folder = out / f"{name}-{seed}"
    if name == "fit":
        if (folder / "summary.json").exists():
            return
        resume = (folder / "config.toml").exists()
        tune = options.fine_tune
        pared.fit(data, target, out=folder, resume=resume, refit=False, fine_tune=tune, observer=observer, **common)
        return
    over, sampler = SEARCHES[name]
    pared.search(
        data,
        target,
        out=folder,
        sampler=sampler,  # pyright: ignore[reportArgumentType]
        over=over,  # pyright: ignore[reportArgumentType]
        trials=options.trials,
        jobs=options.jobs,
        least_width=options.least_width,
        observer=observer,
        **common,
    )


def areas(front: list[dict[str, Any]], start: dict[str, Any], linear: dict[str, Any]) -> dict[str, float]:
    """The areas that a front covers, by validation and by test scores of the networks that validation chose."""
    size = math.log10(start["params"])
    return {
        part: hypervolume([(math.log10(p["params"]), p[key]) for p in front], (size, linear[key]))
        for part, key in (("validation", "val_score"), ("test", "test_score"))
    }


def table(out: Path, seeds: int) -> None:
    """Print areas and seconds of all that is there, and what the run has of each search's."""
    print(
        f"{'':>5}  {'piece':<18}{'seconds':>9}{'points':>7}{'largest':>9}{'smallest':>9}{'best':>8}{'area':>9}{'on test':>9}"
    )
    for seed in range(seeds):
        if not (out / f"fit-{seed}" / "summary.json").exists():
            continue
        fit = pared.Run.open(out / f"fit-{seed}").summary
        linear = fit["references"][0]
        ours = areas(fit["front"], fit["start"], linear)
        phases = fit["seconds_by_phase"]
        own = phases["shrink"] + phases["fine_tune"]
        line(seed, "one run", own + phases["dense"], fit["front"], ours)
        for name in SEARCHES:
            if not (out / f"{name}-{seed}" / "search.json").exists():
                continue
            found = Search.open(out / f"{name}-{seed}")
            theirs, seconds = areas(found.front, fit["start"], linear), found.summary["seconds"]
            line(seed, name, seconds, found.front, theirs)
            print(
                f"{'':>5}  one run: {ours['validation'] / theirs['validation']:.2f} of its area "
                f"({ours['test'] / theirs['test']:.2f} on test) at {(own + phases['dense']) / seconds:.3f} of its "
                f"compute ({own / seconds:.3f} without the dense reference), {len(found.trials)} trials"
            )


def line(seed: int, name: str, seconds: float, front: list[dict[str, Any]], area: dict[str, float]) -> None:
    """Print a row of the table."""
    sizes, best = [p["params"] for p in front], max(p["val_score"] for p in front)
    print(
        f"{seed:>5}  {name:<18}{seconds:>9.1f}{len(front):>7}{max(sizes):>9,}{min(sizes):>9,}{best:>8.4f}"
        f"{area['validation']:>9.4f}{area['test']:>9.4f}"
    )


def main() -> int:
    """Run the pieces that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PARED_DATA"))
    parser.add_argument("--set", default="covtype", choices=["covtype", "digits"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="fit,random-strength,tpe-strength,random-widths,tpe-widths")
    parser.add_argument("--hidden", default="500,500")
    parser.add_argument("--least-width", type=int, default=5, help="the paper's 20 would leave small sizes to one side")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--fine-tune", type=int, default=40, help="epochs of the one run's; chosen on validation, seed 0"
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    out = options.out or Path("results/shrinknets/search") / options.set
    wanted = PIECES if options.only == "all" else () if options.only == "table" else tuple(options.only.split(","))
    unknown = set(wanted) - set(PIECES)
    if unknown:
        parser.error(f"--only takes {', '.join(PIECES)}, all or table, not {min(unknown)}")
    torch.set_flush_denormal(True)
    data: Any = "digits"
    if wanted and options.set == "covtype":
        if options.data is None:
            parser.error("say where the data is with --data DIR or PARED_DATA; DIR holds covtype-20k/covtype.20k.data")
        data = covtype(Path(options.data))
    for seed in range(options.seeds):
        for name in wanted:
            run(name, data, "cover" if options.set == "covtype" else None, seed, options, out)
    table(out, options.seeds)
    print(json.dumps({"command": " ".join(sys.argv), "pared": pared.__version__, "torch": torch.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
