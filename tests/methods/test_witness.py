"""Sparse layers grow where masked ones do, whatever a loop does around them, or say why they cannot."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from helpers import task
from pared.errors import ConfigError, RunError
from pared.methods import SET, RigL, Static, WeightSession
from pared.nn import SparseLinear

Loop = Callable[[WeightSession, torch.Tensor, torch.Tensor], None]
TOTAL = 12


class Net(nn.Module):
    """Two hidden layers; what stands between is in the caller's hands."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor] = torch.relu, twice: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        masks = [torch.rand(14, 12, generator=generator) < 0.4, torch.rand(14, 14, generator=generator) < 0.4]
        self.one = SparseLinear(12, 14, mask=masks[0], generator=generator)
        self.two = SparseLinear(14, 14, mask=masks[1], generator=generator)
        self.head = nn.Linear(14, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(3, 14, generator=generator) / 4)
        self.between, self.twice = between, twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(self.two(self.between(self.one(x))))
        return self.head(self.two(x) if self.twice else x)


def pair(method: RigL, **settings: object) -> tuple[WeightSession, WeightSession]:
    """Return a network of sparse layers and its masked twin, both bound."""
    sparse = Net(**settings).double()  # type: ignore[arg-type]
    twin = copy.deepcopy(sparse)
    masks = {name: getattr(twin, name).to_dense() != 0 for name in ("one", "two")}
    for name in masks:
        twin.set_submodule(name, getattr(twin, name).to_linear())
    sessions = [
        method.bind(net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), total_steps=TOTAL)
        for net in (sparse, twin)
    ]
    for name, mask in masks.items():
        sessions[1].masked(f"{name}.weight").mask.copy_(mask)
        getattr(twin, name).weight.data.copy_(getattr(sparse, name).to_dense())
    return sessions[0], sessions[1]


METHOD = RigL(0.6, every=3, end=1.0, where="but last")


def agree(loop: Loop, **settings: object) -> None:
    """Let both train by `loop`, and compare after every step."""
    sessions = pair(METHOD, **settings)
    x, y = task()
    for step in range(TOTAL):
        rows = torch.arange(step * 16, step * 16 + 16) % len(x)
        for session in sessions:
            torch.manual_seed(step)
            loop(session, x[rows].double(), y[rows])
            session.optimizer.zero_grad()
        for name in ("one", "two"):
            mine, other = sessions[0].connections[f"{name}.values"], sessions[1].connections[f"{name}.weight"]
            assert torch.equal(mine.live(), other.live()), step
            assert torch.allclose(mine.values(), other.values(), rtol=0, atol=1e-10)
    assert sum(event.grown for event in sessions[0].events) > 0


