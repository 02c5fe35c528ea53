"""SparseLinear: a masked dense layer in all but storage, and what a module owes."""

import copy
import io
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn import SparseLinear
from pared.nn.sparse_layer import gather
from pared.ops import Pattern


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def layer_of(inputs: int = 6, outputs: int = 5, density: float = 0.5, seed: int = 0, **options: Any) -> SparseLinear:
    return SparseLinear(inputs, outputs, density=density, generator=torch.Generator().manual_seed(seed), **options)


def stack() -> nn.Sequential:
    return nn.Sequential(layer_of(6, 8), nn.ReLU(), layer_of(8, 7), nn.ReLU(), nn.Linear(7, 2))


@pytest.mark.usefixtures("path")
@given(st.lists(st.integers(0, 5), max_size=3), st.floats(0.0, 1.0), st.booleans(), st.integers(0, 9))
def test_it_is_a_masked_dense_layer(lead: list[int], density: float, bias: bool, seed: int) -> None:
    layer = layer_of(density=density, seed=seed, bias=bias, dtype=torch.float64)
    dense = layer.to_linear()
    x = draw(seed, *lead, 6, dtype=torch.float64)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    y, expected = layer(ours), dense(theirs)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    dy = draw(seed + 1, *lead, 5, dtype=torch.float64)
    y.backward(dy)
    expected.backward(dy)
    for one, other in ((ours, theirs), *(((layer.bias, dense.bias),) if bias else ())):
        assert one is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)
    assert layer.values.grad is not None
    assert dense.weight.grad is not None
    torch.testing.assert_close(
        layer.values.grad, dense.weight.grad.flatten()[layer.pattern.entries()], rtol=1e-10, atol=1e-10
    )


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_it_is_training_a_masked_network(optimizer: Any) -> None:
    model = stack().double()
    twin = nn.Sequential(*(m.to_linear() if isinstance(m, SparseLinear) else copy.deepcopy(m) for m in model))
    masks = [m.weight != 0 if isinstance(m, nn.Linear) else None for m in twin]
    x, y = draw(0, 30, 6, dtype=torch.float64), torch.arange(30) % 2
    one, other = (optimizer(m.parameters(), lr=0.05) for m in (model, twin))
    for _ in range(5):
        for net, opt in ((model, one), (twin, other)):
            opt.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            for layer, mask in zip(twin, masks, strict=True):
                if net is twin and isinstance(layer, nn.Linear) and layer.weight.grad is not None and mask is not None:
                    layer.weight.grad.mul_(mask)
            opt.step()
    for layer, dense in zip(model, twin, strict=True):
        if isinstance(layer, SparseLinear) and isinstance(dense, nn.Linear):
            torch.testing.assert_close(layer.to_dense(), dense.weight, rtol=1e-10, atol=1e-10)


def test_neighbours_pass_on_what_lies_features_major_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    import pared.nn.sparse_linear as module

    seen: list[Tensor] = []
    real = module.csr_product
    monkeypatch.setattr(module, "csr_product", lambda x, *rest: (seen.append(x), real(x, *rest))[1])
    first, second = layer_of(6, 8), layer_of(8, 7)
    y = first(draw(0, 10, 6))
    assert y.shape == (10, 8)
    assert y.t().is_contiguous()
    hidden = y.relu()
    assert hidden.t().is_contiguous()
    second(hidden)
    assert seen[1].data_ptr() == hidden.data_ptr()
    deep = draw(1, 2, 5, 6)
    hidden = torch.tanh(first(deep))
    second(hidden)
    assert seen[3].data_ptr() == hidden.data_ptr()
    row = first(deep[0, 0])  # one row lies both ways
    second(row)
    assert seen[5].data_ptr() == row.data_ptr()


@pytest.mark.usefixtures("path")
def test_gradients_stay_features_major_between_neighbours() -> None:
    first, second = layer_of(6, 8), layer_of(8, 7)
    between: list[Tensor] = []
    hidden = first(draw(0, 10, 6))
    hidden.register_hook(between.append)
    second(hidden.relu()).sum().backward()
    assert between[0].t().is_contiguous()


