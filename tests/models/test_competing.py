"""Networks whose blocks, branches and inputs compete: their sizes, and that what lost can leave."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pared
from pared.errors import ConfigError, SurgeryError
from pared.models import (
    BranchedBlock,
    DenseBlock,
    DenseLayer,
    branch_groups,
    densenet,
    depth_groups,
    input_groups,
    resnet,
    resnext,
    wide_resnet,
)
from pared.nn import Channels, Gate, Switched
from pared.surgery import Plan, apply

IMAGE = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def trained(model: nn.Sequential) -> nn.Sequential:
    """In float64, with norms that do something."""
    model.double()
    for seed in range(3):
        noise = torch.randn(IMAGE.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        model(IMAGE + noise)
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(number))
    return model.eval()


def put_gates(model: nn.Sequential, groups: Mapping[str, Channels], lost: int) -> dict[str, Gate]:
    """Gates where `groups` says, of which component `lost` is dead and killed."""
    gates: dict[str, Gate] = {}
    for title, group in groups.items():
        name, sizes = group.name, group.sizes
        parent, _, key = name.rpartition(".")
        gates[title] = gate = Gate(len(sizes), dim=1, sizes=sizes, dtype=torch.float64)
        gate.theta.data.copy_(torch.linspace(-0.3, 0.3, len(sizes)))
        gate.theta.data[lost] = -20.0
        gate.kill(gate.shares() == 0)
        assert gate.alive.logical_not().nonzero().tolist() == [[lost]]
        setattr(model.get_submodule(parent), key, Switched(model.get_submodule(name), gate))
    return gates


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    loss = model(IMAGE).square().mean()
    loss.backward()
    optimizer.step()  # type: ignore[call-arg]
    optimizer.zero_grad()
    return loss.detach()


def test_blocks_of_a_stage_compete() -> None:
    model = resnet((2, 1, 3), 5, width=4)
    assert depth_groups(model) == {
        "stage 0": ("3.norm2", "4.norm2"),
        "stage 1": ("5.norm2",),
        "stage 2": ("6.norm2", "7.norm2", "8.norm2"),
    }
    assert all(isinstance(model.get_submodule(n), nn.BatchNorm2d) for ns in depth_groups(model).values() for n in ns)
    assert [len(names) for names in depth_groups(nn.ModuleDict({"net": wide_resnet(22)})).values()] == [3, 4, 3]


@pytest.mark.parametrize(("branches", "million"), [(8, 34.4), (16, 68.2)])
def test_branched_networks_have_the_sizes_of_the_paper(branches: int, million: float) -> None:
    with torch.device("meta"):
        model = resnext(width=64, branches=branches)
    assert params(model) / 1e6 == pytest.approx(million, abs=0.05)


def small_resnext(branches: int = 4) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    return trained(resnext((2, 1), 5, branches=branches, width=2, stem=4, generator=generator))


def test_a_block_is_the_sum_of_its_branches() -> None:
    model = small_resnext()
    block: Any = model[4]
    assert isinstance(block, BranchedBlock)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).relu()
    total = torch.zeros_like(x)
    for branch in range(4):
        alone, rows = copy.deepcopy(block), torch.zeros(8, dtype=torch.float64)
        rows[2 * branch : 2 * branch + 2] = 1.0
        alone.conv3.weight.data.mul_(rows.view(1, -1, 1, 1))  # only this branch is told on
        total += alone.conv3(alone.relu2(alone.norm2(alone.conv2(alone.relu1(alone.norm1(alone.conv1(x)))))))
    torch.testing.assert_close(block(x), (x + block.norm3(total)).relu())


@pytest.mark.parametrize("sizes", [(1, 3, 8, 8), (2, 3, 9, 7)])
def test_shapes_of_images(sizes: tuple[int, ...]) -> None:
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    assert resnext((1, 1), 5, branches=2, width=2, stem=4).eval()(x).shape == (sizes[0], 5)
    assert densenet((2, 1), 5, growth=3).eval()(x).shape == (sizes[0], 5)
    features = densenet((2, 1), 5, growth=3, bottleneck=False, compression=1.0).eval()[:2](x)
    assert features.shape == (sizes[0], 16 + 2 * 3, *sizes[2:])


def test_whole_branches_leave() -> None:
    model = small_resnext()
    groups = branch_groups(model)
    assert groups == {n: Channels(f"{n}.relu2", (size,) * 4) for n, size in (("3", 2), ("4", 2), ("5", 4))}
    put_gates(model, groups, lost=2)
    graph, optimizer = pared.graph(model, IMAGE), torch.optim.Adam(model.parameters(), lr=1e-3)
    step(model.eval(), optimizer)
    before, count = model(IMAGE), params(model)
    for title in groups:
        space = graph.at(f"{title}.relu2.switch.theta")
        pared.remove(model, {space.name: [2]}, graph=graph, optimizer=optimizer)
    torch.testing.assert_close(model(IMAGE), before, rtol=1e-10, atol=1e-10)
    for title, group in groups.items():
        sizes = group.sizes
        block: Any = model.get_submodule(title)
        inner = 3 * sizes[0]
        assert (block.conv2.groups, block.conv2.in_channels, block.conv2.out_channels) == (3, inner, inner)
        assert (block.conv1.out_channels, block.conv3.in_channels, block.norm2.num_features) == (inner,) * 3
        assert block.relu2.switch.theta.shape == (3,)
    assert params(model) < count
    assert branch_groups(model) == {t: Channels(group.name, group.sizes[:3]) for t, group in groups.items()}
    torch.testing.assert_close(pared.fold(model, IMAGE)(IMAGE), before, rtol=1e-10, atol=1e-10)
    step(model, optimizer)  # the optimizer follows


def test_all_branches_but_one_leave_and_the_graph_stays_true() -> None:
    model = small_resnext(branches=3)
    gates = put_gates(model, branch_groups(model), lost=1)
    graph = pared.graph(model, IMAGE)
    gates["4"].theta.data[2] = -20.0
    gates["4"].kill(gates["4"].shares() == 0)
    before = model(IMAGE)
    pared.remove(model, {graph.at("4.relu2.switch.theta").name: [1, 2]}, graph=graph)
    torch.testing.assert_close(model(IMAGE), before, rtol=1e-10, atol=1e-10)
    assert model.get_submodule("4.conv2").groups == 1
    pared.remove(model, {graph.at("3.relu2.switch.theta").name: [1]}, graph=graph)
    torch.testing.assert_close(model(IMAGE), before, rtol=1e-10, atol=1e-10)


def test_what_surgery_refuses_of_branches() -> None:
    model = small_resnext()
    gates = put_gates(model, branch_groups(model), lost=2)
    gates["3"].theta.data[0] = -20.0  # dead, and not killed: its strength counts in the threshold
    assert gates["3"].shares()[0] == 0
    graph, before = pared.graph(model, IMAGE), model(IMAGE)
    with pytest.raises(SurgeryError, match="is alive"):
        pared.remove(model, {graph.at("3.relu2.switch.theta").name: [0]}, graph=graph)
    with pytest.raises(SurgeryError, match="its entries are copies of one another"):  # one channel of every branch
        pared.remove(model, {"3.conv2:1": [0]}, graph=graph)
    assert torch.equal(model(IMAGE), before)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 769_162),  # BC, L = 100, k = 12: 0.8 million in the paper
        ({"layers": (12,) * 3, "bottleneck": False, "compression": 1.0}, 1_019_722),  # L = 40, k = 12: 1.0
        ({"layers": (32,) * 3, "bottleneck": False, "compression": 1.0}, 6_979_642),  # L = 100, k = 12: 7.0
        ({"layers": (41,) * 3, "growth": 24}, 15_324_406),  # BC, L = 250, k = 24: 15.3
        ({"layers": (31,) * 3, "growth": 40}, 25_624_430),  # BC, L = 190, k = 40: 25.6
    ],
)
def test_dense_networks_have_the_sizes_of_the_paper(options: dict[str, Any], count: int) -> None:
    assert params(densenet(**options)) == count


def small_densenet(bottleneck: bool = True) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    return trained(densenet((3, 2), 5, growth=4, stem=6, bottleneck=bottleneck, generator=generator))


@pytest.mark.parametrize("bottleneck", [True, False])
def test_layers_read_all_that_was_made_before_them(bottleneck: bool) -> None:
    model = small_densenet(bottleneck)
    block: Any = model[1]
    assert isinstance(block, DenseBlock)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    features = [x]
    for layer in block.layers:
        assert isinstance(layer, DenseLayer)
        y = layer.conv1(layer.norm1(torch.cat(features, 1)).relu())
        features.append(layer.conv2(layer.norm2(y).relu()) if bottleneck else y)
    torch.testing.assert_close(block(x), torch.cat(features, 1))
    assert input_groups(model) == {
        "1.layers.1": Channels("1.layers.1.relu1", (6, 4)),
        "1.layers.2": Channels("1.layers.2.relu1", (6, 4, 4)),
        "3.layers.1": Channels("3.layers.1.relu1", (9, 4)),
    }
    assert input_groups(block)["layers.1"] == Channels("layers.1.relu1", (6, 4))


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("lost", [0, 1])
def test_inputs_leave(bottleneck: bool, lost: int, tmp_path: Path) -> None:
    model = small_densenet(bottleneck)
    groups = input_groups(model)
    put_gates(model, groups, lost)
    gate: Any = model.get_submodule("1.layers.2.relu1.switch")
    gate.register_buffer("awake", torch.arange(3))  # what a rule of death remembers
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step(model, optimizer)
    before = model(IMAGE)
    for title, group in groups.items():
        sizes, layer = group.sizes, model.get_submodule(title)
        assert isinstance(layer, DenseLayer)
        plan = layer.without([lost], sizes, title)
        apply(Plan.from_json(plan.to_json()), model, optimizer=optimizer)
        left = sum(sizes) - sizes[lost]
        assert layer.inputs == tuple(number for number in range(len(sizes)) if number != lost)
        assert (layer.norm1.num_features, layer.norm1.running_mean.shape) == (left, (left,))  # type: ignore[union-attr]
        assert (layer.conv1.in_channels, layer.conv1.weight.shape[1]) == (left, left)
        assert layer.relu1.switch.channels == left  # type: ignore[union-attr]
    torch.testing.assert_close(model(IMAGE), before, rtol=1e-10, atol=1e-10)
    assert gate.theta.shape == (2,)
    assert gate.awake.tolist() == [number for number in range(3) if number != lost]
    assert input_groups(model)["1.layers.2"].sizes == ((4, 4) if lost == 0 else (6, 4))
    fresh = small_densenet(bottleneck)
    put_gates(fresh, groups, lost)
    fresh.get_submodule("1.layers.2.relu1.switch").register_buffer("awake", torch.arange(3))
    pared.load(fresh, pared.save(model, tmp_path / "net.safetensors"))
    assert torch.equal(fresh.eval()(IMAGE), model(IMAGE))
    step(model, optimizer)  # the optimizer follows


def test_inputs_leave_twice_and_without_a_gate_and_units_after_them() -> None:
    model = small_densenet()
    layer: Any = model[1].layers[2]  # type: ignore[union-attr]
    with torch.no_grad():
        layer.conv1.weight[:, :10] = 0.0
    before = model(IMAGE)
    apply(layer.without([1], (6, 4, 4), "1.layers.2"), model)
    assert layer.inputs == (0, 2)
    apply(layer.without([0], (6, 4), "1.layers.2"), model)
    assert layer.inputs == (2,)
    assert layer.norm1.num_features == 4
    torch.testing.assert_close(model(IMAGE), before, rtol=1e-10, atol=1e-10)
    graph = pared.graph(model, IMAGE)
    with torch.no_grad():
        layer.norm2.weight[3], layer.norm2.bias[3] = 0.0, 0.0
    before = model(IMAGE)
    pared.remove(model, {"1.layers.2.conv1": [3]}, graph=graph)
    torch.testing.assert_close(model(IMAGE), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("gone", "sizes", "message"),
    [
        ([3], (6, 4, 4), "reads 3 features and must keep one; got \\[3\\]"),
        ([0, 1, 2], (6, 4, 4), "must keep one"),
        ([-1], (6, 4, 4), "must keep one; got \\[-1\\]"),
        ([0], (6, 8), "reads 3 features of 14 channels"),
        ([0], (6, 4, 5), "reads 3 features of 14 channels"),
    ],
)
def test_a_layer_refuses_to_lose_what_it_does_not_read(gone: list[int], sizes: tuple[int, ...], message: str) -> None:
    layer: Any = small_densenet()[1].layers[2]  # type: ignore[union-attr]
    with pytest.raises(SurgeryError, match=message):
        layer.without(gone, sizes, "1.layers.2")


@pytest.mark.parametrize("compression", [0.0, 1.1, -1.0])
def test_sizes_that_are_refused(compression: float) -> None:
    with pytest.raises(ConfigError, match="compression must be above 0 and at most 1"):
        densenet(compression=compression)
    for bad in ({"layers": ()}, {"layers": (2, 0)}, {"growth": 0}, {"stem": 0}, {"outputs": 0}, {"channels": 0}):
        with pytest.raises(ConfigError, match="layers and widths must be at least 1"):
            densenet(**{"layers": (1,), **bad})
    for bad in ({"blocks": ()}, {"blocks": (1, 0)}, {"branches": 0}, {"width": 0}, {"stem": 0}, {"outputs": 0}):
        with pytest.raises(ConfigError, match="blocks, branches and widths must be at least 1"):
            resnext(**{"blocks": (1,), **bad})


def test_weights_come_from_the_generator_and_global_randomness_is_left_alone() -> None:
    state = torch.get_rng_state()
    for make in (lambda g: resnext((1,), branches=2, generator=g), lambda g: densenet((2,), generator=g)):
        first, again, other = (make(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        assert not torch.equal(first[0].weight, other[0].weight)  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())
