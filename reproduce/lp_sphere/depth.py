"""L_p sphere, the remark behind equation 13: does the sphere's step help where gradients vanish, in MLPs of 8, 16 and 32 layers?

    python reproduce/lp_sphere/depth.py --data DIR                  # DIR/mnist/*.gz, or $PARED_DATA; a quarter of an hour
    python reproduce/lp_sphere/depth.py --data DIR --depths 8,16 --draws torch --seeds 0
    python reproduce/lp_sphere/depth.py --only table                # what is there so far

The paper: "the vanishing gradient ... can be partially overcome by LpSGD", as a step goes a share of the way however small
the gradient is. It shows no experiment. Here: networks 784-100-...-100-10 without norms on the first 10,000 images of MNIST,
batches of 128, 5 epochs, the rate falling along a line to 0; SGD with momentum 0.9 against LpSGD-m with every layer's
weights on the sphere and biases by heavy-ball SGD at the same rate, as the paper has it. Two draws: torch's own, and He's
with biases at 0; the sphere then divides each neuron by its norm, so that for it they differ in the biases only. Every rate
is tried with the first seed, the one chosen is best on the last 5,000 images of the training part, and all seeds are
reported with it on test images. Gradients are those of the first 1,000 training images, before the first step and after
the last: the norm for each layer's weights, and that of the first layer divided by that of the last one. Each run lands as
one JSON file under --out and is not run again.
"""

import argparse
import json
import statistics
import sys
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.models import mlp
from pared.optim import LpSGD, lp_groups, piecewise_linear

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import Runs, accuracy, arguments, read_images, reproduce, results, told

images = cache(read_images)
WIDTH, BATCH, VALIDATION = 100, 128, 5000
RATES = {"SGD": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "LpSGD": (0.001, 0.003, 0.01, 0.03, 0.1)}
METHODS = ("SGD", "LpSGD-1.2", "LpSGD-1.5", "LpSGD-2")
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
#: A network that learned nothing is at 11; below the first SGD counts as failing; points that count as better.
TRAINS, CLEARLY = 50.0, 5.0


