"""Switches on kernel positions, and kernels cut down to what is left."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers import branched, images, task
from pared.errors import SurgeryError
from pared.methods import Shrink, SignChange
from pared.nn import KernelSwitch, crop_kernels, switch_kernels
from pared.surgery import graph


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A convolution of some kind and what it takes."""
    dims = draw(st.integers(1, 3))
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]

    def each(low: int, high: int) -> Any:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    size, groups = each(1, 4), draw(st.sampled_from([1, 2]))
    mode = draw(st.sampled_from(["zeros", "zeros", "zeros", "replicate"]))
    padding = draw(st.sampled_from(["same", "valid"])) if draw(st.integers(0, 5)) == 0 else each(0, 2)
    stride = 1 if padding == "same" else each(1, 2)
    size = tuple(length | 1 for length in size) if padding == "same" else size  # torch warns of even ones
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 999)))
        conv = kind(
            2, 4, size, stride=stride, padding=padding, dilation=each(1, 2), groups=groups,
            bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64,
        )  # fmt: skip
        return conv, torch.randn(2, 2, *[9] * dims, dtype=torch.float64)


@given(convolutions(), st.data())
def test_a_cropped_kernel_computes_what_the_switched_one_did(
    case: tuple[nn.Module, torch.Tensor], data: st.DataObject
) -> None:
    conv, x = case
    plain = copy.deepcopy(conv)
    net = nn.Sequential(conv)
    found = switch_kernels(net)
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=0)
    if not found:
        assert plain.get_parameter("weight")[0, 0].numel() == 1
        return
    switch = found["0.kernel"]
    positions = switch.channels
    dead = data.draw(st.sets(st.integers(0, positions - 1), max_size=positions - 1))
    with torch.no_grad():
        switch.theta.uniform_(-2.0, 2.0)
        switch.theta[list(dead)] = 0.0
    before = net(x)
    small = crop_kernels(net)
    torch.testing.assert_close(small(x), before, rtol=1e-10, atol=1e-10)
    assert not any(type(module).__module__.startswith("pared") for module in small.modules())


def test_what_is_left_is_a_smaller_kernel() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 5, padding=2))
    switch = switch_kernels(net)["0.kernel"]
    with torch.no_grad():
        switch.theta.zero_()
        switch.theta.view(5, 5)[1:4, 2] = 1.0
    conv = crop_kernels(net).get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.kernel_size, conv.padding) == ((3, 1), (1, 0))
    alone = nn.Conv2d(1, 1, 3, padding=1)
    switch_kernels(alone)
    assert isinstance(crop_kernels(alone), nn.Conv2d)


def test_units_leave_through_switched_kernels_and_positions_die_in_a_session() -> None:
    net, (x, y) = branched(), images()
    method = Shrink(0.3, rule=SignChange(), kernels=True, every=1, lr_scale=20.0)
    session = method.bind(net, torch.optim.SGD(net.parameters(), 0.005), x[:2])
    kernels = [module for module in net.modules() if isinstance(module, KernelSwitch)]
    assert len(kernels) == 4
    assert len(session.switches) == 3 + 4
    assert {"inner", "last", "hidden"} == set(session.titles.values())
    for _ in range(60):
        (nn.functional.cross_entropy(net(x), y) + session.penalty()).backward()
        session.step()
        session.optimizer.zero_grad()
    assert any(not bool(kernel.alive.all()) for kernel in kernels)
    assert session.events
    net.eval()
    small = session.realize()
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < session.params
    graph(small, x[:2])


@pytest.mark.parametrize("kernels", [False, True])
def test_a_network_without_kernels_is_bound_as_ever(kernels: bool) -> None:
    net = nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
    session = Shrink(every=1, kernels=kernels).bind(net, torch.optim.SGD(net.parameters(), 0.1), task()[0][:2])
    assert list(session.switches) == ["0.switch"]


def test_depthwise_kernels_lose_channels_one_after_the_other() -> None:
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    first = nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU())
    net = nn.Sequential(*first, nn.Conv2d(8, 5, 1), nn.Flatten(), nn.Linear(180, 2)).double()
    session = Shrink(kernels=True).bind(net, torch.optim.Adam(net.parameters()), x, steps_per_epoch=9)
    switch = next(iter(session.switches.values()))
    net.eval()
    for _ in range(3):
        with torch.no_grad():
            switch.theta[0], switch.alive[0] = 0.0, False
            before = net(x)
        session.remove()
        torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-10)
    small = session.realize()
    depthwise = small.get_submodule("3")
    assert (depthwise.groups, depthwise.out_channels) == (5, 5)
    torch.testing.assert_close(small(x), net(x), rtol=1e-10, atol=1e-10)


def test_switches_fold_into_switched_kernels_beside_them() -> None:
    x = torch.randn(2, 1, 8, 8)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    session = Shrink(kernels=True, every=1).bind(net, torch.optim.Adam(net.parameters()), x)
    with torch.no_grad():
        for switch in session.switches.values():
            switch.theta.uniform_(-1.0, 1.0)
    small = session.realize()
    assert not any(type(module).__module__.startswith("pared") for module in small.modules())
    torch.testing.assert_close(small(x), net.eval()(x))


def test_a_convolution_under_two_names_comes_back_plain_under_both() -> None:
    net = nn.Module()
    net.first = net.second = nn.Conv2d(2, 2, 3)
    switch_kernels(net)
    crop_kernels(net)
    assert type(net.first) is nn.Conv2d
    assert net.first is net.second


def test_a_refused_binding_leaves_kernels_as_they_were() -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3)), torch.randn(2, 1, 8, 8)
    with pytest.raises(SurgeryError, match="nothing to shrink"):
        Shrink(kernels=True, every=1).bind(net, torch.optim.SGD(net.parameters(), 0.1), x)
    assert type(net[0]) is nn.Conv2d
    net(x)


def test_a_computed_kernel_is_left_alone() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3))
    assert switch_kernels(nn.Sequential(conv)) == {}
