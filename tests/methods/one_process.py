"""One of two processes that train a sparse network together; run by `test_weights` with rank and folder."""

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pared.methods import SDR, SET, SNFS, SNIP, DeepR, GradualMagnitude, LpSS, RigL, SNIPDynamic, Static, WeightMethod
from pared.nn import SparseLinear
from pared.optim import LpSGD, lp_groups
from pared.topology import Constant

CASES: dict[str, WeightMethod] = {
    "static": Static(0.8),
    "set": SET(0.8, every=3),
    "rigl": RigL(0.8, every=3),
    "snip": SNIP(0.8),
    "snip dynamic": SNIPDynamic(0.8, every=3, begin=0.0),
    "deep r": DeepR(0.8, noise=1.0),
    "snfs": SNFS(0.8, every=3),
    "sdr": SDR(0.8, every=3),
    "sdr, tolerance": SDR(0.8, tolerance=0.5, every=3),
    "gradual magnitude": GradualMagnitude(0.8, every=3),
    "lpss": LpSS(0.7, every=3, begin=0.0, threshold=Constant(0.5)),
}


def train(rank: int, method: WeightMethod, *, sparse: bool = False, sphere: bool = False) -> dict[str, Any]:
    """Train twenty steps and return what is there after each."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    if sparse:
        mask = torch.rand(20, 8, generator=torch.Generator().manual_seed(1)) < 0.3
        net[0] = SparseLinear.from_linear(net[0], mask)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(rank)  # each draws other numbers from now on, and still chooses alike
    model = DistributedDataParallel(net)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    if sphere:
        optimizer = LpSGD(lp_groups(model, 1.5), lr=0.05, p=1.5)
    held = torch.randn(16, 8, dtype=torch.float64)  # each its own
    bind = partial(method.bind, loss=lambda: model(held).square().mean()) if isinstance(method, SDR) else method.bind
    session = bind(model, optimizer, total_steps=20)
    digests = []
    for _ in range(20):
        x = torch.randn(16, 8, dtype=torch.float64)
        nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long() + (x[:, 1] > 0).long()).backward()
        session.step()
        optimizer.zero_grad()
        found = hashlib.sha256()
        for parameter in net.parameters():
            found.update(parameter.detach().numpy().tobytes())
        for buffer in net.buffers():  # where the connections of a sparse layer are
            found.update(buffer.numpy().tobytes())
        for parameter in net.parameters():
            state = optimizer.state.get(parameter, {})
            for part in ("exp_avg", "momentum_buffer", "v", "crow"):
                found.update(state[part].numpy().tobytes() if part in state else b"")
        digests.append(found.hexdigest())
    return {"digests": digests, "changes": len(session.events), "sparsity": session.sparsity}


def main(rank: int, folder: Path) -> None:
    """Write what is there of every method."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder / 'store'}")
    told = {name: train(rank, method) for name, method in CASES.items()}
    told |= {f"sparse {name}": train(rank, method, sparse=True) for name, method in CASES.items() if method.steady}
    told["sphere"] = train(rank, CASES["rigl"], sparse=True, sphere=True)
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads sometimes abort the interpreter's own way out, when all is written


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
