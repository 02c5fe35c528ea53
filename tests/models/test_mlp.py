import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pared.errors import ConfigError
from pared.models import mlp

WIDTH = st.integers(1, 6)


@given(WIDTH, WIDTH, st.lists(WIDTH, max_size=3))
def test_widths_and_size_are_those_asked_for(inputs: int, outputs: int, hidden: list[int]) -> None:
    model = mlp(inputs, outputs, hidden, generator=torch.Generator().manual_seed(0))
    widths = [inputs, *hidden, outputs]
    pairs = list(pairwise(widths))
    assert sum(p.numel() for p in model.parameters()) == sum(a * b + b for a, b in pairs)
    assert [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)] == pairs
    assert isinstance(model[-1], nn.Linear)
    assert model(torch.ones(2, inputs)).shape == (2, outputs)


def test_weights_come_from_the_generator_within_their_bound() -> None:
    state = torch.get_rng_state()
    first, again = (mlp(9, 2, (400,), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    weight = first[0].weight
    assert isinstance(weight, torch.Tensor)
    assert weight.abs().max() <= 1 / math.sqrt(9)
    assert weight.std().item() == pytest.approx(1 / math.sqrt(27), rel=0.05)


def test_another_activation_and_bad_widths() -> None:
    assert isinstance(mlp(2, 2, (3,), activation=nn.Tanh)[1], nn.Tanh)
    for bad in ((0, 1, (2,)), (1, 0, (2,)), (1, 1, (2, 0))):
        with pytest.raises(ConfigError, match="every width"):
            mlp(*bad)
