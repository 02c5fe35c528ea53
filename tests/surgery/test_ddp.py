"""Two processes over gloo: they decide alike, stay equal, and refuse alike."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import one_rank
import pytest
import torch
from torch import nn

import pared
from pared.errors import SurgeryError

ROOT = Path(__file__).resolve().parents[2]


def two_ranks(folder: Path, scenario: str) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "error::UserWarning", one_rank.__file__]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder), scenario], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_twenty_steps_across_three_surgeries(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "train")
    assert first == second  # losses, and the bits of parameters and of Adam's state after every step
    assert first["kept"] == [[10, 10], [9, 9], [6, 6]]
    alone = one_rank.alone()
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(first["sums"], alone["sums"], rtol=1e-6, atol=1e-9)


def test_all_ranks_refuse_alike_and_nothing_is_lost(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "refusals")
    stopped, own = first.pop("own"), second.pop("own")
    assert first == second
    assert len(stopped) == len(own) == 6  # of those that were bound to the network inside of the wrapper none was
    assert all("rank 1 failed to change its part: " in text for text in stopped)
    assert own[:3] == ["KeyboardInterrupt"] * 3
    assert own[3:] == stopped[3:]
    assert first["same"]
    said = first["said"]
    assert "entry 0 of '0' is alive" in said["alive"]
    assert "half done" in said["half done"]
    assert "half done" in said["inside no_sync"]
    assert "rank 1 has another network" in said["unlike"]
    assert "LBFGS" in said["one rank cannot"]


def test_a_wrapper_is_refused_where_it_cannot_follow() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = pared.graph(net, torch.zeros(2, 3))
    with pytest.raises(SurgeryError, match="use pared.remove_ddp"):
        pared.remove(nn.DataParallel(net), {"0": [1]}, graph=graph)
