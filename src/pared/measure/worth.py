"""What each column is worth to a network: how much worse it answers when the column is shuffled."""

from typing import Any

import numpy as np
import torch

from pared.data.problem import Problem
from pared.measure.judge import Judge
from pared.train.arrays import predict
from pared.train.point import Point

SHUFFLES = 5


def column_records(judge: Judge, problem: Problem, point: Point, *, seed: int) -> list[dict[str, Any]]:
    """Return, for each source column, whether `point` asks for it, with which inputs, and its permutation importance.

    The importance is the mean drop of the metric on the test rows over 5 shuffles of the column (Breiman 2001), in the
    metric's own unit, larger is more important; 0 for columns that are gone.
    """
    rng = np.random.default_rng(seed)
    items = [problem.encoder.inputs[i] for i in point.inputs.tolist()]
    part = problem.test
    x = part.x[:, point.inputs.numpy()]
    y, w = torch.from_numpy(part.y), None if part.w is None else torch.from_numpy(part.w)
    whole = judge.score(predict(point.model, torch.from_numpy(x)), y, w)
    records = []
    for name in problem.columns:
        mine = [i for i, item in enumerate(items) if item.column == name]
        drops = []
        for _ in range(SHUFFLES if mine else 0):
            shuffled = x.copy()
            shuffled[:, mine] = x[rng.permutation(len(x))][:, mine]
            drops.append(whole - judge.score(predict(point.model, torch.from_numpy(shuffled)), y, w))
        worth = float(np.mean(drops)) if drops else 0.0
        records.append({"name": name, "kept": bool(mine), "inputs": [items[i].name for i in mine], "importance": worth})
    return sorted(records, key=lambda record: (not record["kept"], -record["importance"]))
