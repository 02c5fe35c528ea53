"""Gates, planted structure: are exactly the branches left that the data were made by?

    python reproduce/gates/planted.py                        # no data needed; some ten minutes, one thread
    python reproduce/gates/planted.py --seeds 0,1 --forms "normalised;plain"
    python reproduce/gates/planted.py --only table           # what is there so far

There are n = 8 branches, small MLPs (4-16-1, tanh), each with inputs of its own, and a target that k = 3 of them make:
y = sum of g_i(x_i) / sqrt(k) + 0.1 noise, g_i a random MLP (4-4-1) with mean 0 and variance 1, 2048 rows. A network sums its
branches by the shares of one gate, a scale and a bias behind the sum. Everything is learned together by Adam at 0.01, 600
batches of 256, the loss plus strength · the 1/2-norm of the shares. A run is exact when the shares above 0 at its end, without
any threshold, are those of the planted branches; k is not told.

The network with normalised branches has a batch norm without weights behind each, so that the size of what a branch gives is
its share and nothing else. Without ("plain") weights make up for a small share; pressed hard, shares go to branches that are
of no use ("useless" is the sum of their shares), and what is of use goes on from a tiny share, or dies. In the `fast` forms,
which learn the gate three times as fast and press hard, shares are decided on before branches have learned anything, and a
norm does not help. Settings were found on seeds from 100 on; each run lands as a JSON file under --out.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import run_missing

from pared.nn import Gate


@dataclass(frozen=True)
class Settings:
    """What a run is done with: the problem, the network, and how it is trained."""

    strength: float = 0.03
    normalised: bool = True
    null: bool = False
    gate_lr: float = 0.01
    planted: int = 3
    branches: int = 8
    inputs: int = 4
    hidden: int = 16
    rows: int = 2048
    batch: int = 256
    steps: int = 600
    lr: float = 0.01
    noise: float = 0.1


BASE = Settings()
FAST = replace(BASE, strength=1.0, gate_lr=0.03)
FORMS: dict[str, Settings] = {
    "normalised": BASE,
    "plain": replace(BASE, normalised=False),
    "null": replace(BASE, null=True),
    "k = 1": replace(BASE, planted=1),
    "k = 6": replace(BASE, planted=6),
    "no pressure": replace(BASE, strength=0.0),
    "strength 0.003": replace(BASE, strength=0.003),
    "strength 1": replace(BASE, strength=1.0),
    "strength 1, plain": replace(BASE, strength=1.0, normalised=False),
    "fast": FAST,
    "fast, plain": replace(FAST, normalised=False),
}


class Network(nn.Module):
    """Branches on inputs of their own, summed by the shares of a gate. Shapes: (rows, branches, inputs) -> (rows,)."""

    def __init__(self, settings: Settings, generator: torch.Generator) -> None:
        super().__init__()
        n, inputs, hidden = settings.branches, settings.inputs, settings.hidden
        self.first = nn.Parameter(torch.randn(n, inputs, hidden, generator=generator) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.randn(n, 1, hidden, generator=generator))
        self.last = nn.Parameter(torch.randn(n, hidden, 1, generator=generator) / math.sqrt(hidden))
        self.norm = nn.BatchNorm1d(n, affine=False) if settings.normalised else nn.Identity()
        self.gate = Gate(n, dim=1, null=settings.null)
        self.scale, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the prediction."""
        results = ((x.transpose(0, 1) @ self.first + self.bias).tanh() @ self.last).squeeze(2).t()
        return self.scale * self.gate(self.norm(results)).sum(1) + self.shift


def made(settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor, list[int]]:
    """Return inputs (rows, branches, inputs), targets (rows,), and which branches made them."""
    x = torch.randn(settings.rows, settings.branches, settings.inputs, generator=generator)
    chosen = torch.randperm(settings.branches, generator=generator)[: settings.planted].sort().values.tolist()
    y = settings.noise * torch.randn(settings.rows, generator=generator)
    for branch in chosen:
        weight, bias, out = (torch.randn(*size, 4, generator=generator) for size in ((settings.inputs,), (), ()))
        g = (x[:, branch] @ weight + bias).tanh() @ out
        y += (g - g.mean()) / g.std() / math.sqrt(settings.planted)
    return x, y, chosen


def run(settings: Settings, seed: int) -> dict[str, Any]:
    """Train once; return who was planted, who is left, and the shares."""
    generator = torch.Generator().manual_seed(seed)
    x, y, chosen = made(settings, generator)
    model = Network(settings, generator)
    own = {id(parameter) for parameter in model.gate.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    gates = {"params": list(model.gate.parameters()), "lr": settings.gate_lr}
    optimizer = torch.optim.Adam([{"params": rest}, gates], lr=settings.lr)
    for _ in range(settings.steps):
        rows = torch.randint(settings.rows, (settings.batch,), generator=generator)
        loss = F.mse_loss(model(x[rows]), y[rows]) + settings.strength * model.gate.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        shares = model.eval().gate.shares().tolist()
        error = F.mse_loss(model(x), y).item()
    left = [branch for branch, share in enumerate(shares) if share > 0.0]
    useless = sum(share for branch, share in enumerate(shares) if branch not in chosen)
    return {
        "planted": chosen,
        "left": left,
        "shares": shares,
        "exact": left == chosen,
        "useless": useless,
        "mse": error,
    }


def table(out: Path) -> None:
    """Print what is there so far."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
    print(f"{'':18} {'exact':>8} {'left':>6} {'useless':>8} {'largest':>8} {'mse':>7}")
    for form, settings in FORMS.items():
        runs = [one for one in found if one["form"] == form and one["settings"] == asdict(settings)]
        if not runs:
            continue
        mean = {
            "left": statistics.mean(len(one["left"]) for one in runs),
            "useless": statistics.mean(one["useless"] for one in runs),
            "largest": statistics.mean(max(one["shares"]) for one in runs),
            "mse": statistics.mean(one["mse"] for one in runs),
        }
        exact = f"{sum(one['exact'] for one in runs)} of {len(runs)}"
        print(
            f"{form:18} {exact:>8} {mean['left']:6.1f} {mean['useless']:8.3f} {mean['largest']:8.3f} {mean['mse']:7.4f}"
        )


def runs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield every run by its file's name."""
    for form in options.forms.split(";"):
        for seed in map(int, options.seeds.split(",")):
            name = f"{form.replace(', ', '-').replace(' = ', '').replace(' ', '-')}-{seed}"
            said = {"form": form, "seed": seed, "settings": asdict(FORMS[form])}
            yield name, lambda form=form, seed=seed, said=said: said | run(FORMS[form], seed)


def main() -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/gates/planted"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=math.inf, help="minutes after which no further run begins")
    parser.add_argument("--seeds", default=",".join(map(str, range(10))))
    parser.add_argument("--forms", default=";".join(FORMS), help="separated by ;")
    parser.add_argument("--only", choices=["table"])
    options = parser.parse_args()
    if unknown := set(options.forms.split(";")) - FORMS.keys():
        parser.error(f"no form is named {', '.join(sorted(unknown))}; there are {'; '.join(FORMS)}")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    if options.only != "table":
        run_missing(runs(options), options)
    table(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
