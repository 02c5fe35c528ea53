"""Proximal steps behind every optimizer, with the whole contract of `torch.optim`."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler

from helpers import OPTIMIZERS, network, task
from pared.errors import ConfigError
from pared.methods import Shrink
from pared.methods.session import sessions_of
from pared.ops import exclusive_soft_threshold, group_soft_threshold, soft_threshold
from pared.optim import LpSGD, Proximal


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    """Nothing here has kernels of its own, so once is enough."""


#: Named penalties, their axes, and what they do to a weight (out, in).
PROXES: dict[str, tuple[Any, int | None, Callable[[Tensor, float], Tensor]]] = {
    "l1": ("l1", None, soft_threshold),
    "group_lasso": ("group_lasso", 0, lambda w, t: group_soft_threshold(w, t, 0)),
    "exclusive_lasso": ("exclusive_lasso", 1, lambda w, t: exclusive_soft_threshold(w, t, 1)),
    "function": (lambda w, t: w - t, None, lambda w, t: w - t),
}


X, Y = task()


def net(seed: int = 0) -> nn.Sequential:
    return network(seed=seed)


def bound(model: nn.Module, base: str = "SGD Nesterov", prox: str = "l1", strength: float = 0.1) -> Proximal:
    kind, dim, _ = PROXES[prox]
    return Proximal(OPTIMIZERS[base](model), kind, strength, dim=dim)


def backward(model: nn.Module, step: int) -> Tensor:
    rows = slice(step % 8 * 32, step % 8 * 32 + 32)
    loss = F.cross_entropy(model(X[rows]), Y[rows])
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture(params=OPTIMIZERS, name="base")
def _base(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("prox", PROXES)
def test_a_step_is_the_optimizers_and_then_the_proximal_one(base: str, prox: str) -> None:
    mine, twin = net(), net()
    optimizer, plain = bound(mine, base, prox), OPTIMIZERS[base](twin)
    threshold = plain.param_groups[0]["lr"] * 0.1
    for step in range(4):
        train(mine, optimizer, 1, step)
        train(twin, plain, 1, step)
        with torch.no_grad():
            for p in twin.parameters():
                if p.ndim > 1 or prox in ("l1", "function"):
                    p.copy_(PROXES[prox][2](p, threshold))
    assert equal(mine, twin)


def test_without_strength_it_is_the_optimizer(base: str) -> None:
    mine, twin = net(), net()
    train(mine, Proximal(OPTIMIZERS[base](mine), lambda w, t: w * t, 0.0), 3)
    train(twin, OPTIMIZERS[base](twin), 3)
    assert equal(mine, twin)


def test_state_goes_round_and_the_next_step_is_equal(base: str) -> None:
    model = net()
    optimizer = bound(model, base)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = net(1)
    other.load_state_dict(weights)
    again = bound(other, base, strength=0.7)
    again.load_state_dict(state)
    assert again.param_groups[0]["strength"] == 0.1
    assert again.param_groups is again.optimizer.param_groups
    train(model, optimizer, 3, 3)
    train(other, again, 3, 3)
    assert equal(model, other)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_equally_and_apart(base: str, clone: Callable[[Any], Any]) -> None:
    model = net()
    optimizer = bound(model, base)
    train(model, optimizer, 2)
    other, twin = clone((model, optimizer))
    assert repr(optimizer) == repr(twin)
    train(model, optimizer, 2, 2)
    train(other, twin, 2, 2)
    assert equal(model, other)
    assert twin.optimizer is not optimizer.optimizer
    assert twin.state is twin.optimizer.state


def test_a_state_from_before_it_was_wrapped_is_taken_and_functions_are_not_saved() -> None:
    model = net()
    plain = SGD(model.parameters(), lr=0.2, momentum=0.9)
    train(model, plain, 2)
    optimizer = Proximal(SGD(model.parameters(), lr=0.1), flat, 0.3)
    optimizer.load_state_dict(plain.state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["strength"]) == (0.2, 0.9, 0.3)
    assert group["prox"] is flat
    saved = optimizer.state_dict()
    assert "prox" not in saved["param_groups"][0]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["prox"] is flat
    with pytest.raises(ValueError, match="number of parameter groups"):
        optimizer.load_state_dict(SGD([{"params": [p]} for p in model.parameters()], lr=0.1).state_dict())


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    a, b = net(), net()
    optimizer, plain, losses = bound(a), bound(b), []

    def closure() -> float:
        optimizer.zero_grad()
        losses.append(backward(a, len(losses)).item())
        return losses[-1]

    for step in range(3):
        assert optimizer.step(closure) == losses[step]
        train(b, plain, 1, step)
    assert len(losses) == 3
    assert equal(a, b)
    assert optimizer.step() is None


def flat(x: Tensor, threshold: Any) -> Tensor:
    return x - threshold


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("base", ["SGD Nesterov", "Adam"])
def test_schedulers_drive_it_and_the_length_of_its_step(name: str, base: str) -> None:
    model, twin = net(), net()
    optimizer, plain = bound(model, base), OPTIMIZERS[base](twin)
    one, two, rates = SCHEDULERS[name](optimizer), SCHEDULERS[name](plain), []
    for step in range(5):
        train(model, optimizer, 1, step)
        train(twin, plain, 1, step)
        rates.append(plain.param_groups[0]["lr"])
        with torch.no_grad():
            for p in twin.parameters():
                p.copy_(soft_threshold(p, rates[-1] * 0.1))
        for scheduler in (one, two):
            scheduler.step(*([float(step)] if name == "ReduceLROnPlateau" else []))
    assert len(set(rates)) > 2
    assert equal(model, twin)


@pytest.mark.parametrize("base", ["SGD", "Adam", "Adam fused"])
def test_a_scaler_leaves_out_both_steps_when_gradients_overflow(base: str) -> None:
    model, twin = net(), net()
    optimizer, plain = bound(model, base), bound(twin, base)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(4):
        optimizer.zero_grad()
        rows = slice(step * 32, step * 32 + 32)
        scaler.scale(F.cross_entropy(model(X[rows]), Y[rows])).backward()
        before = copy.deepcopy(model)
        if step == 2:
            some = next(model.parameters())
            some.grad = torch.full_like(some, float("inf"))
        scaler.step(optimizer)
        scaler.update()
        if step == 2:
            assert equal(model, before)
        else:
            train(twin, plain, 1, step)
    assert equal(model, twin)


def test_hooks_of_both_are_called_and_see_what_they_should() -> None:
    model = net()
    inner = OPTIMIZERS["SGD"](model)
    optimizer, seen = Proximal(inner, "l1", 1.0), []

    def zeros() -> int:
        return sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)

    optimizer.register_step_pre_hook(lambda *_: seen.append(("before", zeros())))
    inner.register_step_post_hook(lambda *_: seen.append(("between", zeros())))
    optimizer.register_step_post_hook(lambda *_: seen.append(("behind", zeros())))
    train(model, optimizer, 1)
    assert [name for name, _ in seen] == ["before", "between", "behind"]
    assert seen[0][1] == seen[1][1] == 0 < seen[2][1]
    for register in (optimizer.register_state_dict_post_hook, optimizer.register_load_state_dict_pre_hook):
        register(lambda _, state: {**state, "told": True})
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saved"))
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    state = optimizer.state_dict()
    assert state["told"]
    optimizer.load_state_dict(state)
    assert seen[-2:] == ["saved", "loaded"]


def test_groups_have_their_own_penalties_and_may_be_added() -> None:
    model = net()
    first, *others = model
    assert isinstance(first, nn.Linear)
    more = nn.Parameter(torch.ones(3))
    weights = {"params": [first.weight], "prox": "group_lasso", "dim": 0, "strength": 8.0}
    rest = {"params": [p for module in others for p in module.parameters() if p.ndim > 1]}
    bare = {"params": [first.bias], "strength": 0.0}
    optimizer = Proximal(SGD([weights, rest, bare], lr=0.1), "l1", 0.05)
    optimizer.add_param_group({"params": [more], "lr": 0.5})
    assert [g["prox"] for g in optimizer.param_groups] == ["group_lasso", "l1", "l1", "l1"]
    assert [g["strength"] for g in optimizer.param_groups] == [8.0, 0.05, 0.0, 0.05]
    weight, bias = first.weight.detach().clone(), first.bias.detach().clone()
    backward(model, 0)
    more.grad = torch.zeros(3)
    optimizer.step()
    assert first.weight.grad is not None
    assert first.bias.grad is not None
    torch.testing.assert_close(more.detach(), torch.full((3,), 1.0 - 0.5 * 0.05))
    assert torch.equal(first.bias.detach(), bias - 0.1 * first.bias.grad)
    assert torch.equal(first.weight.detach(), group_soft_threshold(weight - 0.1 * first.weight.grad, 0.8, 0))
    assert bool(first.weight.detach().eq(0).all(0).any())
    with pytest.raises(ConfigError, match="strength"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "strength": -1.0})
    assert len(optimizer.param_groups) == len(optimizer.optimizer.param_groups) == 4


def test_groups_of_weights_leave_vectors_and_what_has_no_gradient_does_not_move() -> None:
    model = nn.Linear(6, 4)
    still, frozen = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2), requires_grad=False)
    optimizer = Proximal(SGD([*model.parameters(), still, frozen], lr=0.0), "group_lasso", 1.0, dim=0)
    optimizer.param_groups[0]["lr"] = torch.tensor(100.0)  # a rate may be a tensor
    model(torch.zeros(1, 6)).sum().backward()
    bias = model.bias.detach().clone()
    optimizer.step()
    assert torch.equal(model.weight.detach(), torch.zeros(4, 6))
    torch.testing.assert_close(model.bias.detach(), bias - 100.0)
    assert bool((still == 1).all())
    assert bool((frozen == 1).all())
    optimizer.zero_grad()
    assert model.weight.grad is None
    model(torch.zeros(1, 6)).sum().backward()
    optimizer.zero_grad(set_to_none=False)
    assert model.weight.grad is not None
    assert not model.weight.grad.any()


def test_sessions_follow_it_and_so_does_surgery() -> None:
    model = net()
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    # The first group is the one whose options switches take.
    optimizer = Proximal(Adam([{"params": rest, "strength": 0.0}, {"params": weights}], lr=0.02), "l1", 0.2)
    generator = torch.Generator().manual_seed(1)
    session = Shrink(strength=0.03, init="uniform", every=4).bind(model, optimizer, X, generator=generator)
    before = session.params
    for step in range(80):
        backward(model, step)
        session.penalty().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert session.params < before
    assert session.steps == 80
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    assert any(bool((p == 0).any()) for p in model.parameters() if p.ndim > 1)
    assert sessions_of(optimizer) == [session]


def test_exact_zeros_appear_while_a_network_trains(base: str) -> None:
    model = net()
    optimizer = bound(model, base, strength=0.5)
    train(model, optimizer, 40)
    assert all(bool((p == 0).any()) for p in model.parameters() if p.ndim > 1)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prox": "l2"}, "prox must be one of"),
        ({"strength": -0.1}, "strength"),
        ({"strength": float("inf")}, "strength"),
        ({"prox": "group_lasso"}, "needs dim"),
        ({"prox": "exclusive_lasso", "dim": ()}, "needs dim"),
        ({"prox": "exclusive_lasso", "dim": 2}, r"shape \(3, 4\) has no axes \(2,\)"),
        ({"prox": "group_lasso", "dim": (0, -3)}, "no axes"),
    ],
)
def test_options_out_of_range_are_refused_and_nothing_changes(options: dict[str, Any], words: str) -> None:
    inner = SGD([nn.Parameter(torch.ones(3, 4))], lr=0.1)
    keys, defaults = set(inner.param_groups[0]), dict(inner.defaults)
    with pytest.raises(ConfigError, match=words):
        Proximal(inner, **({"prox": "l1", "strength": 0.1} | options))
    assert set(inner.param_groups[0]) == keys
    assert inner.defaults == defaults


def test_optimizers_that_cannot_be_followed_are_refused() -> None:
    model = nn.Linear(3, 2)
    for other in (
        torch.optim.LBFGS(model.parameters()),
        LpSGD(model.parameters(), lr=0.1, p=1.5),
        Proximal(SGD(model.parameters(), lr=0.1), "l1", 0.1),
    ):
        with pytest.raises(ConfigError, match="cannot be followed"):
            Proximal(other, "l1", 0.1)
    with pytest.raises(ConfigError, match="real"):
        Proximal(SGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1), "l1", 0.1)
    nameless = SGD(model.parameters(), lr=0.1)
    del nameless.param_groups[0]["lr"]
    with pytest.raises(ConfigError, match="has none"):
        Proximal(nameless, "l1", 0.1)


def test_what_the_wrapped_optimizer_can_do_can_be_reached() -> None:
    class Own(SGD):
        def resize(self) -> str:
            return "resized"

    weight = nn.Parameter(torch.ones(2))
    optimizer = Proximal(Own([weight], lr=0.1), "l1", 0.1)
    assert optimizer.resize() == "resized"
    assert getattr(Proximal(SGD([weight], lr=0.1), "l1", 0.1), "resize", None) is None
    optimizer.param_groups = [{**optimizer.param_groups[0], "lr": 0.2}]
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.2
    with pytest.raises(AttributeError):
        optimizer.nothing  # noqa: B018


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_steps_are_the_eager_ones() -> None:
    torch._dynamo.reset()
    a, b = net(), net()
    one, two = bound(a, "SGD Nesterov"), bound(b, "SGD Nesterov")
    update = torch.compile(two.step)
    for step in range(3):
        for model, optimizer, go in ((a, one, one.step), (b, two, update)):
            optimizer.zero_grad()
            backward(model, step)
            go()
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)
    assert any(bool((p == 0).any()) for p in b.parameters())
