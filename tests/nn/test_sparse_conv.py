"""SparseConv2d: a masked dense convolution in all but storage, and what a module owes."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pared
from pared.errors import ConfigError, RunError
from pared.nn import SparseConv2d, SparseLinear
from pared.nn.dense import dense
from pared.ops import Pattern

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def layer_of(*sizes: Any, density: float | None = 0.5, seed: int = 0, **options: Any) -> SparseConv2d:
    options = {"density": density, "dtype": torch.float64} | options
    return SparseConv2d(*sizes, generator=torch.Generator().manual_seed(seed), **options)


def agree(layer: SparseConv2d, x: Tensor) -> None:
    """Compare answers and gradients with the dense twin's."""
    dense = layer.to_conv()
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    y, expected = layer(ours), dense(theirs)
    torch.testing.assert_close(y, expected, **EXACT)
    dy = draw(9, *y.shape)
    y.backward(dy)
    expected.backward(dy)
    assert layer.values.grad is not None
    assert dense.weight.grad is not None
    pairs = [(ours.grad, theirs.grad), (layer.values.grad, dense.weight.grad.flatten()[layer.pattern.entries()])]
    if layer.bias is not None and dense.bias is not None:
        pairs.append((layer.bias.grad, dense.bias.grad))
    for one, other in pairs:
        torch.testing.assert_close(one, other, **EXACT)


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[Any, ...], tuple[int, int]]:
    """Return (kernel, stride, padding, dilation) and a size of images that the kernel fits."""
    pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, dilation, stride = draw(pairs), draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [draw(st.integers(low, low + 12)) for low in least]
    return (kernel, stride, padding, dilation), (size[0], size[1])


@pytest.mark.usefixtures("path")
@given(
    geometries(),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0]),
    st.booleans(),
    st.integers(0, 9),
)
def test_it_is_a_masked_dense_convolution(
    geometry: Any, channels: tuple[int, int], n: int, density: float, bias: bool, seed: int
) -> None:
    window, size = geometry
    layer = layer_of(*channels, *window, density=density, bias=bias, seed=seed)
    agree(layer, draw(seed, n, channels[0], *size))


@pytest.mark.usefixtures("path")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # the dense twin says so
@pytest.mark.parametrize("window", [(1, 1, 0), (3, 1, 1), (3, 1, "same"), (1, 2, 0), (3, 2, 1), (2, 1, "same")])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (32, 30)])
def test_usual_windows_on_usual_images(window: Any, size: tuple[int, int]) -> None:
    if size == (1, 1) and window[2] == 0 and window[0] > 1:
        return
    mask = torch.rand(9, 12, *[window[0]] * 2, generator=torch.Generator().manual_seed(0)) < 0.2
    mask[3], mask[:, 5] = False, False  # an empty row, and a channel that nobody reads
    agree(layer_of(12, 9, *window, mask=mask, density=None), draw(0, 3, 12, *size))


@pytest.mark.usefixtures("path")
def test_images_of_any_layout_and_one_alone() -> None:
    layer, x = layer_of(4, 5, 3, 1, 1), draw(0, 3, 8, 6, 7)[:, ::2]
    dense = layer.to_conv()
    expected = dense(x)
    views = x, x.contiguous(memory_format=torch.channels_last), x.transpose(0, 1).contiguous().transpose(0, 1)
    for one in views:
        y = layer(one)
        torch.testing.assert_close(y, expected, **EXACT)
        assert y.is_contiguous()  # as norms, pooling and dense layers read it best
    assert layer(x[0]).shape == expected[0].shape
    torch.testing.assert_close(layer(x[0]), expected[0], **EXACT)
    nn.functional.relu(layer(x), inplace=True).sum().backward()
    in_place = layer.values.grad
    layer.values.grad = None
    layer(x.contiguous(memory_format=torch.channels_last)).relu().sum().backward()
    torch.testing.assert_close(in_place, layer.values.grad)


