"""Dead weights have no gradient from the backward pass on, whatever a loop does with gradients."""

import copy
import gc
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_storages import SAME, TOTAL, double, pair
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from helpers import OPTIMIZERS, task
from pared.methods import SET, SNFS, RigL, Static, WeightMethod, WeightSession
from pared.topology import Constant

CHANGING = RigL(0.8, every=1, begin=0.0, end=1.0, fraction=Constant(0.5))


def bound(method: WeightMethod, **options: Any) -> WeightSession:
    model = double()
    generator = torch.Generator().manual_seed(0)
    return method.bind(
        model, torch.optim.SGD(model.parameters(), 0.1, **options), total_steps=TOTAL, generator=generator
    )


def loss_of(session: WeightSession, part: int = 0) -> Tensor:
    x, y = task()
    rows = slice(32 * part, 32 * part + 32)
    return F.cross_entropy(session.model(x[rows].double()), y[rows])


def dead(session: WeightSession, part: str = "grad") -> Tensor:
    """Return what is at dead entries: of gradients, or of the optimizer's state."""
    found = []
    for name in session.connections:
        one = session.masked(name)
        tensor = one.weight.grad if part == "grad" else session.optimizer.state[one.weight][part]
        assert tensor is not None
        found.append(tensor[~one.mask])
    return torch.cat(found).detach()


def whole(session: WeightSession, loss: Tensor) -> list[Tensor]:
    weights = [one.weight for one in session.connections.values()]
    return list(torch.autograd.grad(loss, weights, retain_graph=True))


@pytest.mark.parametrize("method", SAME.values(), ids=SAME)
def test_masked_and_sparse_networks_train_alike_under_clipping(method: WeightMethod) -> None:
    sessions, (x, y) = pair(method, OPTIMIZERS["Adam"]), task()
    for step in range(20):
        rows = torch.arange(step * 32, step * 32 + 32) % len(x)
        norms = []
        for session in sessions:
            for half in rows.chunk(2):  # an accumulation
                (F.cross_entropy(session.model(x[half].double()), y[half]) / 2).backward()
            norms.append(float(clip_grad_norm_(session.model.parameters(), 0.05)))
            session.step()
            session.optimizer.zero_grad()
        assert norms[0] == pytest.approx(norms[1], rel=1e-9)
        assert norms[0] > 0.05
        for one, other in zip(*(session.connections.values() for session in sessions), strict=True):
            assert torch.equal(one.live(), other.live())
            torch.testing.assert_close(one.values(), other.values(), rtol=0, atol=1e-9)


def two_passes(session: WeightSession) -> None:
    loss_of(session).backward()
    loss_of(session, 1).backward()


def one_graph_twice(session: WeightSession) -> None:
    loss = loss_of(session)
    loss.backward(retain_graph=True)
    loss.backward()


def thrown_away(session: WeightSession) -> None:
    loss_of(session, 1).backward()
    session.optimizer.zero_grad()
    loss_of(session).backward()


def zeroed_in_place(session: WeightSession) -> None:
    loss_of(session, 1).backward()
    session.optimizer.zero_grad(set_to_none=False)
    loss_of(session).backward()


def scaled(session: WeightSession) -> None:
    (1024 * loss_of(session)).backward()
    for parameter in session.model.parameters():
        assert parameter.grad is not None
        parameter.grad /= 1024


def by_hand(session: WeightSession) -> None:
    held = list(session.model.parameters())
    for parameter, grad in zip(held, torch.autograd.grad(loss_of(session), held), strict=True):
        parameter.grad = grad


def for_derivatives(session: WeightSession) -> None:
    with warnings.catch_warnings():  # torch's own, which comes once a process
        warnings.simplefilter("ignore", UserWarning)
        loss_of(session).backward(create_graph=True)


#: Ways to gradients, and what they are those of.
WAYS: dict[str, tuple[Callable[[WeightSession], None], Callable[[WeightSession], Tensor]]] = {
    "two passes": (two_passes, lambda s: loss_of(s) + loss_of(s, 1)),
    "one graph twice": (one_graph_twice, lambda s: 2 * loss_of(s)),
    "thrown away": (thrown_away, loss_of),
    "zeroed in place": (zeroed_in_place, loss_of),
    "scaled": (scaled, loss_of),
    "by hand": (by_hand, loss_of),
    "for derivatives": (for_derivatives, loss_of),
}


@pytest.mark.parametrize(("way", "of"), WAYS.values(), ids=WAYS)
def test_what_looks_at_the_dead_sees_the_gradient_of_all(way: Callable[..., None], of: Callable[..., Tensor]) -> None:
    session = bound(SNFS(0.8, every=TOTAL, momentum=0.0), momentum=0.9)
    expected = whole(session, of(session))
    way(session)
    if way is not by_hand:
        assert not dead(session).any()
        for connections, gradient in zip(session.connections.values(), expected, strict=True):
            grad = connections.weight.grad
            assert grad is not None
            torch.testing.assert_close(grad.detach(), gradient * session.masked(_name(session, connections)).mask)
    session.step()
    for name, gradient in zip(session.connections, expected, strict=True):
        torch.testing.assert_close(session.memory[name], gradient, rtol=1e-10, atol=1e-12)
    assert not dead(session, "momentum_buffer").any()


