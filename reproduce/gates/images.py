"""Differentiable sparsification on CIFAR-10: depth of ResNets, branches of ResNeXts, inputs of DenseNets, and rivals.

    python reproduce/gates/images.py --data DIR                 # ResNet: 10,000 images, 32x32, 3 seeds
    python reproduce/gates/images.py --data DIR --net resnext   # or densenet: the same images, halved to 16x16
    python reproduce/gates/images.py --data DIR --rows 50000 --epochs 100 --width 16 --device cuda:0
    python reproduce/gates/images.py --net resnext --latency    # takes all times anew, in turns, on a quiet machine
    python reproduce/gates/images.py --net resnext --only table # what is there so far

The paper prints no numbers: the table is ours. Networks are trained from scratch, while blocks of a stage (ResNet), branches
of a block (ResNeXt) or inputs of a layer (DenseNet) compete ("gates", at several strengths). Those whose share stays 0 leave
while it trains, and what is left is folded into a plain network. Its rivals have the same images, epochs, rates and seeds:

- "thin": networks of the same form that are thinner everywhere;
- "random": networks that lack as many components of each group as the gates left out at that strength and seed, from the
  beginning and chosen at random;
- "softmax": softmax gates, of which as many as the gates chose stay, those with the largest shares;
- "lasso": the group lasso by its proximal step, weighed by the cost of a component as gates are, on the weights that its
  contribution hangs on. Where all of a group are 0, one stays, as with gates.

What goes by softmax or lasso is decided on behind two thirds of the epochs: what is left then trains without shares being
taken away, or without penalty, so that it can make up for what went, as it can with gates.

All are compared at equal multiply-accumulates, with thinner networks and with gates: with what is read off the line through
the runs of the same seed, linear in the logarithm of the cost, and not where there is none on one side; the number of seeds
stands in brackets. The line of gates ends at the dense network. Accuracy is on the last 10,000 training images, which no one
trains on ("validation") and by which strengths were found, and on the test images. Latency is of 64 images on one thread.
Each run is one JSON file.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.measure.latency import least_us, threads
from pared.measure.size import macs
from pared.methods import Gates
from pared.optim import Proximal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import accuracy, arguments, read_images, reproduce
from equal_macs import table
from nets import NETS, components, hold_zeros, lasso_groups, removed, sizes, softmax_gates, without

RATE, DECAY, DECIDED = 0.1, 5e-4, 2 / 3
Found = tuple[nn.Module, dict[str, Any]]


@cache
def images(data: str, rows: int, side: int) -> tuple[Tensor, ...]:
    """Return images and classes to train on, for validation, and for the test, their sides divided by averaging."""
    x, y, x_test, y_test = read_images(Path(data), "cifar10")
    x, x_test = (
        F.avg_pool2d(part, part.shape[2] // side).contiguous(memory_format=torch.channels_last) for part in (x, x_test)
    )
    held = min(10_000, len(x) // 5)
    return x[: min(rows, len(x) - held)], y[: min(rows, len(x) - held)], x[-held:], y[-held:], x_test, y_test


def parts_of(options: argparse.Namespace) -> tuple[Tensor, ...]:
    """Return the images of a run."""
    return images(str(options.data), options.rows, NETS[options.net].side)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images shifted by up to an eighth of their side, flipped or not: one draw for each batch."""
    most = x.shape[2] // 8
    down, right = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    moved = F.pad(x, (most,) * 4)[:, :, down : down + x.shape[2], right : right + x.shape[3]]
    moved = moved.flip(3) if torch.rand((), generator=generator) < 0.5 else moved
    return moved.contiguous(memory_format=torch.channels_last)


