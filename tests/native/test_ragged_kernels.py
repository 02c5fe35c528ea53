"""The compiled step on ragged rows, as sparse layers have, for every instruction set of this processor."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.native import disabled, library, sphere
from pared.ops import dual_exponent, signed_power
from pared.optim import LpSGD, kernels
from pared.optim.kernels import Rows, normalise_
from pared.optim.neurons import Ragged

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built")

ISAS = range(library().isa + 1 if library() else 0)  # pyright: ignore[reportOptionalMemberAccess]
MOVE = sphere.Move(0.9, False, 1.0, 0.1, 3.0, False, False)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def ends(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@settings(max_examples=250, deadline=None)
@given(
    st.integers(0, 999),
    st.lists(st.integers(0, 70), min_size=1, max_size=7),
    st.floats(1.05, 6.0),
    st.sampled_from([0.0, 0.005, 0.1, 0.7]),
    st.sampled_from([(0.0, False), (0.9, False), (0.9, True)]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(ISAS),
)
def test_steps_equal_torchs(
    seed: int,
    lengths: list[int],
    p: float,
    lr: float,
    gamma: tuple[float, bool],
    direct: bool,
    dtype: torch.dtype,
    isa: int,
) -> None:
    q, (momentum, nesterov), crow = dual_exponent(p), gamma, ends(lengths)
    count = int(crow[-1])
    over = Ragged(crow, count)
    weight = normalise_(draw(seed, count, dtype=dtype), p, over)
    dual = None if direct else normalise_(signed_power(weight, p - 1.0), q, over)
    ours = Rows(weight, weight, dual, torch.zeros_like(weight) if momentum else None, None, over).each(torch.clone)
    for number in range(4):
        grad = draw(seed + number, count, dtype=dtype) * 10.0 ** (number - 2)
        grad[int(crow[-2]) :] *= seed % 3 > 0
        ours = ours._replace(grad=grad)
        twin = ours.each(torch.clone)
        options = (momentum, nesterov, 1.0, number % 2 == 0, seed % 4 == 0)
        scaled = options[4] or not kernels.stays_long(lr, q)
        move = sphere.Move(momentum, nesterov, 1.0, lr, q, scaled, options[3])
        sphere.step(*ours[:5], move, crow=crow, isa=isa)
        with disabled():
            kernels.advance_lp(twin, options, q, lr)
        eps = torch.finfo(dtype).eps
        loose = eps * (30.0 if lr < 0.4 else 2000.0)
        if ours.momentum is not None:
            torch.testing.assert_close(ours.momentum, twin.momentum, rtol=4 * eps, atol=4 * eps)
        if ours.dual is not None:
            torch.testing.assert_close(ours.dual, twin.dual, rtol=0, atol=loose)
        else:
            torch.testing.assert_close(ours.weight, twin.weight, rtol=0, atol=10.0 * loose ** min(1.0, q - 1.0))


@pytest.mark.parametrize("form", ["momentum", "direct"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(form: Any, nesterov: bool) -> None:
    """Many lengths, so that rows end anywhere in a vector where one thread's share ends and another's begins."""
    lengths = torch.randint(0, 400, (801,), generator=torch.Generator().manual_seed(0)).tolist()
    crow = ends(lengths)
    before, made = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            w = nn.Parameter(draw(0, int(crow[-1])))
            optimizer = LpSGD([{"params": [w], "crow": [crow]}], lr=0.01, p=1.3, form=form, nesterov=nesterov)
            for step in range(3):
                w.grad = draw(step, len(w))
                optimizer.step()
            made.append((w.detach(), optimizer.state[w]["momentum_buffer"]))
    finally:
        torch.set_num_threads(before)
    for weight, momentum in made[1:]:
        assert torch.equal(weight, made[0][0])
        assert torch.equal(momentum, made[0][1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["momentum", "direct"])
def test_what_is_no_number_stays_in_its_row(bad: float, form: Any) -> None:
    w, crow = nn.Parameter(draw(0, 100)), ends([13, 5, 40, 42])
    optimizer = LpSGD([{"params": [w], "crow": [crow]}], lr=0.01, p=1.3, form=form)
    w.grad = draw(1, 100)
    w.grad[15] = bad
    optimizer.step()
    assert w.detach()[13:18].isnan().any()
    assert w.detach()[:13].isfinite().all()
    assert w.detach()[18:].isfinite().all()


@pytest.mark.parametrize("crow", [[0, 3, 11], [0, 9, 3, 10], [1, 3, 10], [0, -1, 10], [0, 2**31 - 1, 10], [0, 9], [0]])
@pytest.mark.parametrize("isa", ISAS)
def test_rows_that_are_wrong_are_found_before_they_are_followed(crow: list[int], isa: int) -> None:
    weight, grad, dual, momentum = tensors = draw(0, 4, 10).unbind()
    kept = [x.clone() for x in tensors]
    with pytest.raises(ConfigError, match="crow must rise from 0 to 10"):
        sphere.step(weight, grad, dual, momentum, None, MOVE, crow=torch.tensor(crow, dtype=torch.int32), isa=isa)
    assert all(map(torch.equal, tensors, kept))


@pytest.mark.parametrize(
    "change",
    [
        lambda crow: crow.long(),
        lambda crow: crow.float(),
        lambda crow: crow.view(1, -1),
        lambda crow: crow[:0],
        lambda crow: crow[0],
        lambda crow: crow.to("meta"),
        lambda crow: crow.repeat_interleave(2)[::2],
    ],
)
def test_indices_of_another_kind_are_refused(change: Any) -> None:
    x, crow = draw(0, 10), ends([4, 6])
    assert sphere.serves(x, x, None, None, None, crow)
    assert not sphere.serves(x, x, None, None, None, change(crow))
    assert not sphere.serves(x.view(2, 5), x.view(2, 5), None, None, None, crow)
    with pytest.raises(ConfigError, match="crow must be a contiguous int32 vector"):
        sphere.step(x, x.clone(), None, None, None, MOVE, crow=change(crow))


def test_the_optimizer_uses_the_kernel_for_many_short_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    step = sphere.step
    monkeypatch.setattr(sphere, "step", lambda *a, **k: (used.append(1), step(*a, **k)))
    w = nn.Parameter(draw(0, 900))
    optimizer = LpSGD([{"params": [w], "crow": [ends([3] * 300)]}], lr=0.01, p=1.3)
    w.grad = draw(1, 900)
    optimizer.step()
    assert used
