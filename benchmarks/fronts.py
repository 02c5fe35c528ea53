"""Fronts on real tables: repeated 5-fold on scikit-learn's sets, five seeds on UCI Adult's own test file.

    python benchmarks/fronts.py digits breast-cancer wine diabetes --repeats 2
    python benchmarks/fronts.py adult --data DIR --seeds 5

DIR holds adult/adult.data and adult/adult.test as published at https://archive.ics.uci.edu/dataset/2/adult.
Each point is chosen on validation rows inside the training part; the test part is only reported on.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold

import pared
from pared.data.problem import prepare
from pared.data.source import load_table
from pared.data.task import detect_task

TARGET = "target"


def folds(name: str, repeats: int) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Yield training and test frames of a repeated 5-fold cross-validation."""
    frame = load_table(name).frame
    kind = detect_task(frame, [TARGET]).kind
    kfold: Any = RepeatedStratifiedKFold if kind == "classification" else RepeatedKFold
    for train, test in kfold(n_splits=5, n_repeats=repeats, random_state=2026).split(frame, frame[TARGET]):
        yield frame.iloc[train].reset_index(drop=True), frame.iloc[test].reset_index(drop=True)


def best(run: pared.Run, most: float) -> dict[str, Any] | None:
    """Return the point with at most `most` parameters that validation prefers."""
    allowed = [point for point in run.front if point["params"] <= most]
    return max(allowed, key=lambda point: (point["val_score"], -point["val_loss"])) if allowed else None


def mean(values: list[float]) -> str:
    """Return mean and standard error, in points, of scores given as fractions."""
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{100 * np.mean(values):.2f} ± {100 * spread:.2f} (n={len(values)})"


def cross_validate(name: str, repeats: int, settings: pared.Settings, most: int) -> dict[str, Any]:
    """Return test scores over the folds of the dense reference, two sizes of small network, and the references."""
    scores: dict[str, list[float]] = {}
    sizes: dict[str, list[float]] = {}
    for number, (train, test) in enumerate(folds(name, repeats)):
        with tempfile.TemporaryDirectory() as out:
            run = pared.fit(train, TARGET, test=test, out=out, settings=settings, seed=number)
        start = run.summary["start"]
        found = {
            "dense reference": start,
            f"at most {most} parameters": best(run, most),
            "at most 5 % of dense": best(run, 0.05 * start["params"]),
            "chosen by default": run.chosen,
            **{record["name"]: record for record in run.summary["references"]},
        }
        for key, record in found.items():
            if record is not None:
                scores.setdefault(key, []).append(record["test_score"])
                sizes.setdefault(key, []).append(record["params"])
        scores.setdefault("seconds / 100", []).append(run.summary["seconds"] / 100)
        print(
            f"{name} fold {number}",
            {k: (v["params"], round(v["test_score"], 4)) for k, v in found.items() if v},
            file=sys.stderr,
        )
    return {key: {"test": mean(value), "params": float(np.mean(sizes.get(key, [0])))} for key, value in scores.items()}


def adult(folder: Path, seeds: int, settings: pared.Settings, most: int) -> dict[str, Any]:
    """Return test accuracies over seeds on Adult's own test file, kept columns, and L1 logistic regression by size."""
    files = [folder / "adult" / name for name in ("adult.data", "adult.test")]
    scores: dict[str, list[float]] = {}
    kept: Counter[str] = Counter()
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as out:
            run = pared.fit(
                files[0],
                "column_15",
                test=files[1],
                header=False,
                out=out,
                settings=settings,
                seed=seed,
                max_params=most,
            )
        kept.update(record["name"] for record in run.summary["columns"] if record["kept"])
        lasso = _lasso(files, seed, run.chosen["params"])
        found = {"dense reference": run.summary["start"], f"at most {most} parameters": run.chosen, **lasso}
        found |= {record["name"]: record for record in run.summary["references"]}
        for key, record in found.items():
            scores.setdefault(key, []).append(record["test_score"])
        print(
            f"adult seed {seed}",
            {k: (v["params"], round(v["test_score"], 4)) for k, v in found.items()},
            file=sys.stderr,
        )
    rows: dict[str, Any] = {key: {"test": mean(value)} for key, value in scores.items()}
    rows["columns kept, of seeds"] = dict(kept.most_common())
    return rows


def _lasso(files: list[Path], seed: int, params: int) -> dict[str, Any]:
    """L1 logistic regression on the same inputs: the best with no more numbers than `params`, and the best of any size."""
    train, test = (load_table(file, header=False) for file in files)
    problem = prepare(train, ["column_15"], test=test, seed=seed)
    fitted = []
    for C in (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0):
        model = LogisticRegression(C=C, l1_ratio=1.0, solver="saga", max_iter=100, tol=1e-3, random_state=seed)
        model.fit(problem.train.x, problem.train.y)
        size = int((model.coef_ != 0).sum()) + 1
        val, tested = (model.score(part.x, part.y) for part in (problem.validation, problem.test))
        fitted.append({"params": size, "val": val, "test_score": tested})
    same = [record for record in fitted if record["params"] <= params]
    return {
        "L1 logistic regression, no larger": max(same, key=lambda r: r["val"]),
        "L1 logistic regression, any size": max(fitted, key=lambda r: r["val"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--most", type=int, help="parameters of the small network; 2000, or 400 for adult")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    results = {}
    for name in arguments.names:
        if name == "adult":
            if arguments.data is None or not (arguments.data / "adult" / "adult.data").exists():
                parser.error(
                    "adult needs --data DIR with adult/adult.data and adult/adult.test from the UCI repository"
                )
            results[name] = adult(arguments.data, arguments.seeds, pared.Settings(), arguments.most or 400)
        else:
            results[name] = cross_validate(name, arguments.repeats, pared.Settings(), arguments.most or 2000)
        print(json.dumps({name: results[name]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
