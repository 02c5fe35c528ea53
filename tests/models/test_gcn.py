"""The graph convolutional network."""

import pytest
import torch

from pared.errors import ConfigError
from pared.models import gcn
from pared.nn import FixedAdjacency, SparseAdjacency


def inputs() -> torch.Tensor:
    return (torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) * 4 - 2).relu()


def test_two_layers_by_hand_and_sparse_inputs() -> None:
    adjacency = FixedAdjacency.normalized(4, ([0, 1, 1, 2], [1, 0, 2, 1]))
    net = gcn(6, 3, adjacency, hidden=5, generator=torch.Generator().manual_seed(1)).eval()
    assert [p.abs().max() <= (6 / sum(p.shape)) ** 0.5 for p in net.parameters() if p.ndim == 2] == [True, True]
    with torch.no_grad():
        net.first.bias.normal_(generator=torch.Generator().manual_seed(2))
        net.last.bias.normal_(generator=torch.Generator().manual_seed(3))
    A, x = adjacency.matrix(), inputs()
    hidden = (A @ x @ net.first.weight.t() + net.first.bias).relu()
    expected = A @ hidden @ net.last.weight.t() + net.last.bias
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net(x.to_sparse()), expected)
    torch.testing.assert_close(net(torch.stack([x, x]))[1], expected)


def test_weights_come_from_the_generator_and_dropout_works_on_both_kinds_of_inputs() -> None:
    before = torch.random.get_rng_state()
    nets = [gcn(6, 3, FixedAdjacency(4, ([], [])), generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(nets[0].first.weight, nets[1].first.weight)
    net = gcn(6, 3, FixedAdjacency(4, ([0, 1, 2, 3], [0, 1, 2, 3])), dropout=0.5)
    x = torch.ones(4, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for given in (x, x.to_sparse()):
            assert not torch.equal(net._first(given), net._first(given))
    net.dropout = 0.0
    torch.testing.assert_close(net(x.to_sparse()), net(x))


def test_a_learned_graph_is_learned() -> None:
    net = gcn(6, 3, SparseAdjacency(4), hidden=5, dropout=0.0, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # the same for all, rows and columns would be scaled back to what they were
        net.adjacency.theta.copy_(torch.linspace(-1, 1, 16))  # pyright: ignore[reportCallIssue]
    net(inputs())[0].square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("wrong", [{"inputs": 0}, {"classes": 0}, {"hidden": 0}, {"dropout": 1.0}])
def test_mistakes_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="width must be at least 1 and dropout"):
        gcn(**{"inputs": 2, "classes": 2, "adjacency": SparseAdjacency(2)} | wrong)  # pyright: ignore[reportArgumentType]