def train(
    model: nn.Module,
    seed: int,
    options: argparse.Namespace,
    *,
    method: Gates | None = None,
    pressed: list[dict[str, Any]] | None = None,
    decide: Callable[[Any], object] | None = None,
) -> Any:
    """Train, `pressed` by proximal steps, calling `decide` with the optimizer on the way; return the method's session."""
    x, y, *_ = parts_of(options)
    steps, device = len(x) // options.batch, options.device
    total, own = steps * options.epochs, {id(p) for group in pressed or () for p in group["params"]}
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == plain and id(p) not in own], "weight_decay": decay}
        for plain, decay in ((True, DECAY), (False, 0.0))
    ]
    for group in pressed or ():
        groups.append(group | {"weight_decay": DECAY if group["params"][0].ndim > 1 else 0.0})
    optimizer: Any = torch.optim.SGD(groups, RATE, momentum=0.9, nesterov=True)
    if pressed is not None:
        optimizer = Proximal(optimizer, "l1", 0.0)
    generator = torch.Generator().manual_seed(seed)
    session = None
    if method is not None:
        session = method.bind(model, optimizer, x[:2].to(device), total_steps=total, steps_per_epoch=steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], total)
    for epoch in range(options.epochs):
        if decide is not None and epoch == math.ceil(DECIDED * options.epochs):
            decide(optimizer)
        for rows in torch.randperm(len(x), generator=generator)[: steps * options.batch].split(options.batch):
            loss = F.cross_entropy(model(augmented(x[rows].to(device), generator)), y[rows].to(device))
            if session is not None:
                loss = loss + session.penalty()
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return session


def network(options: argparse.Namespace, seed: int, width: int | None = None) -> nn.Module:
    """Return a network as it begins."""
    net = NETS[options.net]
    generator = torch.Generator().manual_seed(seed)
    return net.make(width or options.width or net.widths[0], generator=generator).to(options.device)


def cut(model: nn.Module, options: argparse.Namespace, make: Callable[[Tensor], nn.Module]) -> tuple[nn.Module, float]:
    """Return the small network that `make` gives of an example, and by how much it differs from `model` at most."""
    some = parts_of(options)[2][:200].to(options.device)
    with torch.no_grad():
        before = model.eval()(some)
        small = make(some[:2]).eval()
        return small, float((small(some) - before).abs().max())


def chosen_by_gates(level: float, seed: int, options: argparse.Namespace) -> dict[str, list[int]]:
    """Return which components of each group the gates kept."""
    path = options.out / f"{options.net}-gates-{level:g}-{seed}.json"
    return json.loads(path.read_text(encoding="utf-8"))["kept"]


def thin(level: float, seed: int, options: argparse.Namespace) -> Found:
    """A network that is thinner everywhere."""
    model = network(options, seed, int(level))
    train(model, seed, options)
    return model, {"kept": {t: list(range(n)) for t, n in sizes(NETS[options.net].groups(model)).items()}}


def gates(level: float, seed: int, options: argparse.Namespace) -> Found:
    """A network whose components compete."""
    model = network(options, seed)
    groups = NETS[options.net].groups(model)
    session = train(model, seed, options, method=Gates(level, groups, cost="macs", scaled=True))
    small, off = cut(model, options, lambda _: session.realize())
    kept = {}
    for title, held in session.kept.items():
        kept[title] = [place for place, alive in zip(held, session.gates[title].alive.tolist(), strict=True) if alive]
    events = [[e.step, e.layer, list(e.index)] for e in session.events]
    shares = {title: gate.shares().tolist() for title, gate in session.gates.items()}
    return small, {"kept": kept, "events": events, "shares": shares, "difference": off}


def random(level: float, seed: int, options: argparse.Namespace) -> Found:
    """A network without as many components of each group as the gates left out, drawn before it begins."""
    model, generator = network(options, seed), torch.Generator().manual_seed(seed + 1000)
    groups = NETS[options.net].groups(model)
    kept = {}
    for title, chosen in chosen_by_gates(level, seed, options).items():
        kept[title] = sorted(torch.randperm(sizes(groups)[title], generator=generator)[: len(chosen)].tolist())
    small = without(model, groups, kept, parts_of(options)[0][:2].to(options.device))
    train(small, seed, options)
    return small, {"kept": kept}


def softmax(level: float, seed: int, options: argparse.Namespace) -> Found:
    """A network with softmax gates, which keep as many components of each group as the gates kept."""
    model = network(options, seed)
    made = softmax_gates(model, NETS[options.net].groups(model), chosen_by_gates(level, seed, options))
    train(model, seed, options, decide=lambda _: [gate.discretize() for gate in made.values()])
    kept = {title: gate.alive.nonzero().flatten().tolist() for title, gate in made.items()}
    small, off = cut(model, options, lambda x: removed(model, x))
    return small, {"kept": kept, "difference": off}