def test_a_block_with_norms_pooling_and_a_sum_is_that_of_dense_layers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layer_of(6, 6, 3, 1, 1, bias=False), layer_of(6, 6, 1)
            self.norm, self.pool = nn.BatchNorm2d(6, dtype=torch.float64), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.second(self.norm(self.first(x)).relu()) + x)

    block, x = Block(), draw(0, 4, 6, 8, 8)
    twin = dense(copy.deepcopy(block))
    assert not any(isinstance(module, SparseConv2d) for module in twin.modules())
    for net in (block, twin):
        net(x).square().sum().backward()
    torch.testing.assert_close(block(x), twin(x), **EXACT)
    torch.testing.assert_close(block.norm.weight.grad, twin.get_parameter("norm.weight").grad, **EXACT)


def test_what_does_not_fit_is_refused() -> None:
    refused: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("either density or mask", (4, 5, 3), {"density": None}),
        ("density must be", (4, 5, 3), {"density": 1.5}),
        ("both sizes", (0, 5, 3), {}),
        ("kernel_size must be", (4, 5, 0), {}),
        ("kernel_size must be", (4, 5, (3, 3, 3)), {}),
        ("stride must be", (4, 5, 3, 0), {}),
        ("padding must be", (4, 5, 3, 1, -1), {}),
        ("padding must be", (4, 5, 3, 1, "full"), {}),
        ("padding must be", (4, 5, 3, 2, "same"), {}),
        ("dilation must be", (4, 5, 3, 1, 0, 0), {}),
        (r"mask must be \(5, 4, 3, 3\)", (4, 5, 3), {"density": None, "mask": torch.ones(5, 35)}),
        ("must be a matrix", (4, 5, 3), {"density": None, "mask": torch.ones(5, 4, 9)}),
    ]
    for match, sizes, options in refused:
        with pytest.raises(ConfigError, match=match):
            layer_of(*sizes, **options)
    for conv in (nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")):
        with pytest.raises(ConfigError, match="groups=1 and padding_mode='zeros'"):
            SparseConv2d.from_conv(conv)
    layer = layer_of(4, 5, 3)
    for x in (torch.ones(2, 3, 8, 8), torch.ones(4, 8), torch.ones(1, 2, 4, 8, 8)):
        with pytest.raises(ValueError, match=r"expected images \(4, height, width\)"):
            layer(x.double())
    with pytest.raises(ValueError, match="smaller than the kernel"):
        layer(torch.ones(1, 4, 2, 8).double())
    with pytest.raises(ConfigError, match="x like the values"):
        layer(torch.ones(1, 4, 8, 8))
    with pytest.raises(ConfigError, match="float32 or float64"):
        layer.bfloat16()(torch.ones(1, 4, 8, 8).bfloat16())


@pytest.mark.parametrize("bias", [True, False])
def test_from_a_dense_layer_and_back(bias: bool) -> None:
    conv = nn.Conv2d(4, 5, (3, 2), (2, 1), (1, 2), (1, 3), bias=bias, dtype=torch.float64).eval()
    with torch.no_grad():
        conv.weight[conv.weight.abs() < 0.1] = 0.0
    conv.weight.requires_grad_(False)
    before = torch.get_rng_state()
    conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    layer = SparseConv2d.from_conv(conv)
    back = layer.to_conv()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(back.weight, conv.weight)
    assert torch.equal(layer.to_dense(), conv.weight)
    assert layer.count == int((conv.weight != 0).sum()) < conv.weight.numel()
    assert str(back) == str(conv)
    assert (layer.training, back.training, layer.values.requires_grad) == (False, False, False)
    assert not back.weight.requires_grad
    assert (layer.bias is None) is not bias
    if layer.bias is not None and conv.bias is not None:
        assert layer.bias.requires_grad
        assert torch.equal(layer.bias, conv.bias)
    half = SparseConv2d.from_conv(conv, conv.weight > 0)
    assert torch.equal(half.to_dense(), conv.weight.clamp(min=0))
    for mask in (half.pattern, (conv.weight > 0).flatten(1)):
        assert torch.equal(SparseConv2d.from_conv(conv, mask).to_dense(), half.to_dense())
    x = draw(0, 2, 4, 9, 9)
    torch.testing.assert_close(layer(x), conv(x), **EXACT)


def test_a_one_by_one_convolution_is_a_linear_layer_of_pixels() -> None:
    linear = SparseLinear(6, 5, density=0.4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = SparseConv2d(6, 5, 1, mask=linear.pattern, dtype=torch.float64)
    layer.values.data.copy_(linear.values.data)
    x = draw(0, 2, 6, 3, 4)
    torch.testing.assert_close(layer(x), linear(x.movedim(1, -1)).movedim(-1, 1), **EXACT)


def test_copies_pickles_states_and_files(tmp_path: Any) -> None:
    layer, x = layer_of(4, 5, 3, 1, 1), draw(0, 2, 4, 6, 6)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(layer(x), other(x))
        assert other.values is not layer.values
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    assert set(layer.state_dict()) == {"values", "bias", "crow", "col"}
    for density in (0.0, 0.2, 1.0):
        other = layer_of(4, 5, 3, 1, 1, density=density, seed=1)
        values = other.values
        stream.seek(0)
        other.load_state_dict(torch.load(stream, weights_only=True))
        assert other.values is values
        agree(other, x)
        assert torch.equal(layer(x), other(x))
        path = pared.save(nn.Sequential(layer), tmp_path / "net.safetensors")
        loaded = pared.load(nn.Sequential(layer_of(4, 5, 3, 1, 1, density=density, seed=1)), path)
        assert torch.equal(loaded(x), layer(x))
    far = layer_of(4, 5, 3, 1, 1, device="meta")
    assert far(x.to("meta")).shape == (2, 5, 6, 6)
    far.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(far(x), layer(x))
    with pytest.raises(RunError, match="does not fit"):
        pared.load(nn.Sequential(layer_of(4, 5, 1)), path)
    with pytest.raises(RuntimeError, match="SparseConv2d: columns must lie in 0 to 35"):
        layer.load_state_dict(layer.state_dict() | {"col": layer.col + 36})
    assert "90 of 180 weights" in str(layer)


def test_a_new_pattern_keeps_what_stays() -> None:
    layer, x = layer_of(4, 5, 3), draw(0, 2, 4, 6, 6)
    layer(x).sum().backward()
    before = layer.to_dense().detach()
    pattern = Pattern.random(5, 36, 0.3, torch.Generator().manual_seed(1))
    layer.repattern(pattern)
    layer.zero_grad()
    mask = pattern.to_dense(torch.ones(pattern.count)).view(5, 4, 3, 3)
    assert torch.equal(layer.to_dense(), before * mask)
    agree(layer, x)


@pytest.mark.usefixtures("path")
def test_autocast_and_inference() -> None:
    layer, x = layer_of(4, 5, 3, dtype=torch.float32), draw(0, 2, 4, 6, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(layer(x), nn.Sequential(layer)(x))


@pytest.mark.usefixtures("path")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_networks_compile_and_export_whole() -> None:
    model = nn.Sequential(
        layer_of(3, 6, 3, 1, 1), nn.ReLU(), layer_of(6, 4, 3, 2, 1), nn.Flatten(), nn.Linear(64, 2).double()
    )
    x = draw(0, 2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x).sum(), list(model.parameters()))
    for one, other in zip(got, torch.autograd.grad(model(x).sum(), list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert "csr_conv" in program.graph_module.code
    torch.testing.assert_close(program.module()(draw(1, 5, 3, 8, 8)), model(draw(1, 5, 3, 8, 8)))


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_exports_are_dense_and_right(suffix: str, tmp_path: Any) -> None:
    model = nn.Sequential(layer_of(3, 6, 3, 1, "same", dtype=torch.float32), nn.ReLU(), nn.Flatten(), nn.Linear(150, 2))
    x = draw(0, 3, 3, 5, 5, dtype=torch.float32)
    path = pared.export(model, tmp_path / f"net.{suffix}", x)
    assert isinstance(model[0], SparseConv2d)
    if suffix == "pt2":
        program = torch.export.load(path)
        assert not any("pared" in str(node.target) for node in program.graph.nodes)
        assert torch.allclose(program.module()(x), model(x), atol=1e-6)
