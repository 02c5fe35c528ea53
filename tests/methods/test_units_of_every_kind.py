"""Unit methods see what surgery sees: recurrent layers, modules called twice, raw parameters, units within larger axes."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.errors import SurgeryError
from pared.methods import L0, UNIT_METHODS, Gates, GroupLasso, Prune, Shrink, Slimming, UnitSession
from pared.methods.units import find_units

METHODS = {
    "group lasso": GroupLasso(strength=20.0, every=2),
    "group lasso, columns": GroupLasso(strength=20.0, every=2, groups="columns"),
    "prune": Prune(params=1, at=(0.5,)),
    "prune by change": Prune(params=1, at=(0.5,), score="taylor"),
    "slimming": Slimming(params=1, at=(0.5,)),
    "shrink": Shrink(strength=0.5, init="uniform", every=2),
    "l0": L0(strength=0.5, open=0.3, lr_scale=20.0, every=2),
    "gates": Gates(strength=0.5, lr_scale=20.0, every=2),
}


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], units: int = 6, start: bool = False, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(4, 6, batch_first=True, **options)
        given = (options.get("proj_size") or units) * (2 if options.get("bidirectional") else 1)
        self.start = nn.Parameter(torch.randn(1, 1, 6)) if start else None
        self.hidden, self.head = nn.Linear(given, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = () if self.start is None else (self.start.expand(-1, len(x), -1).contiguous(),)
        return self.head(self.hidden(self.rnn(x, *state)[0][:, -1]).relu())


class Siamese(nn.Module):
    """One encoder called twice, under two names."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5) if norm else nn.Identity(), nn.ReLU())
        self.head, self.second = nn.Linear(5, 2), self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.first(x[:, 0]) - self.second(x[:, 1])).abs())


class Raw(nn.Module):
    """Matrices that no module holds, one of them turned."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(12, 6) / 3), nn.Parameter(torch.zeros(6))
        self.u, self.v = nn.Parameter(torch.randn(5, 6) / 2), nn.Parameter(torch.randn(5, 2) / 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x.flatten(1) @ self.w + self.b)
        return torch.tanh(F.linear(h, self.u)) @ self.v


class Blocks(nn.Module):
    """A linear layer whose neurons become channels, several each: first slow, then fast."""

    def __init__(self, fast: bool = False) -> None:
        super().__init__()
        self.up, self.fast, self.back = nn.Linear(12, 20), fast, nn.ConvTranspose2d(5, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x.flatten(1)).relu()
        h = h.view(len(h), 2, 2, -1).permute(0, 3, 1, 2) if self.fast else h.view(len(h), -1, 2, 2)
        return self.back(h).mean((2, 3))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 2)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.out(y).mean(1))


pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
PAIRS, WORDS = (2, 6), (3, 4)
#: What is built, the shape of a row, the spaces that methods on weights press on, those that switches do.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str], set[str]]] = {
    "lstm": (lambda: Recurrent(nn.LSTM), WORDS, {"rnn", "hidden"}, {"hidden"}),
    "lstm, two layers, both ways": (
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.1),
        WORDS,
        {"rnn", "hidden"},
        {"hidden"},
    ),
    "lstm, projected": (lambda: Recurrent(nn.LSTM, proj_size=3), WORDS, {"rnn", "hidden"}, {"hidden"}),
    "gru": (lambda: Recurrent(nn.GRU, num_layers=2), WORDS, {"rnn", "hidden"}, {"hidden"}),
    "gru, its start learnt": (lambda: Recurrent(nn.GRU, start=True), WORDS, {"rnn", "hidden"}, {"hidden"}),
    "rnn": (lambda: Recurrent(nn.RNN, bidirectional=True), WORDS, {"rnn", "hidden"}, {"hidden"}),
    "siamese": (Siamese, PAIRS, {"first.0"}, set()),
    "siamese with a norm": (lambda: Siamese(norm=True), PAIRS, {"first.0"}, set()),
    "raw": (Raw, PAIRS, {"w[1]", "u[0]"}, set()),
    "blocks": (Blocks, PAIRS, {"up:0"}, set()),
    "blocks, fast": (lambda: Blocks(fast=True), PAIRS, {"up:2"}, set()),
    "heads": (Heads, PAIRS, {"q:heads", "out"}, {"out"}),
}


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return NETWORKS[name][0](), torch.randn(16, *NETWORKS[name][1]), torch.arange(16) % 2


def train(session: UnitSession, x: Tensor, y: Tensor, steps: int) -> None:
    for _ in range(steps):
        (F.cross_entropy(session.model(x), y) + session.penalty()).backward()
        session.step()
        session.optimizer.zero_grad()


@pytest.mark.parametrize("name", NETWORKS)
def test_units_are_found_wherever_their_weights_are(name: str) -> None:
    model, x, _ = made(name)
    assert find_units(model, x).selectors.keys() == NETWORKS[name][2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_presses_on_them_or_says_why_not(name: str, method: str) -> None:
    assert {type(one) for one in METHODS.values()} == set(UNIT_METHODS.values())
    model, x, y = made(name)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    generator = torch.Generator().manual_seed(0)
    spaces = NETWORKS[name][2 if "lasso" in method or "prune" in method else 3]
    if method == "slimming":
        spaces = {"first.0"} if "norm" in name else set()
    times = {"total_steps": 8, "steps_per_epoch": 4}
    if not spaces:
        with pytest.raises(SurgeryError, match="no layer of the network can lose units"):
            METHODS[method].bind(model, optimizer, x, **times, generator=generator)
        return
    session = METHODS[method].bind(model, optimizer, x, **times, generator=generator)
    assert set(session.titles.values()) == spaces
    pressed = {session.graph.at(slot.tensor, slot.axis, slot.leaf).name for slot in session.slots.values()}
    left = [space for space in session.graph.removable() if space.name not in pressed]
    assert all(session.skipped.keys() & {space.name, *space.layers} for space in left)
    train(session, x, y, 6)
    assert {event.layer for event in session.events} == spaces
    model.eval()
    small = session.realize()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(type(module).__module__.startswith("pared") for module in small.modules())
    twin = pickle.loads(pickle.dumps(session))
    for one in (session, twin):
        one.model.train()
        torch.manual_seed(1)
        train(one, x, y, 2)
    assert all(torch.equal(a, b) for a, b in zip(session.model.parameters(), twin.model.parameters(), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_silent_units_leave_and_change_nothing(name: str) -> None:
    model, x, _ = made(name)
    model, x = model.double().eval(), x.double()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    session = Prune(params=1).bind(model, optimizer, x, total_steps=2)
    for units in session.units.values():
        units.alive[[0, 2]] = False
        units.silence()
    before, state = model(x), copy.deepcopy(session.state_dict())
    session.remove()
    assert {event.layer: event.index for event in session.events} == dict.fromkeys(NETWORKS[name][2], (0, 2))
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    session.load_state_dict(session.state_dict())
    assert state["kept"].keys() == session.kept.keys()


def test_residual_sums_are_pressed_on_where_that_is_asked_for() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(12, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x.flatten(1))
            return self.c(x + self.b(x))

    x = torch.randn(4, 12)
    with pytest.raises(SurgeryError, match="tied to those of"):
        find_units(Residual(), x)
    assert find_units(Residual(), x, sums=True).selectors.keys() == {"a"}