@pytest.mark.usefixtures("path")
def test_in_place_activations_and_inputs_of_any_layout() -> None:
    layer, x = layer_of(), draw(0, 4, 12)[:, ::2]
    expected = nn.functional.linear(x, layer.to_dense(), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    nn.functional.relu(layer(x), inplace=True).sum().backward()
    given_grad = layer.values.grad
    layer.values.grad = None
    layer(x).relu().sum().backward()
    torch.testing.assert_close(given_grad, layer.values.grad)


def test_what_does_not_fit_is_refused() -> None:
    mask = torch.ones(5, 6, dtype=torch.bool)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("either density or mask", {}),
        ("either density or mask", {"density": 0.5, "mask": mask}),
        ("density must be", {"density": 1.5}),
        ("mask must be", {"mask": mask.t()}),
        ("matrix", {"mask": mask[0]}),
    ]
    for match, options in refused:
        with pytest.raises(ConfigError, match=match):
            SparseLinear(6, 5, **options)
    with pytest.raises(ConfigError, match="sizes must be"):
        SparseLinear(0, 5, density=0.5)
    layer = layer_of()
    for x in (torch.ones(4, 5), torch.ones(())):
        with pytest.raises(ValueError, match="expected 6 features"):
            layer(x)
    with pytest.raises(ConfigError, match="x like the values"):
        layer(draw(0, 2, 6).double())
    with pytest.raises(ConfigError, match="float32 or float64"):
        layer.bfloat16()(draw(0, 2, 6).bfloat16())


def test_values_start_by_the_living_inputs_of_their_neuron() -> None:
    mask = torch.zeros(2, 4000, dtype=torch.bool)
    mask[0], mask[1, :1000] = True, True
    layer = SparseLinear(4000, 2, mask=mask, generator=torch.Generator().manual_seed(0))
    rows = layer.to_dense().detach()
    assert rows[0].std().item() == pytest.approx(math.sqrt(2 / 4000), rel=0.05)
    assert rows[1, :1000].std().item() == pytest.approx(math.sqrt(2 / 1000), rel=0.1)
    assert layer.bias is not None
    assert layer.bias.eq(0).all()
    first = layer.values.detach().clone()
    layer.reset_parameters(torch.Generator().manual_seed(1))
    assert not torch.equal(layer.values, first)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    assert torch.equal(layer.values, first)


@pytest.mark.parametrize("bias", [True, False])
def test_from_a_dense_layer_and_back(bias: bool) -> None:
    linear = nn.Linear(6, 5, bias=bias, dtype=torch.float64).eval()
    with torch.no_grad():
        linear.weight[linear.weight.abs() < 0.2] = 0.0
    linear.weight.requires_grad_(False)
    before = torch.get_rng_state()
    layer = SparseLinear.from_linear(linear)
    back = layer.to_linear()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(back.weight, linear.weight)
    assert layer.count == int((linear.weight != 0).sum())
    assert not layer.training
    assert not back.training
    assert not layer.values.requires_grad
    assert not back.weight.requires_grad
    assert (layer.bias is None) is not bias
    if layer.bias is not None:
        assert torch.equal(layer.bias, linear.bias)
        assert layer.bias.requires_grad
        assert layer.bias is not linear.bias
    half = SparseLinear.from_linear(linear, linear.weight > 0)
    assert torch.equal(half.to_dense(), linear.weight.clamp(min=0))
    assert torch.equal(SparseLinear.from_linear(linear, half.pattern).to_dense(), half.to_dense())


def same(one: SparseLinear, other: SparseLinear) -> bool:
    pairs = zip(
        itertools.chain(one.parameters(), one.buffers()),
        itertools.chain(other.parameters(), other.buffers()),
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in pairs)


def test_copies_and_pickles_are_whole_and_apart() -> None:
    layer = layer_of()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same(layer, other)
        with torch.no_grad():
            other.values.add_(1.0)
        assert not torch.equal(other.values, layer.values)
        assert torch.equal(layer(torch.ones(6)).detach(), copy.deepcopy(layer)(torch.ones(6)).detach())


