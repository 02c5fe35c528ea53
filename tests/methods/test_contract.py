"""One contract over the table of all methods."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helpers import OPTIMIZERS, branched, images, network, nodes, task
from pared.errors import ConfigError, RunError, SurgeryError
from pared.methods import (
    L0,
    UNIT_METHODS,
    Gates,
    Geometric,
    GroupLasso,
    Prune,
    Shrink,
    SignChange,
    SignVariance,
    Slimming,
    Threshold,
    TowardSize,
    UnitMethod,
    UnitSession,
)
from pared.models import branch_groups, densenet, input_groups, mlp, resnet, resnext, vgg
from pared.nn import Channels, Competition, Gated, SparseAdjacency, Switch
from pared.train.checkpoint import load_state, save_state


def _resnext(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return resnext((1, 1), 2, branches=3, width=2, channels=2, stem=4, generator=generator)


def _densenet(seed: int) -> nn.Module:
    return densenet((2, 1), 2, growth=2, channels=2, generator=torch.Generator().manual_seed(seed))


#: The residual branches of a network, in one group for each stage, and channels of a layer in segments.
BLOCKS = {
    "stage 1": ["3.norm2", "4.norm2", "5.norm2"],
    "stage 2": ["6.norm2", "7.norm2"],
    "channels": Channels("5.norm1", (1, 2, 1)),
}
#: Every method with settings under which something dies within a few epochs of `task`.
CASES: dict[str, Any] = {
    "shrink": Shrink(strength=0.02, init="uniform"),
    "shrink inputs": Shrink(strength=0.02, init="uniform", inputs=True, every=5),
    "shrink columns": Shrink(strength=0.05, init="uniform", inputs=True, input_sizes=[2, 1, 4, 5]),
    "shrink by first sign": Shrink(strength=0.02, rule=SignChange(), init="uniform"),
    "shrink to a size": Shrink(strength=TowardSize(100, start=0.02), rule=Threshold(0.05), lr_scale=2.0),
    "shrink convolutions": Shrink(strength=Geometric(0.02, 0.2), cost="macs", init="uniform", weight_strength=1e-4),
    "shrink convolutions slowly": Shrink(strength=0.1, cost="latency", every=5, weight_strength=1e-4, weight_power=1),
    "shrink sums": Shrink(strength=0.1, init="uniform", sums=True, every=5),
    "shrink kernels": Shrink(strength=0.1, init="uniform", kernels=True),
    "group lasso": GroupLasso(strength=1.0),
    "group lasso, columns": GroupLasso(strength=Geometric(0.1, 2.0), groups="columns", every=5),
    "group lasso, sub-gradient": GroupLasso(strength=0.02, proximal=False, threshold=0.3, groups="columns"),
    "slimming": Slimming(params=300, strength=1e-3, at=(0.1, 0.25)),
    "prune": Prune(params=150, at=(0.05, 0.15, 0.35)),
    "prune and rewind": Prune(params=150, score="taylor", at=(0.2, 0.4), rewind=0.1),
    "prune and begin again": Prune(params=200, at=(0.25,), rewind=0.0),
    "l0": L0(strength=0.05, open=0.3, lr_scale=5.0, every=4),
    "l0 convolutions": L0(strength=0.1, open=0.3, lr_scale=5.0, cost="parameters"),
    "gates": Gates(strength=0.05, lr_scale=10.0, every=4),
    "gates on convolutions": Gates(strength=0.1, lr_scale=10.0, cost="macs"),
    "gates on blocks": Gates(0.3, BLOCKS, lr_scale=10.0, every=4, cost="parameters", scaled=True),
    "gates on branches": Gates(0.5, branch_groups(_resnext(0)), lr_scale=10.0, every=4, cost="macs"),
    "gates on inputs": Gates(0.5, input_groups(_densenet(0)), lr_scale=10.0, every=4, cost="parameters"),
    "gates of branches": Gates(strength=0.3, lr_scale=10.0, every=4, null=True, dead_grad="elu"),
    "gates on edges": Gates(strength=0.01, lr_scale=5.0, every=4, cost="macs"),
}
#: Cases on a network of convolutions, and on one whose norms stand before every activation.
CONVOLUTIONS = {
    "shrink convolutions",
    "shrink sums",
    "shrink kernels",
    "shrink convolutions slowly",
    "group lasso, columns",
    "l0 convolutions",
    "gates on convolutions",
}
NORMED = {"slimming"}
RESIDUAL = {"gates on blocks"}
OTHERS = {
    "gates on branches": _resnext,
    "gates on inputs": _densenet,
}
#: Where classes are of ours that a realised network may be made of: its own, and what stands for a dead branch.
PLAIN = {
    "pared.models.resnet",
    "pared.models.resnext",
    "pared.models.densenet",
    "pared.nn.zero",
    "pared.nn.scale",
    "pared.nn.gated",
    "pared.nn.graph",
}
BATCH, STEPS = 32, 8


def case(method: Any) -> str:
    return next(name for name, one in CASES.items() if one is method) if method in CASES.values() else ""


def data(method: Any) -> tuple[Tensor, Tensor]:
    return images() if case(method) in CONVOLUTIONS | NORMED | RESIDUAL | OTHERS.keys() else task()


def net(method: Any, seed: int) -> nn.Module:
    if case(method) in CONVOLUTIONS:
        return branched(seed)
    if case(method) in OTHERS:
        return OTHERS[case(method)](seed)
    if case(method) in RESIDUAL:
        return resnet((3, 2), 2, channels=2, width=4, generator=torch.Generator().manual_seed(seed))
    if case(method) == "gates of branches":
        generator = torch.Generator().manual_seed(seed)
        branches = [nn.Sequential(mlp(12, 6, (5,), generator=generator), nn.Tanh()) for _ in range(4)]
        return nn.Sequential(Competition(branches), mlp(6, 2, (4,), generator=generator))
    if case(method) == "gates on edges":
        return nodes(SparseAdjacency(6, iterations=3, dead_grad="leaky"), seed)
    if case(method) in NORMED:
        return vgg([6, 0, 8, 0], outputs=2, channels=2, size=6, generator=torch.Generator().manual_seed(seed))
    return network(seed=seed)


def narrow(x: Tensor, session: UnitSession) -> Tensor:
    return x[:, session.inputs] if x.ndim == 2 else x


def bound(method: Any, optimizer: Callable[[nn.Module], Any] = OPTIMIZERS["Adam"], seed: int = 0) -> UnitSession:
    model = net(method, seed)
    generator, x = torch.Generator().manual_seed(1), data(method)[0][:2]
    return method.bind(model, optimizer(model), x, total_steps=200, steps_per_epoch=STEPS, generator=generator)


def run(
    session: UnitSession, steps: int, start: int = 0, scheduler: Any = None, after: Callable[[], None] = lambda: None
) -> Tensor:
    convolutions = any(isinstance(module, nn.Conv2d) for module in session.model.modules())
    x, y = images() if convolutions else task()
    loss = torch.zeros(())
    for step in range(start, start + steps):
        rows = slice(step % STEPS * BATCH, (step % STEPS + 1) * BATCH)
        with session.batch(y[rows]):
            loss = F.cross_entropy(session.model(x[rows]), y[rows]) + session.penalty()
            loss.backward()
        session.step()
        session.optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        after()
    return loss


def same_model(first: nn.Module, second: nn.Module) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


def same(first: Any, second: Any) -> None:
    """What two sessions have saved is the same to the last bit."""
    if isinstance(first, Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            same(one, other)
    else:
        assert first == second


def test_every_method_of_the_table_has_a_case() -> None:
    assert {type(method) for method in CASES.values()} == set(UNIT_METHODS.values())


@pytest.mark.parametrize("method", CASES.values(), ids=CASES.keys())
class TestEveryMethod:
    def test_something_dies_and_is_told(self, method: Any) -> None:
        session = bound(method)
        before = sum(p.numel() for p in session.model.parameters())
        run(session, 200)
        assert session.events
        assert sum(p.numel() for p in session.model.parameters()) < before
        lefts = {}
        for event in session.events:
            assert event.left < lefts.get(event.layer, 99)
            lefts[event.layer] = event.left

    def test_realizes_a_plain_equal_network(self, method: Any) -> None:
        session = bound(method)
        run(session, 120)
        session.model.eval()
        small, x = session.realize(), data(method)[0]
        kept = copy.deepcopy(session.model.state_dict())
        torch.testing.assert_close(small(narrow(x, session)), session.model(x), rtol=1e-4, atol=1e-5)
        assert {type(m).__module__ for m in small.modules() if "pared" in type(m).__module__} <= PLAIN
        assert not any(isinstance(m, Gated | Switch) for m in small.modules())
        for parameter in small.parameters():
            nn.init.zeros_(parameter)
        assert all(torch.equal(kept[key], value) for key, value in session.model.state_dict().items())

    @pytest.mark.parametrize(
        "schedule",
        [
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.99**step),
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=200),
        ],
    )
    def test_schedulers_groups_and_averages_follow(self, method: Any, schedule: Any) -> None:
        session = bound(method)
        scheduler = schedule(session.optimizer)
        groups = [id(group) for group in session.optimizer.param_groups]
        average = AveragedModel(session.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        session.follow(average)
        run(session, 150, scheduler=scheduler, after=lambda: average.update_parameters(session.model))
        assert session.events
        assert groups == [id(group) for group in session.optimizer.param_groups]
        held = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in session.model.parameters()} == {id(p) for p in session.optimizer.state}
        shapes = [p.shape for p in session.model.parameters()]
        assert shapes == [p.shape for p in average.module.parameters()]

    def test_realizing_leaves_the_session_as_it_was(self, method: Any) -> None:
        asked, other = bound(method), bound(method)
        other.costs.rates = dict(asked.costs.rates)  # which are measured
        other.recount()
        for start in range(0, 63, 7):
            for session in (asked, other):
                run(session, 7, start=start)
            before = copy.deepcopy(asked.state_dict())
            small = asked.realize()
            same(asked.state_dict(), before)
            assert small(narrow(data(method)[0][:2], asked)).isfinite().all()
        same(asked.state_dict(), other.state_dict())

    def test_a_deep_copy_is_independent(self, method: Any) -> None:
        session = bound(method)
        run(session, 40)
        twin = copy.deepcopy(session.model)
        run(session, 40)
        assert sum(p.numel() for p in twin.parameters()) >= sum(p.numel() for p in session.model.parameters())


#: How optimizers follow is the methods' affair, not their options': two will do for a variant.
PAIRS = [
    pytest.param(method, optimizer, id=f"{name}-{kind}")
    for name, method in CASES.items()
    for kind, optimizer in OPTIMIZERS.items()
    if name in UNIT_METHODS or kind in ("Adam", "SGD Nesterov")
]


@pytest.mark.parametrize(("method", "optimizer"), PAIRS)
def test_every_method_resumes_and_pickles_bit_equally(method: Any, optimizer: Any, tmp_path: Path) -> None:
    session = bound(method, optimizer)
    run(session, 60)
    save_state(tmp_path / "s.safetensors", session.state_dict())
    other = bound(method, optimizer, seed=9)
    other.load_state_dict(load_state(tmp_path / "s.safetensors"))
    twin = pickle.loads(pickle.dumps(session))
    assert other.events == session.events
    for one in (session, other, twin):
        run(one, 60, start=60)
    for one in (other, twin):
        same_model(session.model, one.model)
        assert torch.equal(session.inputs, one.inputs)


def test_binding_changes_no_output_and_no_gradient() -> None:
    x, y = task()
    plain = network()
    model = copy.deepcopy(plain)
    session = Shrink(inputs=True).bind(model, OPTIMIZERS["SGD"](model), x[:1], steps_per_epoch=STEPS)
    for net in (plain, model):
        F.cross_entropy(net(x), y).backward()
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)
    mine = [p.grad for name, p in model.named_parameters() if "theta" not in name]
    for grad, other in zip(mine, plain.parameters(), strict=True):
        assert grad is not None
        torch.testing.assert_close(grad, other.grad)
    assert session.penalty().item() == pytest.approx(1e-3 * (12 + 16 + 14))
    assert session.optimizer.param_groups[-1]["weight_decay"] == 0.0


def test_switches_stand_after_norms_and_never_after_the_last_layer() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU()), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)
    )
    Shrink().bind(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(1, 4), steps_per_epoch=1)
    kinds = [type(m).__name__ for m in model.modules() if not isinstance(m, nn.Sequential)]
    assert kinds == ["Linear", "BatchNorm1d", "Switch", "ReLU", "Linear", "Switch", "Tanh", "Linear"]


def test_biases_made_by_folding_are_resumed_in_order() -> None:
    def bound_sigmoid() -> UnitSession:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [
                nn.Linear(12, 9),
                nn.Sigmoid(),
                nn.Linear(9, 9, bias=False),
                nn.Sigmoid(),
                nn.Linear(9, 2, bias=False),
            ]
        model = nn.Sequential(*layers)
        method = Shrink(strength=0.05, init="uniform")
        generator = torch.Generator().manual_seed(1)
        return method.bind(model, OPTIMIZERS["Adam"](model), task()[0][:1], steps_per_epoch=STEPS, generator=generator)

    session, other = bound_sigmoid(), bound_sigmoid()
    run(session, 100)
    assert len(session.created) == 2
    other.load_state_dict(copy.deepcopy(session.state_dict()))
    for one in (session, other):
        run(one, 40, start=100)
    same_model(session.model, other.model)


def test_strength_can_be_turned_and_amp_scales() -> None:
    session = bound(CASES["shrink"])
    session.strength = 0.0
    assert session.penalty().item() == 0.0
    scaler = torch.amp.GradScaler("cpu")
    x, y = task()
    scaler.scale(F.cross_entropy(session.model(x), y)).backward()
    scaler.unscale_(session.optimizer)
    session.step()
    assert session.steps == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strength": -1.0}, ConfigError, "strength must be at least 0"),
        ({"input_sizes": [12]}, ConfigError, "needs inputs=True"),
        ({"every": 0}, ConfigError, "every must be"),
        ({"rule": (1.0, 0.5)}, ConfigError, "gamma must be in"),
        ({"rule": (0.9, 0.0)}, ConfigError, "threshold must be above"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        if "rule" in change:
            change["rule"] = SignVariance(*change["rule"])
        bound(Shrink(**change))


def test_binding_at_the_wrong_time_or_place_is_refused() -> None:
    x, model = task()[0], network()
    optimizer = OPTIMIZERS["Adam"](model)
    with pytest.raises(ConfigError, match="steps_per_epoch"):
        Shrink().bind(model, optimizer, x[:1])
    with pytest.raises(SurgeryError, match="with this example"):
        Shrink().bind(model, optimizer, x[:1, :5], steps_per_epoch=1)
    with pytest.raises(SurgeryError, match="expected an nn.Sequential"):
        layer = nn.Linear(12, 2)
        Shrink(inputs=True).bind(layer, OPTIMIZERS["Adam"](layer), x[:1], steps_per_epoch=1)
    for refused in (torch.optim.LBFGS(model.parameters()), torch.optim.Adafactor(model.parameters())):
        with pytest.raises(SurgeryError, match=type(refused).__name__):
            Shrink().bind(model, refused, x[:1], steps_per_epoch=1)
    assert len(model) == 5
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ConfigError, match="before making the scheduler"):
        Shrink().bind(model, optimizer, x[:1], steps_per_epoch=1)


@pytest.mark.parametrize("method", [Shrink(), GroupLasso(), Slimming(params=5), Prune(params=5), L0()], ids=str)
def test_a_network_is_bound_once_at_a_time(method: UnitMethod) -> None:
    x = task()[0]
    model = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = OPTIMIZERS["Adam"](model)
    first = method.bind(model, optimizer, x[:1], steps_per_epoch=1, total_steps=9)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(SurgeryError, match=r"bound already.*detach"):
        method.bind(model, optimizer, x[:1], steps_per_epoch=1, total_steps=9)
    assert names == [name for name, _ in model.named_parameters()]
    first.detach()
    method.bind(model, optimizer, x[:1], steps_per_epoch=1, total_steps=9)


def test_a_state_of_another_network_is_refused_before_anything_changes() -> None:
    session = bound(Shrink())
    state = session.state_dict()
    model = network(hidden=(16,))
    other = Shrink().bind(model, OPTIMIZERS["Adam"](model), task()[0][:1], steps_per_epoch=1)
    with pytest.raises(RunError, match="does not fit"):
        other.load_state_dict(state)
    with pytest.raises(RunError, match="format"):
        session.load_state_dict({**state, "format": 99})
