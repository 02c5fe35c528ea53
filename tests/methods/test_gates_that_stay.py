"""Branches whose share is gone and that cannot leave as a whole: cut down, or named; positive shares are folded."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pared.methods import Gates, UnitSession


class Joined(nn.Module):
    """Branches side by side, of convolutions with and without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 1)
        self.b = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.c = nn.Conv2d(2, 3, 1)
        self.norm, self.head = nn.BatchNorm2d(10), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x), self.c(x)], 1)
        return self.head(self.norm(y).relu()).mean((2, 3))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.norm, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.a(x)) + self.norm(self.c(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).relu()


class Streams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.head = Residual(), Residual(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.a(x)))


IMAGES, ROWS = (4, 2, 3, 3), (4, 6)


def bound(model: nn.Module, shape: tuple[int, ...], names: list[str], **options: Any) -> tuple[UnitSession, Tensor]:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    return Gates(0.1, {"g": names}, every=1, scaled=True, **options).bind(model, optimizer, x), x


def step(session: UnitSession, x: Tensor, steps: int = 2) -> None:
    for _ in range(steps):
        session.model.train()(x).square().sum().backward()
        session.step()
        session.optimizer.zero_grad()


@pytest.mark.parametrize("place", [0, 1])
def test_a_branch_of_a_concatenation_keeps_one_channel(place: int) -> None:
    torch.manual_seed(0)
    model = Joined().double()
    session, x = bound(model, IMAGES, ["a", "b", "c"])
    assert not session.skipped
    average = copy.deepcopy(model)
    session.follow(average)
    with torch.no_grad():
        session.gates["g"].theta[place] = -30.0
    step(session, x)
    assert [(e.layer, e.removed, e.index) for e in session.events] == [("g", 1, (place,))]
    left = [1 if index == place else size for index, size in enumerate((3, 4, 3))]
    assert model.head.in_channels == average.head.in_channels == model.norm.num_features == sum(left)
    held = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    state = session.state_dict()
    small = session.realize().eval()
    torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-10, atol=1e-10)
    assert not any(type(module).__module__.startswith("pared") for module in small.modules())
    torch.manual_seed(1)
    other, _ = bound(Joined().double(), IMAGES, ["a", "b", "c"])
    other.load_state_dict(state)
    for one in (session, other):
        step(one, x)
    assert all(torch.equal(p, q) for p, q in zip(session.net.parameters(), other.net.parameters(), strict=True))


def test_cutting_a_dead_branch_changes_no_output() -> None:
    torch.manual_seed(0)
    session, x = bound(Joined().double(), IMAGES, ["a", "b", "c"])
    with torch.no_grad():
        session.gates["g"].theta[1] = -30.0
    before = session.model.eval()(x)
    session.judge.settle(session)
    session.remove()
    assert session.events
    torch.testing.assert_close(session.model(x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "told"), [(Normed, "layer_norm"), (Streams, "stays at a share of 0")])
def test_what_has_to_stay_is_told_at_once_and_when_it_dies(kind: type[nn.Module], told: str) -> None:
    torch.manual_seed(0)
    model = kind().double()
    session, x = bound(model, ROWS, ["a", "c"])
    assert session.skipped.keys() == {"a", "c"}
    assert told in session.skipped["a"]
    with torch.no_grad():
        session.gates["g"].theta[0] = -30.0
    weights = {name: p.clone() for name, p in model.named_parameters() if name.startswith("a.layer.")}
    step(session, x, 3)
    assert [(e.layer, e.removed, e.left, e.index) for e in session.events] == [("g", 0, 1, (0,))]
    assert "a" in session.skipped
    assert all(torch.equal(model.get_parameter(name), old) for name, old in weights.items())
    torch.testing.assert_close(session.realize().eval()(x), model.eval()(x), rtol=1e-10, atol=1e-10)


class Rectified(nn.Module):
    """Branches that end in a rectifier after a norm, pooled."""

    def __init__(self, inplace: bool, pool: nn.Module) -> None:
        super().__init__()
        self.a, self.c = (
            nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace), copy.deepcopy(pool))
            for _ in range(2)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.a(x) + self.c(x)).tanh().mean((2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("pool", [nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Dropout(0.1)], ids=repr)
def test_positive_shares_fold_into_the_norm_before_a_rectifier(inplace: bool, pool: nn.Module) -> None:
    torch.manual_seed(0)
    model = Rectified(inplace, pool).double()
    fresh = copy.deepcopy(model)
    session, x = bound(model, IMAGES, ["a", "c"])
    with torch.no_grad():
        session.gates["g"].theta[0] = 0.7
    small = session.realize().eval()
    torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-10, atol=1e-10)
    fresh.load_state_dict(small.state_dict())
    torch.testing.assert_close(fresh.eval()(x), model(x), rtol=1e-10, atol=1e-10)
    assert not any(type(module).__module__.startswith("pared") for module in small.modules())