def test_types_and_devices_reach_what_they_should() -> None:
    layer = layer_of().double()
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert {b.dtype for b in layer.buffers()} == {torch.int32}
    assert layer(torch.ones(2, 6, dtype=torch.float64)).dtype == torch.float64
    assert set(layer.state_dict()) == {"values", "bias", "crow", "col"}
    assert [name for name, _ in layer.named_parameters()] == ["values", "bias"]
    far = SparseLinear(6, 5, density=0.5, device="meta")
    assert all(t.is_meta for t in (*far.parameters(), *far.buffers()))
    assert far(torch.ones(3, 6, device="meta")).shape == (3, 5)
    with pytest.raises(ConfigError, match="x like the values"):
        far(torch.ones(3, 6, device="meta", dtype=torch.float64))
    assert layer_of().extra_repr() == "in_features=6, out_features=5, bias=True, 15 of 30 weights"


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
def test_a_state_dict_brings_its_own_pattern(density: float) -> None:
    source, layer = layer_of(density=density, seed=1), layer_of(seed=2)
    stream = io.BytesIO()
    torch.save(source.state_dict(), stream)
    stream.seek(0)
    values, x = layer.values, draw(0, 3, 6)
    loss = layer(x).sum()
    loss.backward()  # and is still there, with nodes that know the old length
    layer.load_state_dict(torch.load(stream, weights_only=True))
    assert layer.values is values
    assert same(layer, source)
    assert torch.equal(layer(x), source(x))
    layer.values.grad = None
    layer(x).sum().backward()
    source(x).sum().backward()
    assert layer.values.grad is not None
    assert source.values.grad is not None
    assert torch.equal(layer.values.grad, source.values.grad)
    del loss


def test_loading_the_same_pattern_keeps_the_gradient() -> None:
    layer = layer_of()
    layer(torch.ones(6)).sum().backward()
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert layer.values.grad is not None


def test_loading_onto_a_layer_without_storage() -> None:
    source, layer = layer_of(density=0.7), SparseLinear(6, 5, density=0.5, device="meta")
    layer.load_state_dict(source.state_dict(), assign=True)
    assert same(layer, source)
    assert torch.equal(layer(torch.ones(6)), source(torch.ones(6)))
    wide = {k: v.long() if k in ("crow", "col") else v for k, v in source.state_dict().items()}
    with pytest.raises(RuntimeError, match="int32"):
        layer.load_state_dict(wide, assign=True)
    other = layer_of(density=0.2)
    other.load_state_dict(wide)
    assert same(other, source)


def test_a_damaged_state_dict_changes_nothing() -> None:
    model = stack()
    before = copy.deepcopy(model.state_dict())
    damages: list[tuple[str, Any]] = [
        ("0.col", lambda t: t + 6),
        ("0.col", lambda t: t.flip(0)),
        ("0.col", lambda t: t[:-1]),
        ("0.crow", lambda t: t[:-1]),
        ("0.crow", lambda t: t.flip(0)),
        ("0.values", lambda t: t[:-1]),
    ]
    for name, damage in damages:
        state = copy.deepcopy(before)
        state[name] = damage(state[name])
        with pytest.raises(RuntimeError, match="0: "):
            model.load_state_dict(state)
        for key in ("0.values", "0.crow", "0.col"):
            assert torch.equal(model.state_dict()[key], before[key])
    part = {k: v for k, v in layer_of(density=0.9).state_dict().items() if k != "col"}
    with pytest.raises(RuntimeError, match="go together"):
        layer_of().load_state_dict(part)


