"""Rates by class: SGD where there are none, the paper's equations for one sample, and what classes add up to."""

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import pared
from pared.errors import ConfigError, RunError
from pared.ops.processes import Processes
from pared.optim import ClassRateSGD

K = 4


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    """Run once: no kernel of ours is in it."""


def network(kind: str = "linear", dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "linear":
            return nn.Sequential(nn.Linear(5, 7), nn.SELU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, K)).to(dtype)
        convs = nn.Conv2d(1, 3, 2, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, dilation=2, bias=False)
        return nn.Sequential(nn.Unflatten(1, (1, 9, 10)), *convs, nn.Flatten(), nn.Linear(4 * 1 * 2, K)).to(dtype)


def data(kind: str, samples: int, seed: int = 1, classes: int = K) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 5 if kind == "linear" else 90, dtype=torch.float64, generator=generator)
    return x, torch.randint(classes, (samples,), generator=generator)


def go(model: nn.Module, optimizer: ClassRateSGD, x: Tensor, y: Tensor, groups: Tensor | None = None) -> None:
    optimizer.zero_grad()
    with optimizer.classes(y if groups is None else groups):
        F.cross_entropy(model(x), y).backward()
    optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.ndim > 1]


def by_autograd(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return G_j of every parameter, (K, *shape), one backward pass a class."""
    found = {name: torch.zeros(K, *p.shape, dtype=p.dtype) for name, p in model.named_parameters()}
    for number in range(K):
        loss = F.cross_entropy(model(x), y, reduction="none")[y == number].sum() / len(y)
        for name, grad in zip(found, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            found[name][number] = grad
    return found


@given(st.sampled_from(["linear", "conv"]), st.integers(1, 20), st.integers(0, 99))
def test_steps_are_those_of_the_equations_with_a_backward_pass_for_each_class(
    kind: str, samples: int, seed: int
) -> None:
    model = network(kind)
    optimizer = ClassRateSGD(model, 0.1, 50.0, classes=K)
    twin, mu = copy.deepcopy(model), {}
    managed = [n for n, p in model.named_parameters() if p.ndim > 1][:-1]
    for step in range(3):
        x, y = data(kind, samples, seed + step)
        shares = by_autograd(twin, x, y)
        for name, p in twin.named_parameters():
            if name in managed:
                rate = mu.setdefault(name, torch.ones_like(shares[name]))
                p.data -= 0.1 * (rate * shares[name]).sum(0)
                rate += 50.0 * 0.1 * shares[name].square()
            else:
                p.data -= 0.1 * shares[name].sum(0)
        go(model, optimizer, x, y)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        if name in managed:
            torch.testing.assert_close(optimizer.rates(p), mu[name])
            assert bool((mu[name] >= 1).all())


def test_a_single_sample_goes_by_equations_1_and_6() -> None:
    model = network()
    before, (x, y) = copy.deepcopy(model), data("linear", 1)
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K)
    optimizer.rates(weights(model)[0]).fill_(1.5)
    go(model, optimizer, x, y)
    torch.testing.assert_close(weights(model)[0], weights(before)[0] - 0.1 * 1.5 * grads[0])
    expected = torch.full((K, 7, 5), 1.5, dtype=torch.float64)
    expected[y] += 1e3 * 0.1 * grads[0].square()
    torch.testing.assert_close(optimizer.rates(weights(model)[0]), expected)


@pytest.mark.parametrize("options", [{"rate_lr": 0.0}, {"cutoff": 0}, {"layers": 0}])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_rates_it_is_sgd_to_the_bit(options: dict[str, Any], momentum: float) -> None:
    model = network(dtype=torch.float32)
    twin = copy.deepcopy(model)
    optimizer = ClassRateSGD(model, 0.1, classes=K, momentum=momentum, **{"rate_lr": 1e3, **options})
    plain = torch.optim.SGD(twin.parameters(), 0.1, momentum=momentum)
    for step in range(4):
        x, y = data("linear", 9, step)
        go(model, optimizer, x.float(), y)
        plain.zero_grad()
        F.cross_entropy(twin(x.float()), y).backward()
        plain.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_rates_of_classes_that_are_not_there_stay_and_others_grow() -> None:
    model = network()
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K)
    x, y = data("linear", 12)
    go(model, optimizer, x, torch.where(y == 2, 1, y))
    rates = optimizer.rates(weights(model)[0])
    assert bool((rates[2] == 1).all())
    assert bool((rates[[0, 1, 3]] > 1).any(-1).any(-1).all())


def test_relabelled_classes_permute_rates_only() -> None:
    models = [network(), network()]
    place = torch.tensor([2, 0, 3, 1])
    optimizers = [ClassRateSGD(m, 0.1, 1e3, classes=K) for m in models]
    for step in range(3):
        x, y = data("linear", 12, step)
        for model, optimizer, ids in zip(models, optimizers, (y, place[y]), strict=True):
            optimizer.zero_grad()
            with optimizer.classes(ids):
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q)
    one, other = (o.rates(weights(m)[1]) for o, m in zip(optimizers, models, strict=True))
    torch.testing.assert_close(other[place], one)


def test_rates_become_1_when_they_should_and_no_more_after_the_cutoff() -> None:
    model = network()
    optimizer = ClassRateSGD(model, 0.01, 1e3, classes=K, reset_every=(2, 3), cutoff=9)
    grown = []
    for step in range(11):
        go(model, optimizer, *data("linear", 12, step))
        grown.append(bool((optimizer.rates(weights(model)[0]) > 1).any()))
    assert grown == [True, False, True, True, False, True, False, True, False, False, False]
    assert not optimizer.learning


@pytest.mark.parametrize("per", ["neuron", "layer"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_coarser_rates_grow_by_the_mean_of_squares(per: Any, kind: str) -> None:
    model = network(kind)
    weight = next(p for p in model.parameters() if p.ndim > 1)
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K, per=per, trade_off=(1.0, 0.0, 2.0, 1.0))
    x, y = data(kind, 15)
    share = next(g for n, g in by_autograd(model, x, y).items() if n.endswith("weight"))
    before = weight.detach().clone()
    go(model, optimizer, x, y)
    torch.testing.assert_close(weight, before - 0.1 * share.sum(0))
    axes = tuple(range(2 if per == "neuron" else 1, share.ndim))
    factor = torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.float64).view(-1, *[1] * (share.ndim - 1))
    torch.testing.assert_close(
        optimizer.rates(weight), 1 + 1e3 * 0.1 * factor * share.square().mean(axes, keepdim=True)
    )


@pytest.mark.parametrize("per", ["neuron", "layer"])
def test_samples_may_have_rates_of_their_own(per: Any) -> None:
    """Without a gradient for each, as with one."""
    models = [network(), network()]
    factors = [1.0, 2.0] * 10
    optimizers = [ClassRateSGD(m, 0.1, 1e5, classes=20, per=per, trade_off=factors) for m in models]
    for step in range(3):
        x, _ = data("linear", 12, step)
        numbers = torch.randperm(20, generator=torch.Generator().manual_seed(step))[:12]
        go(models[0], optimizers[0], x, numbers % K, numbers)
        model, optimizer = models[1], optimizers[1]
        optimizer.zero_grad()
        for rows in (slice(0, 6), slice(6, 12)):  # in two passes, so that shares are added up one by one
            with optimizer.classes(numbers[rows]):
                (F.cross_entropy(model(x[rows]), numbers[rows] % K, reduction="sum") / 12).backward()
        optimizer.step()
    for p, q in zip(weights(models[0])[:2], weights(models[1])[:2], strict=True):
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(optimizers[0].rates(p), optimizers[1].rates(q))
        assert bool((optimizers[0].rates(p) > 1).any())


@pytest.mark.parametrize("rate_lr", [0.0, 50.0])
def test_decays_go_by_the_gradient_of_the_loss_behind_the_step(rate_lr: float) -> None:
    model = network()
    optimizer = ClassRateSGD(model, 0.1, rate_lr, classes=K, decay_lr=30.0)
    twin = copy.deepcopy(model)
    weight, decay, mu = weights(twin)[0], torch.zeros(7, 5, dtype=torch.float64), torch.ones(K, 7, 5).double()
    for step in range(4):
        x, y = data("linear", 12, step)
        for name, p in list(twin.named_parameters())[1:]:  # others have rates and decays as well: they are taken over
            p.data.copy_(dict(model.named_parameters())[name])
        shares = by_autograd(twin, x, y)
        whole = shares["0.weight"].sum(0)
        grown = (decay + 30.0 * 0.1 * whole * weight.detach()).clamp(min=0)  # d loss / d decay = -lr w G
        weight.data -= 0.1 * ((mu * shares["0.weight"]).sum(0) + decay * weight)
        mu += rate_lr * 0.1 * shares["0.weight"].square()
        decay = grown
        go(model, optimizer, x, y)
        torch.testing.assert_close(weights(model)[0], weight)
        torch.testing.assert_close(optimizer.state[weights(model)[0]]["decay"], decay)
    assert bool((decay > 0).any())
    assert bool((decay == 0).any())
    optimizer.reset_rates()
    assert not bool(optimizer.state[weights(model)[0]]["decay"].any())


def test_passes_add_up_and_those_outside_count_as_they_are() -> None:
    model, (x, y) = network(), data("linear", 12)
    twin = copy.deepcopy(model)
    optimizer, other = (ClassRateSGD(m, 0.1, 1e3, classes=K) for m in (model, twin))
    for rows in (slice(0, 5), slice(5, 12)):
        with optimizer.classes(y[rows]):
            (F.cross_entropy(model(x[rows]), y[rows], reduction="sum") / 12).backward()
    (weights(model)[0].square().sum() * 0.1).backward()
    optimizer.step()
    with other.classes(y):
        F.cross_entropy(twin(x), y).backward()
    (weights(twin)[0].square().sum() * 0.1).backward()
    other.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    torch.testing.assert_close(optimizer.rates(weights(model)[0]), other.rates(weights(twin)[0]))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_batches_are_forgotten_with_their_gradients(kind: str) -> None:
    model = network(kind)
    optimizer, kept = ClassRateSGD(model, 0.1, 1e3, classes=K), []
    for step in range(2):
        x, y = data(kind, 6, step)
        go(model, optimizer, x, y)
        kept += [weakref.ref(batch) for batch in optimizer._batches]
    optimizer.zero_grad()
    assert [one() for one in kept] == [None, None]


def test_sequences_belong_to_their_samples() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, K)).double()
    x, y = torch.randn(6, 3, 5, dtype=torch.float64), torch.arange(6) % K

    def loss() -> Tensor:
        return F.cross_entropy(model(x).mean(1), y, reduction="none")

    share = [torch.autograd.grad(loss()[y == k].sum() / 6, weights(model)[:1])[0] for k in range(K)]
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K)
    with optimizer.classes(y):
        loss().mean().backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.rates(weights(model)[0]), 1 + 1e3 * 0.1 * torch.stack(share).square())


def test_it_goes_on_from_a_saved_state_to_the_bit() -> None:
    model = network()
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K, momentum=0.9, reset_every=5)
    for step in range(3):
        go(model, optimizer, *data("linear", 12, step))
    twin = copy.deepcopy(model)
    other = ClassRateSGD(twin, 0.1, 1e3, classes=K, momentum=0.9, reset_every=5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 7):
        go(model, optimizer, *data("linear", 12, step))
        go(twin, other, *data("linear", 12, step))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert torch.equal(optimizer.rates(weights(model)[0]), other.rates(weights(twin)[0]))


@pytest.mark.parametrize("per", ["weight", "neuron", "layer"])
def test_rates_follow_neurons_that_leave(per: Any) -> None:
    model = network()
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K, per=per, momentum=0.9)
    for step in range(3):
        go(model, optimizer, *data("linear", 12, step))
    before = [optimizer.rates(w).clone() for w in weights(model)[:2]]
    graph = pared.graph(model, data("linear", 2)[0])
    pared.remove(model, {"0": [1, 4]}, graph=graph, optimizer=optimizer, living="cut")
    kept = [0, 2, 3, 5, 6]
    first, second = before
    expected = first if per == "layer" else first[:, kept], second[:, :, kept] if per == "weight" else second
    for weight, rates in zip(weights(model)[:2], expected, strict=True):
        assert torch.equal(optimizer.rates(weight), rates)
        assert optimizer.state[weight]["momentum_buffer"].shape == weight.shape
    go(model, optimizer, *data("linear", 12, 3))
    assert bool((optimizer.rates(weights(model)[0]) > expected[0]).any())


def test_switches_die_beside_it() -> None:
    model, sizes = network(), []
    optimizer = ClassRateSGD(model, 0.05, 1e2, classes=K)
    session = pared.Shrink(strength=0.5, every=5).bind(model, optimizer, data("linear", 2)[0])
    for step in range(60):
        x, y = data("linear", 32, step)
        optimizer.zero_grad()
        with optimizer.classes(y):
            (F.cross_entropy(model(x), y) + session.penalty()).backward()
        session.step()
        sizes.append(session.params)
    assert sizes[-1] < sizes[0]
    kept = [w for w in weights(model) if optimizer.state.get(w, {}).get("managed")]
    assert kept
    assert all(optimizer.rates(w).shape == (K, *w.shape) for w in kept)


def test_what_is_managed_are_the_first_layers_without_the_last() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)])
    for layers, count in ((16, 4), (4, 4), (2, 2)):
        optimizer = ClassRateSGD(model, classes=2, layers=layers)
        assert [bool(optimizer.state.get(w, {}).get("managed")) for w in weights(model)] == [
            n < count for n in range(5)
        ]
    with pytest.raises(ConfigError, match="not managed"):
        optimizer.rates(weights(model)[2])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_at_once(copied: Any) -> None:
    model = network()
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K)
    go(model, optimizer, *data("linear", 12))
    twin, other = copied((model, optimizer))
    x, y = data("linear", 12, 2)
    go(model, optimizer, x, y)
    with other.classes(y):
        F.cross_entropy(twin(x), y).backward()
    other.step()
    for p, q in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(p, q)


def test_a_layer_that_is_frozen_later_stays() -> None:
    model = network()
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K)
    frozen = weights(model)[1].requires_grad_(False)
    before = frozen.clone()
    go(model, optimizer, *data("linear", 12))
    assert torch.equal(frozen, before)


def test_weights_that_are_saved_elsewhere_are_still_themselves() -> None:
    model = network()
    twin = copy.deepcopy(model)
    optimizer, other = (ClassRateSGD(m, 0.1, 1e3, classes=K) for m in (model, twin))
    for step in range(2):
        with torch.autograd.graph.save_on_cpu():
            go(model, optimizer, *data("linear", 12, step))
        go(twin, other, *data("linear", 12, step))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "per"), [("linear", "weight"), ("linear", "layer"), ("conv", "weight")])
def test_mixed_precision_is_close(kind: str, per: Any) -> None:
    model = network(kind, torch.float32)
    twin = copy.deepcopy(model)
    optimizer, other = (ClassRateSGD(m, 0.1, 1e2, classes=12, per=per) for m in (model, twin))
    for step in range(2):
        x, y = data(kind, 12, step)
        groups = torch.arange(12) if per == "layer" else y
        optimizer.zero_grad()
        with optimizer.classes(groups):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x.float()), y)
            loss.backward()
        optimizer.step()
        go(twin, other, x.float(), y, groups)
    for p, q in zip(weights(model)[:-1], weights(twin)[:-1], strict=True):
        assert p.dtype == torch.float32
        torch.testing.assert_close(p, q, atol=2e-2, rtol=2e-2)
        assert bool((optimizer.rates(p) > 1).any())


def test_booleans_are_two_groups() -> None:
    models = [network(), network()]
    optimizers = [ClassRateSGD(m, 0.1, 1e3, classes=2) for m in models]
    for step in range(2):
        x, y = data("linear", 12, step)
        go(models[0], optimizers[0], x, y, x[:, 0] > 0)
        go(models[1], optimizers[1], x, y, (x[:, 0] > 0).long())
    assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models), strict=True))


def test_weights_that_are_no_parameters_take_plain_steps() -> None:
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K)
    go(model, optimizer, *data("linear", 12))
    assert [p is model[2].weight for p in optimizer._managed()] == [True]
    assert len(optimizer.state_dict()["state"]) == 1


def test_a_weight_that_is_the_last_layers_too_is_not_managed() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[4].weight = model[0].weight
    assert [p is model[2].weight for p in ClassRateSGD(model, classes=5)._managed()] == [True]


class Called(nn.Module):
    """Layers that are called by what torch.nn.functional offers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(1, 3, (4, 3), dilation=(1, 2))
        self.linear = nn.Linear({"plain": 144, "keywords": 48, "same": 270, "valid": 108}[how], 6)
        self.out = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        x, (w, b) = x.view(-1, 1, 9, 10), (self.conv.weight, self.conv.bias)
        if self.how == "plain":
            x = F.conv2d(x, w)
        elif self.how == "keywords":
            x = F.conv2d(x, weight=w, bias=b, stride=2, padding=(1, 0))
        else:
            x = F.conv2d(x, w, b, padding=self.how, dilation=(1, 2))
        return self.out(F.linear(input=x.flatten(1), weight=self.linear.weight).tanh())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("how", ["plain", "keywords", "same", "valid"])
def test_layers_may_be_called_in_any_way(how: str) -> None:
    x, y = data("conv", 10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Called(how).double()
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), weights(model))
    before = [p.detach().clone() for p in weights(model)]
    optimizer = ClassRateSGD(model, 0.1, 1e3, classes=K)
    go(model, optimizer, x, y)
    for p, q, grad in zip(weights(model), before, grads, strict=True):
        torch.testing.assert_close(p, q - 0.1 * grad)
    assert all(bool((optimizer.rates(p) > 1).any()) for p in weights(model)[:2])


