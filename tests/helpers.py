"""Small networks and tasks that many tests share."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared.models import mlp
from pared.nn import SparseAdjacency


def task(rows: int = 256, inputs: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes told apart by the product of the first two of `inputs` features."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator)
    return x, ((x[:, 0] * x[:, 1] + 0.5 * x[:, 2]) > 0).long()


def network(inputs: int = 12, hidden: tuple[int, ...] = (16, 14), seed: int = 0) -> nn.Sequential:
    return mlp(inputs, 2, hidden, generator=torch.Generator().manual_seed(seed))


def images(rows: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes of noisy images (n, 2, 6, 6), told apart by where they are bright."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 2, 6, 6, generator=generator), torch.arange(rows) % 2
    x[:, 0, :3] += 0.4 * y.view(-1, 1, 1)
    return x, y


class Branched(nn.Module):
    """Convolutions with and without norms, a residual block, a flatten: `nn.Module`s as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner, self.outer = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 4, 3)
        self.hidden, self.head = nn.Linear(4 * 2 * 2, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        x = nn.functional.max_pool2d(self.last(x).relu(), 2).flatten(1)
        return self.head(self.hidden(x).relu())


def branched(seed: int = 0) -> Branched:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Branched()


class Nodes(nn.Module):
    """Features of a table as those of the nodes of a graph that is learned, which is used twice."""

    def __init__(self, adjacency: SparseAdjacency, features: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(features, 5), nn.Linear(5, 3)
        self.adjacency, self.head = adjacency, nn.Linear(3 * adjacency.nodes, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.adjacency.nodes, -1))
        x = self.adjacency(self.first(x)).relu()
        return self.head(self.adjacency(self.last(x)).flatten(1))


def nodes(adjacency: SparseAdjacency, seed: int = 0) -> Nodes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Nodes(adjacency, 12 // adjacency.nodes)


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "SGD Nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9, nesterov=True),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.02),
    "Adam fused": lambda m: torch.optim.Adam(m.parameters(), lr=0.02, fused=True),
    "AdamW amsgrad": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02, amsgrad=True),
    "RAdam": lambda m: torch.optim.RAdam(m.parameters(), lr=0.02),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), lr=0.02),
    "Adamax": lambda m: torch.optim.Adamax(m.parameters(), lr=0.02),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05),
    "Adadelta": lambda m: torch.optim.Adadelta(m.parameters(), lr=1.0),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters(), lr=0.01),
    "ASGD": lambda m: torch.optim.ASGD(m.parameters(), lr=0.05),
}


def write_uci(folder: Path, *, rows: tuple[int, ...] = (40,), inputs: int = 3, classes: int = 2) -> list[np.ndarray]:
    """Write a set of noise, with a test table if `rows` are two numbers, and return the inputs of its tables."""
    folder.mkdir()
    noise, tables = np.random.default_rng(0), []
    facts = {"n_entradas": inputs, "n_clases": classes, "n_arquivos": len(rows)}
    for part, count in enumerate(rows, 1):
        name = f"{folder.name}_{('train', 'test')[part - 1]}_R.dat" if len(rows) == 2 else f"{folder.name}_R.dat"
        x = noise.normal(size=(count, inputs))
        tables.append(np.round((x - x.mean(0)) / x.std(0, ddof=1), 6))
        write_table(folder / name, tables[-1], np.arange(count) % classes)
        facts |= {f"fich{part}": name, f"n_patrons{part}": count}
    half = rows[0] - rows[0] // 2
    facts |= {"n_patrons_entrena": half, "n_patrons_valida": rows[0] // 2, "n_conxuntos": 1}
    (folder / f"{folder.name}.txt").write_text("".join(f"{key}= {value}\n" for key, value in facts.items()))
    lines = []
    for cut in (half, *[rows[0] - rows[0] // 4] * 4):
        order = noise.permutation(rows[0])
        lines += [" ".join(map(str, part)) + " \n" for part in (order[:cut], order[cut:])]
    (folder / "conxuntos.dat").write_text("".join(lines[:2]))
    (folder / "conxuntos_kfold.dat").write_text("".join(lines[2:]))
    return tables


def write_table(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    lines = ["\t" + "\t".join(f"f{i + 1}" for i in range(x.shape[1])) + "\tclase"]
    rows = zip(x.tolist(), y.tolist(), strict=True)
    lines += ["\t".join(map(str, [i, *row, one])) for i, (row, one) in enumerate(rows, 1)]
    path.write_text("\n".join(lines) + "\n")


def script(path: str) -> ModuleType:
    """Return a script of reproduce/ as a module, by its path there; its folder is where it finds its neighbours."""
    file = Path(__file__).parents[1] / "reproduce" / path
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module
