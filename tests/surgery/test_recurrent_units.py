"""Units of recurrent layers of every kind leave when they stay at a constant, or when nothing reads them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pared
from pared.errors import SurgeryError

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
UNITS, DEAD = 6, [0, 1]
KINDS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{kind}{told}": (kind, options)
    for kind in KINDS
    for told, options in {
        "": {},
        ", two layers": {"num_layers": 2, "dropout": 0.1},
        ", both ways": {"bidirectional": True, "batch_first": True},
        ", two layers, both ways": {"num_layers": 2, "bidirectional": True},
        ", no biases": {"bias": False, "num_layers": 2},
    }.items()
} | {
    "rnn, relu": ("rnn", {"nonlinearity": "relu", "num_layers": 2}),
    "lstm, projected": ("lstm", {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
}


class Net(nn.Module):
    def __init__(self, kind: str, start: str = "", **options: Any) -> None:
        super().__init__()
        self.rnn = KINDS[kind](4, UNITS, **options)
        self.start = start
        self.h0, self.c0 = (nn.Parameter(torch.randn(1, 1, UNITS)) for _ in range(2))
        given = options.get("proj_size") or UNITS
        self.head = nn.Linear(given * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.start:
            return self.head(self.rnn(x)[0])
        h, c = (p.expand(-1, x.shape[1], -1).contiguous() for p in (self.h0, self.c0))
        return self.head(self.rnn(x, (h, c) if self.start == "both" else h)[0])


def made(kind: str, **options: Any) -> tuple[Net, Tensor, str]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = Net(kind, **options).double().eval(), torch.randn(5, 2, 4).double()
    if not options.get("start"):
        del net.h0, net.c0
    return net, x, pared.graph(net, x).at("head.weight", 1, 0).name


@torch.no_grad()
def silence(net: Net, *, biases: bool = True) -> None:
    """Let no weight lead to the dead units."""
    for name, weight in net.rnn.named_parameters():
        if net.rnn.proj_size:
            weight[DEAD] = weight[DEAD] if "hr" not in name else 0.0
        elif biases or "bias" not in name:
            weight.unflatten(0, (-1, UNITS))[:, DEAD] = 0.0


@torch.no_grad()
def unread(net: Net) -> None:
    """Let nothing read the dead units."""
    size = net.rnn.proj_size or UNITS
    places = [way * size + unit for way in range(net.head.in_features // size) for unit in DEAD]
    for name, weight in net.rnn.named_parameters():
        if "weight_hh" in name:
            weight[:, DEAD] = 0.0
        elif "weight_ih" in name and "_l0" not in name:
            weight[:, places] = 0.0
    net.head.weight[:, places] = 0.0


@pytest.mark.parametrize("change", [silence, unread])
@pytest.mark.parametrize("case", CASES)
def test_dead_units_leave_and_change_nothing(case: str, change: Callable[[Net], None]) -> None:
    kind, options = CASES[case]
    net, x, space = made(kind, **options)
    optimizer = torch.optim.SGD(net.parameters(), 0.0, momentum=0.9)
    net(x).sum().backward()
    optimizer.step()
    change(net)
    graph, before = pared.graph(net, x), net(x)
    assert pared.remove_dead(net, graph=graph, optimizer=optimizer) == {space: tuple(DEAD)}
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)
    held = net.rnn.proj_size or net.rnn.hidden_size
    assert held == (options.get("proj_size") or UNITS) - 2
    assert all(optimizer.state[p]["momentum_buffer"].shape == p.shape for p in net.parameters())
    assert len(list(net.rnn.parameters())) == len(net.rnn._flat_weights)


@pytest.mark.parametrize("part", ["weight_hh_l0", "weight_ih_l1", "head.weight"])
def test_a_living_unit_that_one_weight_reads_stays(part: str) -> None:
    net, x, space = made("gru", num_layers=2)
    unread(net)
    weight = net.head.weight if part == "head.weight" else net.rnn.get_parameter(part)
    with torch.no_grad():
        weight[-1, DEAD[0]] = 1e-3
    assert pared.remove_dead(net, graph=pared.graph(net, x)) == {space: (DEAD[1],)}
    with pytest.raises(SurgeryError, match="alive"):
        pared.remove(net, {space: [1]}, graph=pared.graph(net, x))


@pytest.mark.parametrize(
    ("kind", "start", "needed"),
    [("lstm", "both", ["h0", "c0"]), ("gru", "h", ["h0"]), ("rnn", "h", ["h0"])],
)
def test_where_a_unit_starts_counts(kind: str, start: str, needed: list[str]) -> None:
    net, x, space = made(kind, start=start)
    silence(net)
    for name in needed:
        with pytest.raises(SurgeryError, match="alive"):
            pared.remove(net, {space: DEAD}, graph=pared.graph(net, x))
        with torch.no_grad():
            net.get_parameter(name)[..., DEAD] = 0.0
    before = net(x)
    pared.remove(net, {space: DEAD}, graph=pared.graph(net, x))
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)


def test_a_plain_recurrent_unit_with_a_bias_is_a_constant_that_folds_if_its_own_layer_does_not_read_it() -> None:
    net, x, space = made("rnn", bidirectional=True)
    silence(net, biases=False)
    with pytest.raises(SurgeryError, match=r"weight_hh_l0' reads it"):
        pared.remove(net, {space: DEAD}, graph=pared.graph(net, x))
    with torch.no_grad():
        for name, weight in net.rnn.named_parameters():
            if "weight_hh" in name:
                weight[:, DEAD] = 0.0
    before = net(x)
    pared.remove(net, {space: DEAD}, graph=pared.graph(net, x))
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)


def test_a_gated_unit_with_a_bias_moves_and_stays() -> None:
    for kind in ("lstm", "gru"):
        net, x, space = made(kind)
        silence(net, biases=False)
        twin = copy.deepcopy(net.state_dict())
        with pytest.raises(SurgeryError, match="alive"):
            pared.remove(net, {space: DEAD}, graph=pared.graph(net, x))
        assert all(torch.equal(twin[key], value) for key, value in net.state_dict().items())