def test_mistakes_are_told() -> None:
    model, (x, y) = network(), data("linear", 6)
    optimizer = ClassRateSGD(model, classes=K)
    for wrong, match in ((y.double(), "integers"), (y.unsqueeze(0), "samples"), (y + K, "0 to 3")):
        with pytest.raises(ConfigError, match=match), optimizer.classes(wrong):
            pass
    with pytest.raises(ConfigError, match="expected 5 samples"), optimizer.classes(y[:5]):
        model(x)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    with optimizer.classes(y):
        loss.backward()  # its forward pass was outside
    with pytest.raises(RunError, match="forward and backward"):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.grad_scale = torch.tensor(2.0)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match="GradScaler"):
        optimizer.step()
    for options in (
        {"lr": 0.0},
        {"rate_lr": -1.0},
        {"decay_lr": -1.0},
        {"classes": 0},
        {"momentum": 1.0},
        {"cutoff": -1},
        {"reset_every": 0},
        {"per": "batch"},
        {"trade_off": (1.0,)},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            ClassRateSGD(model, **{"classes": K, **options})
    with pytest.raises(ConfigError, match="no hidden"):
        ClassRateSGD(nn.Linear(2, 2), classes=2)


def test_several_processes_are_refused_while_rates_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    x, y = data("linear", 6)
    monkeypatch.setattr(Processes, "of", lambda model=None: Processes(size=2))
    with pytest.raises(RunError, match="2 train together"):
        go(model, ClassRateSGD(model, 0.1, 1.0, classes=K), x, y)
    go(model, ClassRateSGD(model, 0.1, 0.0, classes=K), x, y)  # plain SGD
