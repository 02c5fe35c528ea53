"""Multiply-accumulates against hand counts, operator by operator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared import surgery
from pared.measure.size import macs
from pared.methods.costs import Costs
from pared.nn import SparseConv2d, SparseLinear, SparseSequential


class Call(nn.Module):
    """A network of one function, and a matrix of its own."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.ones(8, 3))

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(self.w, *given)


class Attention(nn.Module):
    """Self-attention by hand, 2 heads of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def recurrent(gates: int, inputs: int, hidden: int, layers: int, ways: int) -> int:
    sizes = [inputs, *[hidden * ways] * (layers - 1)]
    return 10 * ways * sum(gates * hidden * (size + hidden) for size in sizes)


X, ROW = torch.ones(2, 5, 8), torch.ones(5, 8)
ATTENTION = 10 * 4 * 64 + 2 * 2 * 2 * 5 * 5 * 4
COUNTS: dict[str, tuple[nn.Module, Any, int]] = {
    "lstm": (nn.LSTM(8, 6), X, recurrent(4, 8, 6, 1, 1)),
    "lstm, deep and both ways": (nn.LSTM(8, 6, 2, bidirectional=True), X, recurrent(4, 8, 6, 2, 2)),
    "gru, deep and both ways": (nn.GRU(8, 6, 2, bidirectional=True), X, recurrent(3, 8, 6, 2, 2)),
    "rnn": (nn.RNN(8, 6, batch_first=True), X, recurrent(1, 8, 6, 1, 1)),
    "a cell": (nn.LSTMCell(8, 6), ROW, 5 * 24 * 14),
    "attention": (nn.MultiheadAttention(8, 2, batch_first=True), (X, X, X), ATTENTION),
    "attention by hand": (Attention(), X, ATTENTION),
    "an encoder layer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), X, ATTENTION + 10 * 2 * 8 * 16),
    "shared heads": (
        Call(lambda w, q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True)),
        (torch.ones(2, 4, 5, 8), torch.ones(2, 2, 7, 8)),
        2 * 4 * 5 * 7 * 16,
    ),
    "a matrix": (Call(lambda w, x: x @ w), X, 10 * 24),
    "a vector": (Call(lambda w, x: x @ w[:, 0]), ROW, 5 * 8),
    "einsum": (Call(lambda w, x: torch.einsum("btk,ko->bto", x, w)), X, 10 * 24),
    "baddbmm": (Call(lambda w, x: torch.baddbmm(x.new_zeros(2, 5, 5), x, x.transpose(1, 2))), X, 2 * 25 * 8),
    "broadcast and summed": (Call(lambda w, x: (x.unsqueeze(-1) * w).sum(-2)), X, 10 * 24),
    "bilinear": (nn.Bilinear(8, 8, 3), (ROW, ROW), 5 * 3 * 64),
    "transposed, groups": (nn.ConvTranspose2d(8, 6, 3, groups=2), torch.ones(1, 8, 5, 5), 25 * 8 * 3 * 9),
    "depthwise": (nn.Conv1d(8, 8, 3, groups=8, padding=1), torch.ones(2, 8, 5), 2 * 5 * 8 * 3),
    "a look-up": (nn.Embedding(10, 4), torch.zeros(2, 3, dtype=torch.long), 0),
    "entry by entry": (Call(lambda w, x: F.gelu(F.layer_norm(x * x[..., :1], (8,)))), X, 0),
    "sparse torch": (Call(lambda w, x: torch.eye(5).to_sparse() @ x), ROW, 5 * 8),
}


@pytest.mark.parametrize(("model", "example", "count"), COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("inference", [False, True])
def test_counts_are_those_made_by_hand(model: nn.Module, example: Any, count: int, inference: bool) -> None:
    with torch.inference_mode(inference):
        assert macs(model, example) == count


def test_of_sparse_layers_only_weights_that_live_count() -> None:
    first, last = SparseLinear(8, 6, density=0.2), SparseLinear(6, 3, density=0.5)
    assert macs(SparseSequential(first, nn.ReLU(), last), ROW) == 5 * (first.count + last.count)
    conv = SparseConv2d(3, 4, 3, density=0.3)
    assert macs(conv, torch.ones(2, 3, 5, 5)) == conv.count * 2 * 9


def test_a_network_that_cannot_be_exported_is_counted_as_it_runs() -> None:
    forked = Call(lambda w, x: x @ w if float(x.sum().detach()) > 0 else x)
    assert (macs(forked, ROW), macs(forked, -ROW)) == (5 * 24, 0)


def test_an_operator_that_multiplies_without_a_formula_is_named() -> None:
    with pytest.warns(UserWarning, match=r"aten\._fft_r2c.* count as 0"):
        assert macs(Call(lambda w, x: torch.fft.rfft(x).abs() @ w[:5]), ROW) == 5 * 5 * 3


def test_units_cost_the_products_of_attention_and_of_recurrent_layers_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.attention, self.lstm = nn.Linear(8, 8), Attention(), nn.LSTM(8, 6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(self.attention(self.before(x)))[0]

    net = Net()
    costs = Costs("macs", net, surgery.graph(net, X), X)
    assert sum(costs._macs().values()) == macs(net, X)
    assert costs._macs()["attention"] == 2 * 2 * 2 * 5 * 5 * 4