def _name(session: WeightSession, connections: Any) -> str:
    return next(name for name, one in session.connections.items() if one is connections)


def test_the_scale_of_the_loss_does_not_reach_what_is_averaged() -> None:
    told = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1)):
        session = bound(SNFS(0.8, every=TOTAL))
        for part in range(3):
            loss = loss_of(session, part)
            (loss if scaler is None else scaler.scale(loss)).backward()  # pyright: ignore[reportAttributeAccessIssue]
            session.step(scaler)
            if scaler is not None:
                scaler.update()
            session.optimizer.zero_grad()
        told.append(dict(session.memory))
    for name, average in told[0].items():
        torch.testing.assert_close(average, told[1][name], rtol=1e-9, atol=1e-12)


def test_a_gradient_that_is_derived_again_has_no_dead_part() -> None:
    session = bound(Static(0.8))
    with warnings.catch_warnings():  # torch's own, which comes once a process
        warnings.simplefilter("ignore", UserWarning)
        loss_of(session).backward(create_graph=True)
    weight = session.connections["2.weight"].weight
    assert weight.grad is not None
    (of_grad,) = torch.autograd.grad((weight.grad + 1.0).square().sum(), session.connections["0.weight"].weight)
    mask = session.masked("2.weight").mask
    (plain,) = torch.autograd.grad(loss_of(session), weight, create_graph=True)
    (expected,) = torch.autograd.grad(((plain * mask) + 1.0).square().sum(), session.connections["0.weight"].weight)
    torch.testing.assert_close(of_grad, expected)


def test_a_dead_gradient_that_overflows_stops_nobody() -> None:
    session = bound(Static(0.8))
    for one in map(session.masked, session.connections):
        one.weight.register_hook(lambda g, dead=~one.mask: g.masked_fill(dead, torch.nan))
    loss_of(session).backward()
    assert not dead(session).any()
    assert float(clip_grad_norm_(session.model.parameters(), 1.0, error_if_nonfinite=True)) > 0.0


def test_copies_hold_and_what_is_detached_or_gone_does_not() -> None:
    session = bound(Static(0.8))
    for twin in (copy.deepcopy(session), pickle.loads(pickle.dumps(session))):
        loss_of(twin).backward()
        assert not dead(twin).any()
    alone = copy.deepcopy(session.model)
    F.cross_entropy(alone(task()[0].double()), task()[1]).backward()
    assert bool(alone[2].weight.grad[~session.masked("2.weight").mask].any())  # type: ignore[index]
    session.detach()
    loss_of(session).backward()
    assert bool(dead(session).any())
    session = bound(Static(0.8))
    model, mask = session.model, session.masked("2.weight").mask
    del session
    gc.collect()
    model.zero_grad()
    F.cross_entropy(model(task()[0].double()), task()[1]).backward()
    assert bool(model[2].weight.grad[~mask].any())  # type: ignore[index]


def test_a_state_that_is_loaded_is_held() -> None:
    session, other = bound(SET(0.8, every=1)), bound(SET(0.8, every=1))
    for part in range(3):
        loss_of(session, part).backward()
        session.step()
        session.optimizer.zero_grad()
    other.load_state_dict(copy.deepcopy(session.state_dict()))
    loss_of(other).backward()
    assert not dead(other).any()
    assert torch.equal(other.masked("2.weight").mask, session.masked("2.weight").mask)


def test_weights_of_two_layers_and_frozen_ones_that_thaw() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model[2].weight = model[0].weight  # type: ignore[assignment]
    session = Static(0.5).bind(model, torch.optim.SGD(model.parameters(), 0.1))
    x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model(x).square().sum().backward()
    assert not dead(session).any()
    model[0].weight.requires_grad_(False)
    twin = copy.deepcopy(session)
    twin.model.requires_grad_(True)
    for one in (session, twin):
        one.model.zero_grad()
        one.model(x).square().sum().backward()
        one.step()
        one.model.requires_grad_(True).zero_grad()
        one.model(x).square().sum().backward()
        assert not dead(one).any()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_holds_too(backend: str) -> None:
    session = bound(CHANGING)
    compiled, (x, y) = torch.compile(session.model, backend=backend), task()
    for _ in range(3):
        F.cross_entropy(compiled(x[:32].double()), y[:32]).backward()
        assert not dead(session).any()
        session.step()
        session.optimizer.zero_grad()
    assert len(session.events) > 3


def test_a_network_that_is_bound_is_exported_and_derived_functionally() -> None:
    session = bound(CHANGING)
    x = task()[0][:4].double()
    exported = torch.export.export(session.model, (x,)).module()
    torch.testing.assert_close(exported(x), session.model(x))
    held = {name: p.detach() for name, p in session.model.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(session.model, p, (x,)).sum())(held)
    assert found.keys() == held.keys()
    loss_of(session).backward()
    assert not dead(session).any()
