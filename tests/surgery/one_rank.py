"""One of two processes that train together; run by `test_ddp`, as `python one_rank.py RANK FOLDER SCENARIO`."""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pared
from pared.errors import SurgeryError
from pared.methods import GroupLasso
from pared.surgery import Graph

STOPS = (KeyboardInterrupt, MemoryError)
STEPS, SURGERIES = 20, {5: [0, 3], 10: [1], 15: [0, 2, 4]}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*conv, nn.Linear(8 * 16, 3)).double()


def rows(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (8,), generator=generator)


def kill(model: nn.Sequential, gone: list[int]) -> None:
    with torch.no_grad():
        for tensor in model[0].parameters():
            tensor[gone] = 0.0


def digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().numpy().tobytes())
        for key in ("exp_avg", "exp_avg_sq"):
            if parameter in optimizer.state:
                found.update(optimizer.state[parameter][key].numpy().tobytes())
    return found.hexdigest()


def alone() -> dict[str, Any]:
    """The same training in one process, on whole batches."""
    model = network()
    graph, optimizer = pared.graph(model, rows(0)[0]), torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    losses = []
    for step in range(STEPS):
        if step in SURGERIES:
            kill(model, SURGERIES[step])
            pared.remove(model, {"0": SURGERIES[step]}, graph=graph, optimizer=optimizer)
        x, y = rows(step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "sums": [float(p.detach().sum()) for p in model.parameters()]}


class Rank:
    def __init__(self, rank: int) -> None:
        self.rank, self.half = rank, slice(4 * rank, 4 * rank + 4)
        model = network()
        self.graph: Graph = pared.graph(model, rows(0)[0])
        self.wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def backward(self, step: int, *, sync: bool = True) -> float:
        x, y = (part[self.half] for part in rows(step))
        with contextlib.nullcontext() if sync else self.wrapped.no_sync():
            loss = nn.functional.cross_entropy(self.wrapped(x), y)
            loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        return float(mean) / 2

    def step(self) -> None:
        self.optimizer.step()

    def remove(self, gone: list[int]) -> None:
        self.wrapped = pared.remove_ddp(self.wrapped, {"0": gone}, graph=self.graph, optimizer=self.optimizer)

    def train(self) -> dict[str, Any]:
        schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 1e-2, total_steps=STEPS)
        losses, digests, kept = [], [], []
        for step in range(STEPS):
            if step in SURGERIES:
                gone = SURGERIES[step]
                kill(self.wrapped.module, gone)
                self.remove(gone if self.rank == 0 else [5])  # rank 0 decides
                kept.append([self.wrapped.module[0].out_channels, self.graph.find("0").size])
            self.optimizer.zero_grad()
            losses.append(self.backward(step))
            self.optimizer.step()
            schedule.step()
            digests.append(digest(self.wrapped.module, self.optimizer))
        sums = [float(p.detach().sum()) for p in self.wrapped.module.parameters()]
        return {"losses": losses, "digests": digests, "kept": kept, "sums": sums}

    def refusals(self) -> dict[str, Any]:
        self.backward(0)
        self.optimizer.step()
        before, said = digest(self.wrapped.module, self.optimizer), {}
        said["alive"] = self.refused([0, 1])
        self.optimizer.zero_grad()
        self.backward(1, sync=False)
        kill(self.wrapped.module, [])
        said["half done"] = self.refused([0])
        with self.wrapped.no_sync():
            said["inside no_sync"] = self.refused([0])
        self.optimizer.zero_grad()
        if self.rank == 1:
            self.wrapped.module[0].weight.requires_grad_(False)
        said["unlike"] = self.refused([0], living="cut")
        self.wrapped.module[0].weight.requires_grad_(True)
        optimizer, self.optimizer = self.optimizer, torch.optim.LBFGS(self.wrapped.module.parameters())
        said["one rank cannot"] = self.refused([0], living="cut")
        self.optimizer = optimizer
        own = [self.stopped(error, name) for error in STOPS for name in ("_commit_model", "commit_optimizer", "follow")]
        with contextlib.suppress(SurgeryError):
            GroupLasso().bind(self.wrapped.module, self.optimizer, rows(0)[0], steps_per_epoch=1)
            own.append("bound")
        same = before == digest(self.wrapped.module, self.optimizer)
        kill(self.wrapped.module, [0])
        self.remove([0])
        self.backward(2)
        self.optimizer.step()
        return {"said": said, "same": same, "digest": digest(self.wrapped.module, self.optimizer), "own": own}

    def stopped(self, error: type[BaseException], name: str) -> str:
        """What a removal says that stops on rank 1 in a function of this name, while it changes things."""

        def trace(frame: Any, event: str, argument: Any) -> Any:
            ours = frame.f_code.co_name == name and "surgery" in frame.f_code.co_filename
            if ours and event == "line" and frame.f_lineno > frame.f_code.co_firstlineno + 4:
                raise error
            return trace

        size, widths = self.graph.find("0").size, [p.shape for p in self.wrapped.module.parameters()]
        old = sys.gettrace()
        sys.settrace(trace if self.rank == 1 else None)
        try:
            return self.refused([0], living="cut")
        except BaseException as stopped:
            return type(stopped).__name__
        finally:
            sys.settrace(old)
            assert self.graph.find("0").size == size
            assert [p.shape for p in self.wrapped.module.parameters()] == widths

    def refused(self, gone: list[int], **more: Any) -> str:
        try:
            pared.remove_ddp(self.wrapped, {"0": gone}, graph=self.graph, optimizer=self.optimizer, **more)
        except SurgeryError as error:
            return str(error)
        return "nothing"


def main() -> None:
    number, folder, scenario = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    result = getattr(Rank(number), scenario)()
    (folder / f"{number}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads sometimes abort the interpreter's own way out


if __name__ == "__main__":
    main()