def layers(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of all layers."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def draw_he_(model: nn.Module, generator: torch.Generator) -> None:
    """Draw weights as He et al. (2015) do, and set biases to 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            drawn = torch.randn(module.weight.shape, generator=generator)
            module.weight.copy_(drawn * (2.0 / module.in_features) ** 0.5)
            module.bias.zero_()


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Return the norm of each layer's gradient, and the share of the first layer's neurons that have none."""
    found = torch.autograd.grad(F.cross_entropy(model(x), y), layers(model))
    none = found[0].abs().amax(1) == 0.0
    return {"norms": [float(g.double().norm()) for g in found], "none": float(none.double().mean())}


def optimizer_of(method: str, model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Return SGD or LpSGD with its exponent."""
    if method == "SGD":
        return torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    p = float(method.removeprefix("LpSGD-"))
    return LpSGD(lp_groups(model, p, constrain="all"), rate, p)


def run(
    depth: int, activation: str, draw: str, method: str, rate: float, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Train one network and return what became of its accuracy and its gradients."""
    x, y, *test = images(Path(options.data), "mnist")
    valid, x, y = (x[-VALIDATION:], y[-VALIDATION:]), x[: options.rows], y[: options.rows]
    generator = torch.Generator().manual_seed(seed)
    made = mlp(784, 10, [WIDTH] * depth, activation=ACTIVATIONS[activation], generator=generator)
    model = nn.Sequential(nn.Flatten(), *made)
    if draw == "he":
        draw_he_(model, generator)
    optimizer = optimizer_of(method, model, rate)
    first = layers(model)[0].detach().clone()
    start = gradients(model, x[:1000], y[:1000])
    steps = len(x) // BATCH
    schedule = piecewise_linear(optimizer, [(0.0, 1.0), (float(options.epochs * steps), 0.0)])
    losses: list[Tensor] = []
    for _ in range(options.epochs):
        for rows in torch.randperm(len(x), generator=generator)[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    found = {
        "depth": depth,
        "activation": activation,
        "draw": draw,
        "method": method,
        "rate": rate,
        "seed": seed,
        "rows": len(x),
        "epochs": options.epochs,
        "loss": float(torch.stack(losses[-steps:]).mean()),
        "valid": accuracy(model, *valid),
        "test": accuracy(model, test[0], test[1]),
        "start": start,
        "end": gradients(model, x[:1000], y[:1000]),
        "moved": float((layers(model)[0].detach() - first).norm() / first.norm()),
    }
    print(name_of(depth, activation, draw, method, rate, seed), f"valid {found['valid']:.2f}", flush=True)
    return found


def name_of(depth: int, activation: str, draw: str, method: str, rate: float, seed: int) -> str:
    """Return a run's name."""
    return f"{depth}-{activation}-{draw}-{method}-{rate:g}-{seed}"


def runs(options: argparse.Namespace) -> Runs:
    """Return all rates with the first seed, then the chosen one with the others, by name."""
    split = [part.split(",") for part in (options.depths, options.activations, options.draws, options.methods)]
    first, *others = map(int, options.seeds.split(","))
    for depth, activation, draw, method in product(*split):
        what = int(depth), activation, draw, method
        rates = RATES[method.split("-")[0]]
        for rate in rates:
            yield name_of(*what, rate, first), partial(run, *what, rate, first, options)
        paths = [options.out / f"{name_of(*what, rate, first)}.json" for rate in rates]
        rate = chosen([json.loads(path.read_text(encoding="utf-8")) for path in paths])
        for seed in others:
            yield name_of(*what, rate, seed), partial(run, *what, rate, seed, options)


def chosen(found: list[dict[str, Any]]) -> float:
    """Return the rate of the run that is best on validation images."""
    return max(found, key=lambda one: (one["valid"], -one["rate"]))["rate"]


def ratio(one: dict[str, Any], when: str) -> float:
    """Return the first layer's gradient over the last one's."""
    norms = one[when]["norms"]
    return norms[0] / norms[-1] if norms[-1] > 0.0 else 0.0


def at_best(found: list[dict[str, Any]], case: tuple[str, str, int], method: str) -> tuple[list[dict[str, Any]], str]:
    """Return a method's runs at the rate chosen with the first seed, and * if it is at the edge of those tried."""
    mine = [one for one in found if (one["activation"], one["draw"], one["depth"], one["method"]) == (*case, method)]
    if not mine:
        return [], ""
    tried = [one for one in mine if one["seed"] == min(one["seed"] for one in mine)]
    rate, rates = chosen(tried), sorted(one["rate"] for one in tried)
    return [one for one in mine if one["rate"] == rate], "*" if rate in (rates[0], rates[-1]) else " "


def mean(found: list[dict[str, Any]], key: str) -> float:
    """Return the mean of a number over runs."""
    return statistics.mean(one[key] for one in found)


def table(options: argparse.Namespace) -> None:
    """Print accuracy, gradients and movement of every method at its chosen rate, and what is to be said of the remark."""
    found = results(options)
    said: dict[tuple[bool, str], list[str]] = {}
    head = f"{'':>26}{'method':>11}{'rate':>7}{'test':>15}{'first/last, start':>19}{'end':>9}{'none':>6}{'moved':>8}"
    print(head)
    for case in sorted({(one["activation"], one["draw"], one["depth"]) for one in found}):
        name = f"{case[2]} layers, {case[0]}, {case[1]}"
        best: dict[str, list[dict[str, Any]]] = {}
        for method in METHODS:
            mine, edge = at_best(found, case, method)
            if mine:
                best[method] = mine
                ratios = [statistics.median(ratio(one, when) for one in mine) for when in ("start", "end")]
                none = statistics.mean(one["start"]["none"] for one in mine)
                line = f"{name:>26}{method:>11}{mine[0]['rate']:>6g}{edge}{told(one['test'] for one in mine):>15}"
                print(line + f"{ratios[0]:>19.0e}{ratios[1]:>9.0e}{none:>6.0%}{mean(mine, 'moved'):>8.2g}")
        if len(best) == len(METHODS):
            sphere = max(METHODS[1:], key=lambda method: mean(best[method], "valid"))
            ours, theirs = mean(best[sphere], "test"), mean(best["SGD"], "test")
            better = "ahead" if ours > theirs + CLEARLY else "behind" if ours < theirs - CLEARLY else "level"
            said.setdefault((theirs < TRAINS, better), []).append(f"{name} ({theirs:.1f} to {ours:.1f})")
    print(
        "rate: the best on validation images, * at the edge of what was tried; none: neurons of the first layer without"
    )
    print("any gradient at the start; moved: how far the first layer's weights went, as a share of their norm")
    print(
        f"\ntest accuracy of SGD to that of the sphere, its p chosen on validation images; level: within {CLEARLY:g} points"
    )
    for fails in (True, False):
        print(f"where SGD at its best rate {'stays below' if fails else 'gets above'} {TRAINS:g}:")
        for better in ("ahead", "level", "behind"):
            print(f"  the sphere is {better}: {'; '.join(said.get((fails, better), [])) or 'nowhere'}")
    helps, all_ = len(said.get((True, "ahead"), [])), sum(len(where) for (fails, _), where in said.items() if fails)
    harms = sum(len(where) for (_, better), where in said.items() if better == "behind")
    print(
        f'"partially overcome": {"seen" if helps else "not seen"}, in {helps} of the {all_} cases in which SGD fails'
        + (f"; it is behind in {harms} of the others" if harms else "")
    )


def main() -> int:
    """Run what is missing and print the table."""
    parser = arguments(__doc__, "lp_sphere/depth", seeds="0,1,2")
    parser.add_argument("--depths", default="8,16,32")
    parser.add_argument("--activations", default="relu,sigmoid", help=", ".join(ACTIVATIONS))
    parser.add_argument("--draws", default="torch,he")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    return reproduce(parser, runs, table)


if __name__ == "__main__":
    sys.exit(main())