def loss_of(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(session.model(x), y)


def plain(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
    loss_of(session, x, y).backward()
    session.step()


def accumulated(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
    buffer = torch.empty_like(x[:8])
    for part in (slice(0, 8), slice(8, 16)):
        buffer.copy_(x[part])  # which what was seen must not follow
        loss_of(session, buffer, y[part]).backward()
    session.step()


def features_major(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
    buffer = torch.empty(12, 8, dtype=x.dtype)
    for part in (slice(0, 8), slice(8, 16)):
        buffer.copy_(x[part].t())
        loss_of(session, buffer.t(), y[part]).backward()
    session.step()


def thrown_away(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
    loss_of(session, x.flip(1), y).backward()
    session.optimizer.zero_grad()
    plain(session, x, y)


def zeroed(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
    loss_of(session, x.flip(1), y).backward()
    session.optimizer.zero_grad(set_to_none=False)
    plain(session, x, y)


def saliency(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
    x.requires_grad_()
    torch.autograd.grad(session.model(x).square().sum(), x)
    plain(session, x, y)


def looked_at(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
    with torch.no_grad():
        session.model(x.flip(1))
    loss_of(session, x.flip(0), y)  # and never goes back
    plain(session, x, y)


def overflowing(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(session, x, y) * float("inf")).backward()
    session.step(scaler)
    scaler.update()
    session.optimizer.zero_grad()
    scaler.scale(loss_of(session, x, y)).backward()
    session.step(scaler)


@pytest.mark.parametrize(
    "loop", [plain, accumulated, features_major, thrown_away, zeroed, saliency, looked_at, overflowing]
)
def test_any_loop_grows_where_masks_would(loop: Loop) -> None:
    agree(loop)


def test_what_stands_between_layers_does_not_matter() -> None:
    agree(plain, between=lambda x: x.relu_())
    agree(plain, between=lambda x: x.mul_(0.5).add_(1.0))
    agree(plain, between=lambda x: x.masked_fill_(x > 1.0, 0.0))
    agree(plain, twice=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_seen_through(reentrant: bool) -> None:
    def loop(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
        x.requires_grad_()
        answers = checkpoint(session.model, x, use_reentrant=reentrant)
        nn.functional.cross_entropy(answers, y).backward()
        session.step()

    agree(loop)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch._dynamo looks there
def test_a_compiled_network_grows_as_it_is() -> None:
    compiled: dict[int, nn.Module] = {}

    def loop(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
        net = compiled.setdefault(id(session), torch.compile(session.model, backend="eager"))  # type: ignore[arg-type]
        nn.functional.cross_entropy(net(x), y).backward()
        session.step()

    torch.compiler.reset()
    agree(loop)
    torch.compiler.reset()


def test_autocast_is_followed() -> None:
    net = Net()
    session = METHOD.bind(net, torch.optim.SGD(net.parameters(), 0.1), total_steps=TOTAL)
    x, y = task()
    for _ in range(TOTAL):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(net(x[:16]).float(), y[:16])
        loss.backward()
        session.step()
        session.optimizer.zero_grad()
    assert session.events


def test_what_cannot_be_seen_is_told() -> None:
    def penalised(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
        x.requires_grad_()
        loss = loss_of(session, x, y)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + slope.square().sum()).backward()
        session.step()

    def another_way(session: WeightSession, x: torch.Tensor, y: torch.Tensor) -> None:
        net = session.net
        assert isinstance(net, Net)
        weight = net.one.to_dense() if isinstance(net.one, SparseLinear) else net.get_parameter("one.weight")
        nn.functional.linear(x, weight).square().sum().backward()
        session.step()

    for loop, words in ((penalised, "create_graph"), (another_way, "another way")):
        with pytest.raises(RunError, match=words):
            agree(loop, between=torch.tanh)


def test_nothing_is_kept_when_it_is_not_needed() -> None:
    session, _ = pair(METHOD)
    net, (x, y) = session.net, task()
    assert isinstance(net, Net)
    for _ in range(2):
        plain(session, x[:16].double(), y[:16])
        session.optimizer.zero_grad()
    assert net.one.witness.on  # the third step looks
    copies = session.realize(sparse=True), copy.deepcopy(net)
    assert not any(module.witness.on for one in copies for module in one.modules() if isinstance(module, SparseLinear))
    for _ in range(5):
        loss_of(session, x[:16].double(), y[:16]).backward()
        session.optimizer.zero_grad()
    assert len(net.one.witness.pairs) == 1
    session.detach()
    assert not net.one.witness.on
    assert not net.one.witness.pairs


class TestMistakes:
    def test_averaging_where_weights_are_is_refused_and_copies_have_indices_of_their_own(self) -> None:
        session, _ = pair(METHOD)
        with pytest.raises(ConfigError, match="use_buffers"):
            session.follow(AveragedModel(session.model, use_buffers=True))
        average = AveragedModel(session.model)
        session.follow(average)
        x, y = task()
        for _ in range(4):
            plain(session, x[:16].double(), y[:16])
        mine, other = dict(session.net.named_buffers()), dict(average.module.named_buffers())
        assert all(torch.equal(mine[name], other[name]) for name in mine)
        assert all(mine[name].data_ptr() != other[name].data_ptr() for name in mine if mine[name].numel())

    def test_values_in_two_layers_are_refused(self) -> None:
        layers = [SparseLinear(5, 5, mask=torch.eye(5, dtype=torch.bool)) for _ in range(2)]
        layers[1].values = layers[0].values
        net = nn.Sequential(*layers)
        with pytest.raises(ConfigError, match="same values"):
            Static().bind(net, torch.optim.SGD(net.parameters(), 0.1))

    def test_one_layer_in_two_places_stays_one(self) -> None:
        layer = SparseLinear(6, 6, density=0.5)
        net = nn.Sequential(layer, nn.ReLU(), layer, nn.Sequential(layer))
        plain_net = Static().bind(net, torch.optim.SGD(net.parameters(), 0.1)).realize()
        assert not any(isinstance(module, SparseLinear) for module in plain_net.modules())
        assert plain_net[0] is plain_net[2] is plain_net[3][0]  # type: ignore[index]

    def test_an_emptied_layer_trains_on(self) -> None:
        for density in (0.0, 0.02):
            net = nn.Sequential(SparseLinear(16, 3, density=density), nn.ReLU(), nn.Linear(3, 2))
            for method in (RigL(0.5, every=1, end=1.0), SET(0.5, every=1, end=1.0)):
                session = method.bind(net, torch.optim.SGD(net.parameters(), 0.1), total_steps=4)
                for _ in range(4):
                    net(torch.randn(4, 16)).sum().backward()
                    session.step()
                session.detach()

    def test_what_was_frozen_since_stays(self) -> None:
        net = Net()
        session = SET(0.5, every=1, end=1.0).bind(net, torch.optim.SGD(net.parameters(), 0.1), total_steps=4)
        net.one.values.requires_grad_(False)
        net.head.weight.requires_grad_(False)
        before = net.one.pattern.entries(), net.head.weight.clone()
        for _ in range(4):
            net(torch.randn(4, 12)).sum().backward()
            session.step()
        assert torch.equal(net.one.pattern.entries(), before[0])
        assert torch.equal(net.head.weight, before[1])

    def test_a_state_in_parts_changes_nothing(self) -> None:
        layer = SparseLinear(8, 8, density=0.5)
        whole = layer.state_dict()
        before = copy.deepcopy(whole)
        for part in (("crow", "col"), ("col",), ("values",)):
            for assign in (False, True):
                bad = {name: whole[name] + 500_000_000 if name == "col" else whole[name] for name in part}
                with pytest.raises(RuntimeError, match="go together"):
                    layer.load_state_dict(bad, strict=False, assign=assign)
                assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
        layer.perm.fill_(7)
        layer.load_state_dict(before)
        assert sorted(layer.perm.tolist()) == list(range(layer.count))