@pytest.mark.usefixtures("path")
@given(st.integers(0, 99), st.floats(0.0, 1.0))
def test_a_new_pattern_keeps_what_stays_and_begins_the_rest_at_zero(seed: int, density: float) -> None:
    layer = layer_of(density=0.5)
    x = draw(0, 4, 6)
    loss = layer(x).sum()
    loss.backward()
    values, before, grad = layer.values, layer.to_dense().detach(), layer.values.grad
    assert grad is not None
    slopes = layer.pattern.to_dense(grad)
    new = Pattern.random(5, 6, density, torch.Generator().manual_seed(seed))
    mask = new.to_dense(torch.ones(new.count))
    source = layer.repattern(new)
    assert layer.values is values
    assert layer.count == new.count
    assert torch.equal(layer.to_dense(), before * mask)
    assert values.grad is not None
    assert torch.equal(new.to_dense(values.grad), slopes * mask)
    assert torch.equal(gather(torch.ones(15), source), (source >= 0).float())
    layer.values.grad = None
    layer(x).sum().backward()  # while the old graph is alive
    dense = layer.to_linear()
    dense(x).sum().backward()
    assert dense.weight.grad is not None
    again = layer.values.grad
    assert again is not None
    torch.testing.assert_close(layer.pattern.to_dense(again), dense.weight.grad * mask)
    del loss


def test_a_new_pattern_takes_values_from_where_it_is_told() -> None:
    layer = SparseLinear(3, 1, mask=torch.tensor([[True, True, False]]))
    old = layer.values.detach().clone()
    pattern = Pattern.from_mask(torch.tensor([[True, True, True]]))
    layer.repattern(pattern, torch.tensor([1, -1, 0]))
    assert layer.values.tolist() == [old[1].item(), 0.0, old[0].item()]
    for match, wrong in (
        ("source must be", (pattern, torch.tensor([0, 1]))),
        ("source must be", (pattern, torch.tensor([0, 1, 3]))),
        ("source must be", (pattern, torch.tensor([0, 1, -2]))),
        ("expected a pattern", (Pattern.random(2, 3, 0.5), None)),
    ):
        with pytest.raises(ConfigError, match=match):
            layer.repattern(*wrong)
    assert layer.count == 3


def test_an_optimizer_goes_on_after_a_new_pattern() -> None:
    layer = layer_of()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for density in (0.3, 0.8):
        optimizer.zero_grad()
        layer(draw(0, 4, 6)).square().sum().backward()
        optimizer.step()
        source = layer.repattern(Pattern.random(5, 6, density, torch.Generator().manual_seed(1)))
        state = optimizer.state[layer.values]
        state["momentum_buffer"] = gather(state["momentum_buffer"], source)
    optimizer.zero_grad()
    layer(draw(0, 4, 6)).square().sum().backward()
    optimizer.step()
    assert optimizer.state[layer.values]["momentum_buffer"].shape == layer.values.shape


@pytest.mark.usefixtures("path")
def test_functional_calls_autocast_and_inference() -> None:
    layer, x = layer_of(), draw(0, 4, 6)
    doubled = torch.func.functional_call(layer, {"values": layer.values * 2, "bias": torch.zeros(5)}, (x,))
    torch.testing.assert_close(doubled, 2 * x @ layer.to_dense().t())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.float32
    with torch.inference_mode():
        assert torch.equal(layer(x), nn.Sequential(layer)(x))


@pytest.mark.usefixtures("path")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_networks_compile_and_export_whole() -> None:
    model, x = stack(), draw(0, 4, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    got = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for grad, parameter in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert "csr_product" in program.graph_module.code
    longer = draw(1, 9, 6)
    torch.testing.assert_close(program.module()(longer), model(longer))


def test_what_is_loaded_or_rewired_in_inference_mode_can_be_trained() -> None:
    x = torch.randn(3, 6)
    for density in (0.5, 0.7):
        layer, other = SparseLinear(6, 5, density=0.5), SparseLinear(6, 5, density=density)
        state = other.state_dict()
        with torch.inference_mode():
            layer.load_state_dict(state)
        assert torch.equal(layer(x), other(x))
        layer(x).sum().backward()
        with torch.inference_mode():
            layer.repattern(Pattern.random(5, 6, density))
        layer(x).sum().backward()
        assert layer.values.grad is not None
        assert len(layer.values.grad) == layer.count