def lasso(level: float, seed: int, options: argparse.Namespace) -> Found:
    """A network under a group lasso."""
    model, example = network(options, seed), parts_of(options)[0][:2].to(options.device)
    groups = NETS[options.net].groups(model)
    train(model, seed, options, pressed=lasso_groups(model, groups, level, example), decide=hold_zeros)
    kept, norms = (
        {},
        {t: [float(part.detach().norm()) for part in found] for t, found in components(model, groups).items()},
    )
    for title, found in norms.items():
        kept[title] = [place for place, norm in enumerate(found) if norm > 0] or [0]
    small, off = cut(model, options, lambda x: without(model, groups, kept, x))
    return small, {"kept": kept, "norms": norms, "difference": off}


KINDS: dict[str, Callable[[float, int, argparse.Namespace], Found]] = {
    "thin": thin,
    "gates": gates,
    "random": random,
    "softmax": softmax,
    "lasso": lasso,
}


def run(kind: str, level: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network, and measure what is left of it."""
    small, story = KINDS[kind](level, seed, options)
    held = [part.to(options.device) for part in parts_of(options)[2:]]
    with threads(1):
        (latency,) = least_us([partial(small.eval(), held[0][:64])], seconds=options.seconds)
    return story | {
        "kind": kind,
        "level": level,
        "seed": seed,
        "validation": accuracy(small, held[0], held[1]),
        "test": accuracy(small, held[2], held[3]),
        "macs": macs(small, held[0][:1]),
        "params": sum(p.numel() for p in small.parameters()),
        "us": latency,
        "rows": options.rows,
        "epochs": options.epochs,
    }


def levels_of(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the widths and strengths of each kind."""
    net = NETS[options.net]
    widths, strengths, lassos = (
        [float(level) for level in given.split(",")] if given else list(known)
        for given, known in (
            (options.thin, net.widths),
            (options.strengths, net.strengths),
            (options.lassos, net.lassos),
        )
    )
    return {"thin": widths, "gates": strengths, "random": strengths, "softmax": strengths, "lasso": lassos}


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield what is to be run, one seed whole before the next, gates before what depends on them."""
    levels = levels_of(options)
    for seed in map(int, options.seeds.split(",")):
        for kind in options.kinds.split(","):
            for level in levels[kind]:
                yield f"{options.net}-{kind}-{level:g}-{seed}", partial(run, kind, level, seed, options)


def time_anew(options: argparse.Namespace) -> bool:
    """Take the times of all networks that are there, in turns, if that is asked for: of their form, untrained."""
    if not options.latency:
        return False
    paths = sorted(options.out.glob(f"{options.net}-*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    side = NETS[options.net].side
    x = torch.randn(64, 3, side, side).contiguous(memory_format=torch.channels_last).to(options.device)
    models = []
    for one in found:
        model = network(options, 0, int(one["level"]) if one["kind"] == "thin" else None).eval()
        models.append(without(model, NETS[options.net].groups(model), one["kept"], x[:2]).eval())
    with threads(1):
        times = least_us([partial(m, x) for m in models], seconds=options.seconds * len(models))
    for path, one, us in zip(paths, found, times, strict=True):
        path.write_text(json.dumps(one | {"us": us, "timed": "in turns"}), encoding="utf-8")
    table(options)
    return True


def main() -> int:
    """Run what is missing, and print the table."""
    parser = arguments(__doc__, "gates/images", seeds="0,1,2")
    parser.add_argument("--net", choices=NETS, default="resnet")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, help="of all but thinner networks; the first of these without")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--strengths", help="of gates, and of what keeps as many")
    parser.add_argument("--lassos", help="strengths of the group lasso")
    parser.add_argument("--thin", help="widths of the thinner networks; the first is the dense one")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seconds", type=float, default=1.0, help="for the time of each network")
    parser.add_argument("--latency", action="store_true", help="take times anew, in turns, of all that is there")
    return reproduce(parser, runs, table, time_anew)


if __name__ == "__main__":
    sys.exit(main())
