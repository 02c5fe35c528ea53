"""A stack of sparse layers computes what its layers do, and calls those that something watches."""

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pared.native import disabled
from pared.nn import BatchMajor, SparseLinear, SparseSequential
from pared.nn.dense import dense


def stack(dtype: torch.dtype = torch.float32, *, bias: bool = True, turn: bool = True) -> SparseSequential:
    generator, sizes = torch.Generator().manual_seed(0), (12, 40, 33, 20)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [
            SparseLinear(inputs, outputs, density=0.3, bias=bias, generator=generator, dtype=dtype),
            nn.ReLU(inplace=bool(len(layers))),
        ]
    return SparseSequential(*layers, BatchMajor() if turn else nn.Identity(), nn.Linear(20, 3, bias, dtype=dtype))


def as_called_one_by_one(model: nn.Sequential, x: Tensor) -> Tensor:
    for layer in model:
        x = layer(x)
    return x


@given(st.integers(0, 99), st.booleans(), st.sampled_from([torch.float32, torch.float64]), st.booleans(), st.booleans())
def test_it_gives_what_its_layers_give(
    batch: int, bias: bool, dtype: torch.dtype, features_major: bool, turn: bool
) -> None:
    model = stack(dtype, bias=bias, turn=turn)
    x = torch.randn(batch, 12, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x = x.t().contiguous().t() if features_major else x
    expected = as_called_one_by_one(model, x)
    before = x.clone()
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            first = model(x)
            kept = first.clone()
            torch.testing.assert_close(first, expected.detach())
            assert first.is_contiguous()
            model(x + 1)
            assert torch.equal(first, kept)  # memory that is used again is nobody's
    assert torch.equal(x, before)
    with torch.no_grad(), disabled():
        torch.testing.assert_close(model(x), expected.detach())


def test_what_is_derived_goes_through_every_layer() -> None:
    model, x = stack(torch.float64), torch.randn(7, 12, dtype=torch.float64).requires_grad_()
    got = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    expected = torch.autograd.grad(as_called_one_by_one(model, x).square().sum(), [x, *model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("place", range(8))
def test_hooks_are_called_and_see_what_they_would(place: int) -> None:
    model, x = stack(), torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []

    def look(module: nn.Module, given: Any, y: Any) -> None:
        seen.append(y)

    model[place].register_forward_hook(look)
    with torch.no_grad():
        expected = as_called_one_by_one(model, x)
        torch.testing.assert_close(model(x), expected)
        model(x + 1)
        assert len(seen) == 3
        torch.testing.assert_close(seen[1], seen[0])


def test_layers_of_other_kinds_stand_between() -> None:
    class Doubled(SparseLinear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    generator, x = torch.Generator().manual_seed(0), torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    layers = [
        nn.Tanh(),
        SparseLinear(6, 9, density=0.5, generator=generator),
        SparseLinear(9, 9, density=0.5, generator=generator),
        nn.LayerNorm(9),
        Doubled(9, 5, density=0.5, generator=generator),
        nn.ReLU(),
        SparseLinear(5, 5, density=0.5, generator=generator),
    ]
    for first in range(len(layers)):
        model, start = SparseSequential(*layers[first:]), torch.randn(40, (6, 6, 9, 9, 9, 5, 5)[first])
        with torch.no_grad():
            torch.testing.assert_close(model(start), as_called_one_by_one(model, start))
    with torch.no_grad():
        model = SparseSequential(*layers)
        three = x.view(2, 20, 6)
        torch.testing.assert_close(model(three), as_called_one_by_one(model, three))
        assert SparseSequential()(x) is x
        recurrent = SparseSequential(nn.LSTM(6, 4), nn.Identity())  # a tuple lies between
        assert len(recurrent(x)) == 2
        with pytest.raises(ValueError, match="expected 6 features"):
            SparseSequential(*layers[1:2])(torch.tensor(1.0))


def test_wrong_input_is_refused_as_by_the_layers() -> None:
    model = stack()
    with torch.no_grad():
        with pytest.raises(ValueError, match="expected 12 features"):
            model(torch.randn(4, 13))
        with pytest.raises(ValueError, match="float64"):
            model(torch.randn(4, 12, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own making
def test_copies_files_and_compilers_take_it_as_a_sequential() -> None:
    model, x = stack(), torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), expected)
        plain = nn.Sequential(*copy.deepcopy(model))
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(plain(x), expected)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


def test_numbers_that_lie_apart_are_taken_as_by_the_layers() -> None:
    model, x = stack(), torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    first = model[0]
    assert isinstance(first, SparseLinear)
    changed = {"0.values": torch.randn(first.count, 2)[:, 0], "2.bias": torch.ones(1).expand(33)}
    with torch.no_grad():
        got = torch.func.functional_call(model, changed, (x,))
        torch.testing.assert_close(got, torch.func.functional_call(nn.Sequential(*model), changed, (x,)))


def test_its_dense_twin_is_a_plain_sequential() -> None:
    model, x = stack(), torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    model[4].eval()
    nested = SparseSequential(model[:4], nn.Sequential(model[4:], model[:0]))
    nested.register_forward_hook(lambda *given: given[-1] + 1)
    expected = nested(x)
    plain: Any = dense(nested)
    assert {type(module) for module in plain.modules()} == {nn.Sequential, nn.Linear, nn.ReLU, nn.Identity}
    assert [module.training for module in (plain, plain[0], plain[1][0][0])] == [True, True, False]
    torch.testing.assert_close(plain(x), expected)
