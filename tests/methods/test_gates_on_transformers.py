"""Layers and heads of transformers that compete: torch's own, and one written by hand."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pared
from pared.methods import Gates, UnitSession
from pared.methods.components import Groups
from pared.nn import Channels, Gated, Switch, Switched, Zero, ZeroAttention

WIDTH, HEADS = 12, 4


class Attention(nn.Module):
    """Four heads of three channels, after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, places, _ = x.shape
        y = self.norm(x)
        q, k, v = (part(y).view(n, places, -1, WIDTH // HEADS).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(n, places, -1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        x = x + self.dropout(self.attention(mask=mask, x=x))
        return x + self.dropout(self.mlp(x))


class ByTorch(nn.Module):
    """A residual branch around torch's own attention, called with names."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z, _ = self.attention(query=y, key=y, value=y, need_weights=False)
        return x + z


def encoder(*, first: bool = True) -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True, norm_first=first)


#: What layers are made of, who competes, who dies, the module that is zero then, and how many parameters leave with it.
CASES: dict[str, tuple[Callable[[], nn.Module], Groups, str, int]] = {
    "torch, branches": (encoder, {"all": [f"{i}.dropout{j}" for i in (0, 1) for j in (1, 2)]}, "0.dropout1", 648),
    "torch, mlp": (lambda: encoder(first=False), {"all": ["0.linear2", "1.linear2"]}, "0.linear2", 412),
    "by names": (ByTorch, {"all": ["0.attention", "1.attention"]}, "0", 648),
    "by hand": (Block, {"all": [f"{i}.{part}" for i in (0, 1) for part in ("attention", "mlp")]}, "0.attention", 648),
    "heads": (Block, {"all": Channels("0.attention.v", (WIDTH // HEADS,) * HEADS, -1)}, "", 3 * (12 * 4 + 3)),
}
each = pytest.mark.parametrize("case", CASES)


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 5, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, (x[:, 0, 0] > 0).long()


def network(case: str) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [CASES[case][0]() for _ in range(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * WIDTH, 2)).double()


def bound(case: str) -> UnitSession:
    model = network(case)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    return Gates(0.01, CASES[case][1], scaled=True, every=2).bind(model, optimizer, data()[0][:2])


def step(session: UnitSession) -> Tensor:
    x, y = data()
    loss = F.cross_entropy(session.model.train()(x), y) + session.penalty()
    loss.backward()
    session.step()
    session.optimizer.zero_grad()
    return loss.detach()


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    """Without derivatives, as torch's own layers then take other ways."""
    return model.eval()(data()[0])


@each
def test_what_is_dead_leaves_and_nothing_else_changes(case: str) -> None:
    stays, leaves = bound(case), bound(case)
    torch.testing.assert_close(output(leaves.model), output(network(case)))
    before = leaves.params
    stays.remove = lambda: None  # type: ignore[method-assign]  # killed, and still there
    for session in (stays, leaves):
        with torch.no_grad():
            session.gates["all"].theta[0] = -30.0
        for _ in range(2):
            step(session)
    _, groups, name, left = CASES[case]
    channels = isinstance(groups["all"], Channels)
    assert [event.index for event in leaves.events] == [(0, 1, 2) if channels else (0,)]
    assert leaves.params == before - left
    assert not name or isinstance(leaves.net.get_submodule(name), Zero | nn.Identity)
    for _ in range(2):
        torch.testing.assert_close(output(leaves.model), output(stays.model), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(step(leaves), step(stays), rtol=1e-9, atol=1e-10)
    small = leaves.realize()
    torch.testing.assert_close(output(small), output(leaves.model), rtol=1e-9, atol=1e-10)
    assert not any(isinstance(module, Gated | Switch) for module in small.modules())


def test_sessions_and_files_hold_attention_that_is_gone(tmp_path: Path) -> None:
    case = "torch, branches"
    session, other = bound(case), bound(case)
    with torch.no_grad():
        session.gates["all"].theta[[0, 3]] = -30.0  # the attention of one layer, and what is behind it in the other
    for _ in range(2):
        step(session)
    other.load_state_dict(copy.deepcopy(session.state_dict()))
    for one in (session, other):
        step(one)
    assert torch.equal(output(session.model), output(other.model))
    small = session.realize()
    assert isinstance(small.get_submodule("0.self_attn"), ZeroAttention)
    again = pared.load(network(case), pared.save(small, tmp_path / "small.safetensors"))
    assert torch.equal(output(again), output(small))


def test_fused_layers_of_torch_see_switches() -> None:
    layer, x = encoder().eval(), data()[0].float()
    assert isinstance(layer, nn.TransformerEncoderLayer)
    layer.linear1 = Switched(layer.linear1, Switch(16, init=0.3))  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        fast = layer(x)
    torch.testing.assert_close(fast, layer(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("groups", [None, {"all": ["0.layers.0.self_attn", "0.layers.1.linear2"]}])
@pytest.mark.parametrize("dead", [0, 1])
def test_encoders_of_torch_take_padding(groups: Groups | None, dead: int, tmp_path: Path) -> None:
    def made() -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True), 2)

    class Padded(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            padding = torch.zeros(input.shape[:2], dtype=torch.bool)
            padding[:, 3:] = True
            return self[0](input, src_key_padding_mask=padding)[:, :3]

    model, fresh = (Padded(made()) for _ in range(2))
    x = data()[0].float()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    session = Gates(0.0, groups, scaled=True, every=1).bind(model, optimizer, x[:2])
    expected = model(x)
    torch.testing.assert_close(output_of(model, x), expected, rtol=1e-4, atol=1e-4)
    gate = next(iter(session.gates.values()))
    with torch.no_grad():
        gate.theta[dead] = -30.0
    model.train()(x).square().mean().backward()
    session.step()
    expected = model(x)
    small = session.realize()
    again = pared.load(fresh, pared.save(small, tmp_path / "small.safetensors"))
    for one in (model, small, again):
        torch.testing.assert_close(output_of(one, x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def output_of(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x)
