"""One surgery beside the bare copying of the weights it keeps, and beside Torch-Pruning: one thread, interleaved.

    python benchmarks/surgery.py [--json] [--quick]

ResNet-50 loses a tenth of the channels of every space, ViT-B a tenth of the neurons of every feed-forward, with the
state of AdamW, both after an earlier surgery. The entries are dead, and our time counts all of it: the proof that they
are, the plan, the constants, the model, the optimizer and the graph, which is made once, before. The bare time is
`index_select` alone, of the same tensors with indices at hand. Torch-Pruning has to build its graph anew each time, and
neither looks for constants nor follows the optimizer. Letting go of the old tensors is counted for none.
"""

import argparse
import copy
import gc
import json
import platform
import random
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import pared
from networks import ViT, resnet50
from pared.measure.latency import threads
from pared.surgery import make_plan, trace
from pared.surgery.graph import Graph
from pared.surgery.plan import Plan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_pruning as tp

BARE, PEER = 1.5, 0.25
Entries = Mapping[str, Sequence[int]]


@dataclass
class Times:
    """Seconds of the same surgeries, each way."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of `call`, without letting go of what it returned; no garbage is collected, as in timeit."""
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        _result = call()
        return time.perf_counter() - began
    finally:
        gc.enable()


def with_state(model: nn.Module) -> torch.optim.AdamW:
    """Return an optimizer that has made one step on `model`."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


@torch.no_grad()
def kill(model: nn.Module, graph: Graph, entries: Entries) -> None:
    """Zero what makes the entries: the norms behind convolutions, the rows of linear layers."""
    for name, gone in entries.items():
        for slot in graph.find(name).slots:
            module = model.get_submodule(slot.tensor.rpartition(".")[0])
            if slot.axis == 0 and isinstance(module, nn.BatchNorm2d | nn.Linear) and "running" not in slot.tensor:
                model.get_parameter(slot.tensor)[list(gone)] = 0.0


def bare(plan: Plan, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], list[Tensor]]:
    """Return a call that gives what is kept of each tensor and of its optimizer state, and does nothing else."""
    work: dict[str, list[tuple[int, Tensor]]] = {}
    for item in plan.gathers:
        work.setdefault(item.tensor, []).append((item.axis, torch.tensor(item.index)))
    todo = [(tensors[name], cuts) for name, cuts in work.items()]
    todo += [
        (value, cuts)
        for name, cuts in work.items()
        for value in optimizer.state.get(tensors[name], {}).values()
        if value.ndim
    ]

    @torch.no_grad()
    def call() -> list[Tensor]:
        kept = []
        for tensor, cuts in todo:
            for axis, index in cuts:
                tensor = tensor.index_select(axis, index)
            kept.append(tensor)
        return kept

    return call


def prune(model: nn.Module, example: Tensor, entries: Mapping[str, Sequence[int]]) -> None:
    """Let Torch-Pruning cut the same entries of the same layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
        for layer, gone in entries.items():
            module = model.get_submodule(layer)
            cut = tp.prune_linear_out_channels if isinstance(module, nn.Linear) else tp.prune_conv_out_channels
            graph.get_pruning_group(module, cut, idxs=list(gone)).prune()


def race(model: nn.Module, example: Tensor, spaces: Callable[[Graph], list[str]], rounds: int) -> Times:
    """Operate on `rounds` copies of a network that has been operated on before, each way in turn."""
    graph, times, rng = pared.graph(model, example), Times(), random.Random(0)
    optimizer = with_state(model)
    layers = {name: graph.find(name).layers[0] for name in spaces(graph)}
    pared.remove(model, {name: [0] for name in layers}, graph=graph, optimizer=optimizer, living="cut")
    for number in range(rounds + 1):
        sizes = {name: graph.find(name).size for name in layers}
        entries = {name: sorted(rng.sample(range(size), max(size // 10, 1))) for name, size in sizes.items()}
        kill(model, graph, entries)
        theirs = copy.deepcopy(model)
        mine, known, followed = copy.deepcopy((model, graph, optimizer))
        other, states = copy.deepcopy((model, optimizer))
        plan = make_plan(graph, model, {n: sorted({*range(sizes[n])} - {*gone}) for n, gone in entries.items()})
        copying = bare(plan, trace.tensors(model), optimizer)
        ways = {
            "ours": partial(pared.remove, mine, entries, graph=known, optimizer=followed),
            "bare": bare(plan, trace.tensors(other), states),
            "peer": partial(prune, theirs, example, {layers[n]: gone for n, gone in entries.items()}),
        }
        old = [p.detach() for net in (mine, theirs) for p in net.parameters()]
        old += [value for state in followed.state.values() for value in state.values()]
        for name in rng.sample(sorted(ways), 3):
            copying()  # whoever comes next finds memory that was used before
            seconds = timed(ways[name])
            if number:  # the first round warms up
                getattr(times, name).append(seconds)
        assert [p.shape for p in mine.parameters()] == [p.shape for p in theirs.parameters()], "not the same surgeries"
        del old
    return times


def claims(rounds: int) -> list[dict[str, Any]]:
    """Return the claims, with the seconds behind them."""
    image = torch.randn(1, 3, 224, 224)
    vit = ViT(image=224, patch=16, width=768, depth=12, heads=12, classes=1000)
    cases: dict[str, tuple[nn.Module, Callable[[Graph], list[str]]]] = {
        "ResNet-50, all layers": (resnet50(), lambda g: [s.name for s in g.removable()]),
        "ViT-B, all feed-forwards": (vit, lambda g: [s.name for s in g.removable() if s.size == 3072]),
    }
    found = []
    for name, (model, spaces) in cases.items():
        times = race(model.eval(), image, spaces, rounds)
        for rival, bar, against in (("bare index_select", BARE, times.bare), ("Torch-Pruning", PEER, times.peer)):
            ratio = median(ours / other for ours, other in zip(times.ours, against, strict=True))
            seconds = {"ours": median(times.ours), rival: median(against), "rounds": rounds}
            holds = ratio <= bar
            found.append({"name": f"{name} / {rival}", "ratio": ratio, "bar": bar, "holds": holds, "detail": seconds})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of ten: under a minute")
    arguments = parser.parse_args()
    with threads(1):
        found = claims(3 if arguments.quick else 10)
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    if arguments.json:
        print(json.dumps({"claims": found, "machine": machine}, indent=1))
    else:
        for one in found:
            print(f"{one['name']}: {one['ratio']:.2f} (bar {one['bar']}, {'holds' if one['holds'] else 'MISSED'})")
            print(json.dumps(one["detail"]))
    sys.exit(0 if all(one["holds"] for one in found) else 1)


if __name__ == "__main__":
    main()
