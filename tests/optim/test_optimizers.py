"""The contract of `torch.optim`, over every optimizer of the room and each of its forms."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from pared.errors import ConfigError
from pared.models import mlp
from pared.ops import lp_norm
from pared.optim import LpSGD, SphereSGD, lp_groups
from pared.optim.base import SphereOptimizer

Make = Callable[..., SphereOptimizer]
KINDS: dict[str, Make] = {
    "LpSGD": LpSGD,
    "LpSGD Nesterov": lambda *a, **k: LpSGD(*a, **({"nesterov": True} | k)),
    "LpSGD without momentum": lambda *a, **k: LpSGD(*a, **({"momentum": 0.0} | k)),
    "LpSGD direct": lambda *a, **k: LpSGD(*a, **({"form": "direct"} | k)),
    "SphereSGD": SphereSGD,
}


@pytest.fixture(params=KINDS, name="make")
def _make(request: pytest.FixtureRequest) -> Make:
    return KINDS[request.param]


def net(seed: int = 0) -> nn.Sequential:
    return mlp(6, 3, (8, 7), generator=torch.Generator().manual_seed(seed))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator)


def train(model: nn.Module, optimizer: SphereOptimizer, steps: int, first: int = 0, sign: float = 1.0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        x, y = batch(step)

        def closure(x: Tensor = x, y: Tensor = y) -> float:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (sign * loss).backward()
            return loss.item()

        losses.append(optimizer.step(closure))
    return losses


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def bound(model: nn.Module, make: Make, **options: Any) -> SphereOptimizer:
    return make(lp_groups(model, [1.3, 1.7]), **({"lr": 0.03, "p": 1.5, "euclidean_lr": 0.2} | options))


def on_sphere(optimizer: SphereOptimizer) -> bool:
    return all(
        bool((lp_norm(p.detach().flatten(1), group["p"]) - 1).abs().max() < 1e-5)
        for group in optimizer.param_groups
        if group["p"] is not None
        for p in group["params"]
        if p.ndim > 1
    )


def test_construction_puts_the_weights_on_the_sphere_and_leaves_the_rest(make: Make) -> None:
    model, before = net(), net()
    optimizer = bound(model, make)
    weights, untouched = dict(model.named_parameters()), dict(before.named_parameters())
    names = [n for group in optimizer.param_groups if group["p"] is not None for n in group["param_names"]]
    assert on_sphere(optimizer)
    assert [group["p"] for group in optimizer.param_groups] == [1.3, 1.7, None]
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.03, 0.2]
    for name in weights.keys() - set(names):
        assert torch.equal(weights[name], untouched[name])
    with torch.no_grad():
        weights[names[0]].mul_(3.0)
    optimizer.normalize_()
    assert on_sphere(optimizer)
    torch.testing.assert_close(F.normalize(weights[names[0]]), F.normalize(untouched[names[0]]))


def test_it_learns_through_a_closure_and_returns_its_loss(make: Make) -> None:
    model = net()
    optimizer = bound(model, make)
    x, y = batch(0)
    start = F.cross_entropy(model(x), y).item()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        assert optimizer.step() is None
        losses.append(F.cross_entropy(model(x), y).item())
    assert losses[-1] < 0.8 * start
    assert on_sphere(optimizer)
    assert train(model, optimizer, 1) == pytest.approx([losses[-1]])


def test_maximize_is_descent_on_the_negated_loss(make: Make) -> None:
    a, b = net(), net()
    train(a, bound(a, make, maximize=True), 4, sign=-1.0)
    train(b, bound(b, make), 4)
    assert equal(a, b)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True, "weight_decay": 0.1}])
def test_foreach_equals_the_loop_and_the_rest_equals_torchs_sgd(make: Make, options: dict[str, Any]) -> None:
    a, b = net(), net()
    first, second = bound(a, make, foreach=True, **options), bound(b, make, foreach=False, **options)
    rest = copy.deepcopy([p.detach() for p in first.param_groups[-1]["params"]])
    momentum, nesterov = first.param_groups[0]["momentum"], first.param_groups[0]["nesterov"]
    sgd = torch.optim.SGD([nn.Parameter(p) for p in rest], lr=0.2, momentum=momentum, nesterov=nesterov, **options)
    for step in range(4):
        train(a, first, 1, step)
        train(b, second, 1, step)
        for mine, theirs in zip(first.param_groups[-1]["params"], sgd.param_groups[0]["params"], strict=True):
            theirs.grad = mine.grad
        sgd.step()
    assert equal(a, b)
    for mine, theirs in zip(first.param_groups[-1]["params"], sgd.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_state_goes_round_and_the_next_step_is_equal(make: Make, dtype: torch.dtype) -> None:
    model = nn.Linear(6, 4).to(dtype)
    optimizer = make(model.parameters(), lr=0.03, p=1.4)
    grads = [[torch.randn_like(p) for p in model.parameters()] for _ in range(6)]

    def steps(module: nn.Module, it: SphereOptimizer, which: list[list[Tensor]]) -> None:
        for some in which:
            for p, grad in zip(module.parameters(), some, strict=True):
                p.grad = grad
            it.step()

    steps(model, optimizer, grads[:3])
    if isinstance(optimizer, LpSGD):
        optimizer.connections_changed(model.weight, ~torch.eye(4, 6).bool(), torch.zeros(4, 6, dtype=torch.bool))
        steps(model, optimizer, grads[3:4])
    other = copy.deepcopy(model)
    again = make(other.parameters(), lr=0.9, p=2.0)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        mine, theirs = optimizer.state[p], again.state[q]
        assert mine.keys() == theirs.keys()
        for part, value in mine.items():
            assert not isinstance(value, Tensor) or value.dtype == theirs[part].dtype
    steps(model, optimizer, grads[4:])
    steps(other, again, grads[4:])
    assert equal(model, other)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_equally(make: Make, clone: Callable[[Any], Any]) -> None:
    model = net()
    optimizer = bound(model, make)
    train(model, optimizer, 3)
    other, twin = clone((model, optimizer))
    assert train(model, optimizer, 3, 3) == train(other, twin, 3, 3)
    assert equal(model, other)
    assert repr(optimizer) == repr(twin)


SCHEDULERS: dict[str, Callable[[SphereOptimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_drive_it(make: Make, name: str) -> None:
    model = net()
    options = {"momentum": 0.5} if name == "OneCycleLR" else {}
    optimizer = bound(model, make, **options)
    scheduler, rates = SCHEDULERS[name](optimizer), []
    for step in range(6):
        train(model, optimizer, 1, step)
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(*([float(step)] if name == "ReduceLROnPlateau" else []))
    assert len(set(rates)) > 2
    assert on_sphere(optimizer)


def test_groups_may_be_added_and_vectors_without_p_are_euclidean(make: Make) -> None:
    weight, more, scale = (nn.Parameter(torch.randn(*shape)) for shape in ((3, 4), (2, 4), (5,)))
    optimizer = make([weight], lr=0.1, p=1.5, euclidean_lr=0.3)
    kept = scale.detach().clone()
    optimizer.add_param_group({"params": [more], "p": 3.0})
    optimizer.add_param_group({"params": [scale]})
    assert [group["p"] for group in optimizer.param_groups] == [1.5, 3.0, None]
    assert optimizer.param_groups[2]["lr"] == 0.3
    assert torch.equal(scale.detach(), kept)
    assert on_sphere(optimizer)
    with pytest.raises(ConfigError):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1, 1))], "p": 0.5})
    assert len(optimizer.param_groups) == 3


def test_frozen_weights_and_weights_without_gradient_stay(make: Make) -> None:
    frozen = nn.Parameter(torch.randn(3, 4), requires_grad=False)
    idle, empty = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.empty(0, 4))
    before = frozen.detach().clone()
    optimizer = make([frozen, idle, empty], lr=0.1, p=1.5)
    empty.grad = torch.empty(0, 4)
    normal = idle.detach().clone()
    optimizer.step()
    assert torch.equal(frozen, before)
    assert torch.equal(idle, normal)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -0.1},
        {"lr": 1.0},
        {"lr": float("nan")},
        {"p": 1.0},
        {"p": float("inf")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"momentum": 0.0, "nesterov": True},
        {"weight_decay": -1.0},
        {"form": "other"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    before = weight.detach().clone()
    makes: tuple[Make, ...] = (LpSGD,) if "form" in options else (LpSGD, SphereSGD)
    for make in makes:
        with pytest.raises(ConfigError):
            every: dict[str, Any] = {"lr": 0.1, "p": 1.5} | options
            make([weight], **every)
    assert torch.equal(weight, before)


def test_sparse_gradients_and_complex_weights_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="real"):
        make([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))], lr=0.1, p=1.5)
    table = nn.Embedding(4, 3, sparse=True)
    optimizer = make(table.parameters(), lr=0.1, p=1.5)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_a_rate_may_be_a_tensor(make: Make) -> None:
    a, b = net(), net()
    train(a, bound(a, make, lr=torch.tensor(0.03), euclidean_lr=torch.tensor(0.2)), 4)
    train(b, bound(b, make), 4)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_compiled_steps_are_the_eager_ones(make: Make) -> None:
    torch._dynamo.reset()
    a, b = net(), net()
    one, two = bound(a, make), bound(b, make)
    update = torch.compile(two.step)
    for step in range(4):
        x, y = batch(step)
        for model, optimizer, go in ((a, one, one.step), (b, two, update)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            go()
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
    assert on_sphere(two)


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(20, 6), nn.Linear(6, 2)
    )


def names(groups: list[dict[str, Any]]) -> dict[Any, list[str]]:
    return {group["p"]: [name for name, _ in group["params"]] for group in groups}


def test_groups_name_the_weights_that_are_constrained() -> None:
    model = convolutional()
    everything = [name for name, _ in model.named_parameters()]
    hidden = names(lp_groups(model, 1.5))
    assert hidden[1.5] == ["2.weight", "4.weight"]
    assert sorted(hidden[None] + hidden[1.5]) == sorted(everything)
    assert names(lp_groups(model, 1.5, constrain="all"))[1.5] == ["0.weight", "2.weight", "4.weight", "5.weight"]
    assert names(lp_groups(model, 1.5, constrain=lambda n, p: n.startswith("5") and p.ndim > 1))[1.5] == ["5.weight"]
    listed = names(lp_groups(model, [1.2, 1.3], constrain="all"))
    assert listed[1.2] == ["0.weight"]
    assert listed[1.3] == ["2.weight", "4.weight", "5.weight"]
    named = names(lp_groups(model, {"": 1.1, "2": 1.4, "4.weight": None}, constrain="all"))
    assert named[1.1] == ["0.weight", "5.weight"]
    assert named[1.4] == ["2.weight"]
    assert "4.weight" in named[None]
    groups = lp_groups(model, 1.5, lr=0.1, euclidean_lr=0.2)
    assert [group["lr"] for group in groups] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("p", "constrain", "words"),
    [
        ([1.2] * 5, "all", "5 exponents for 4"),
        ([], "all", "0 exponents"),
        ({"head": 1.2}, "all", "head"),
        (1.5, "none", "constrain must be"),
        (1.5, lambda *_: False, "no weight"),
    ],
)
def test_groups_that_make_no_sense_are_refused(p: Any, constrain: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        lp_groups(convolutional(), p, constrain=constrain)
