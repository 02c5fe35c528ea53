"""Which layers become sparse, and that answers stay."""

import math
from typing import Any, cast

import pytest
import torch
from torch import nn

import pared
from pared import sparsifying
from pared.errors import ConfigError
from pared.methods import Static
from pared.models import mlp
from pared.nn import SparseConv2d, SparseLinear, SparseSequential


def network(density: float = 0.1) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = mlp(30, 5, (40, 50), generator=generator)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "4.weight" and weight.ndim == 2:
                weight.mul_(torch.rand(weight.shape, generator=generator) < density)
    return model


def clocked(monkeypatch: pytest.MonkeyPatch, whole: tuple[float, float] = (2.0, 1.0)) -> None:
    """Say that sparse layers are faster below a density of a half, and what the networks take."""

    def calibrated(shape: torch.Size, count: int, *rest: Any) -> tuple[float, float]:
        assert rest[0] in ((7,), (7, 8, 8))
        return 1.0, count / math.prod(shape) * 2

    monkeypatch.setattr(sparsifying, "_calibrated", calibrated)
    monkeypatch.setattr(sparsifying, "least_us", lambda calls: list(whole)[: len(calls)])


def test_layers_that_are_faster_become_sparse_and_answers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    model, x = network(), torch.randn(7, 30)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = pared.sparsify(model, x)
    assert [type(found.model.get_submodule(name)) for name in "024"] == [SparseLinear, SparseLinear, nn.Linear]
    assert [one.sparse for one in found.layers] == [True, True, False]
    assert found.layers[0].count == int((before["0.weight"] != 0).sum())
    assert torch.allclose(found.model(x), model(x), atol=1e-6)
    assert model.training
    assert not found.model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "sparse" in str(found)
    assert "forward pass: 2.0 us before, 1.0 us after" in str(found)


def test_sequences_of_sparse_layers_copy_less_and_keep_their_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    x, seen = torch.randn(7, 30), []
    model = nn.Sequential(network(), nn.Sequential(nn.Linear(5, 5), nn.ReLU()))
    model[0].register_forward_hook(lambda module, given, y: seen.append(type(module)))
    found = pared.sparsify(model, x)
    assert [type(one) for one in found.model.children()] == [SparseSequential, nn.Sequential]
    assert torch.allclose(found.model(x), model(x), atol=1e-6)
    assert seen[-2:] == [SparseSequential, nn.Sequential]
    assert found.model.state_dict().keys() >= {"0.0.values", "0.2.values", "1.0.weight"}
    assert type(pared.sparsify(network(), x).model) is SparseSequential


def test_a_session_makes_its_network_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    model, x = mlp(30, 5, (40, 50)), torch.randn(7, 30)
    session = Static(0.9, distribution="uniform", where="but last").bind(
        model, torch.optim.SGD(model.parameters(), 0.1), total_steps=1
    )
    small = session.realize(sparse=x)
    assert [type(small.get_submodule(name)) for name in "024"] == [SparseLinear, SparseLinear, nn.Linear]
    assert torch.allclose(small(x), session.realize().eval()(x), atol=1e-6)
    assert not small.training
    assert not any(isinstance(one, SparseLinear) for one in session.realize(sparse=True).modules())


def test_layers_in_several_places_stay_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
            self.again, self.first = self.stack, cast(nn.Linear, self.stack[0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(self.again(self.stack(x)))

    model, x = Twice().requires_grad_(False), torch.randn(7, 6)
    model.first.weight[:, 1:] = 0.0
    made: Any = pared.sparsify(model, x).model
    assert made.first is made.stack[0]
    assert isinstance(made.first, SparseLinear)
    assert made.again is made.stack
    assert isinstance(made.again, SparseSequential)
    assert torch.allclose(made(x), model(x), atol=1e-6)


def test_layers_whose_weight_the_network_looks_at_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.looked_at, self.named = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.named(input=self.looked_at(x.to(self.looked_at.weight.dtype)))

    for model, names, shape in (
        (Looking(), [("looked_at", False), ("named", True)], (7, 6)),
        (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), [("linear1", True), ("linear2", True)], (1, 7, 6)),
    ):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.2)
        x = torch.randn(shape)
        found = pared.sparsify(model, x)
        assert [(one.name, one.sparse) for one in found.layers] == names
        assert all(one.sparse == (not one.reason) for one in found.layers)
        assert ("looks at its weight itself" in str(found)) == isinstance(model, Looking)
        with torch.inference_mode():
            assert torch.allclose(found.model(x), model.eval()(x), atol=1e-5)


def test_convolutions_are_considered_at_the_size_of_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, dilation=1, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.9] = 0.0
    x = torch.randn(7, 3, 8, 8)
    found = pared.sparsify(model, x)
    assert [(one.name, one.sparse) for one in found.layers] == [("0", True), ("3", True)]
    assert [type(found.model.get_submodule(name)) for name in "0345"] == [SparseConv2d] * 2 + [nn.Conv2d] * 2
    assert torch.allclose(found.model(x), model.eval()(x), atol=1e-5)


def test_a_network_that_would_not_be_faster_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, whole=(1.0, 2.0))
    found = pared.sparsify(network(), torch.randn(7, 30))
    assert not any(isinstance(module, SparseLinear) for module in found.model.modules())
    assert not any(one.sparse for one in found.layers)
    assert {one.reason for one in found.layers[:2]} == {"the whole network is not faster with sparse layers"}
    assert "of its time, and has to take at most 0.9" in found.layers[2].reason
    assert found.before_us == found.after_us == 1.0


def test_small_weights_are_cut_and_dense_layers_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    model, x = mlp(30, 5, (40, 50)), torch.randn(7, 30)
    assert not any(one.sparse for one in pared.sparsify(model, x).layers)
    found = pared.sparsify(model, {"input": x}, threshold=0.15)
    assert any(one.sparse for one in found.layers)
    for one in found.layers:
        weight = model.get_parameter(f"{one.name}.weight")
        assert one.count == int((weight.abs() > 0.15).sum())
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="threshold"):
            pared.sparsify(model, x, threshold=bad)


def test_what_is_more_than_a_linear_layer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)

    class Own(nn.Linear):
        pass

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied, self.other, self.own, self.hooked, self.idle = (
                kind(6, 6) for kind in (nn.Linear, nn.Linear, Own, nn.Linear, nn.Linear)
            )
            self.other.weight = self.tied.weight
            self.hooked.register_forward_hook(lambda *_: None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.hooked(self.own(self.other(self.tied(x))))

    model = Unused()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.0)
    found = pared.sparsify(model, torch.randn(7, 6))
    assert [one.name for one in found.layers] == []
    assert {name: reason.split()[-1] for name, reason in found.skipped.items()} == {
        "tied": "layer's",
        "other": "layer's",
        "own": "Own",
        "hooked": "hooks",
        "idle": "example",
    }


def test_a_single_layer_is_measured_and_told() -> None:
    layer = nn.Linear(2000, 2000)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(2000, 2000) < 0.005)
    x = torch.randn(64, 2000)
    found = pared.sparsify(layer, x)
    assert found.layers[0].dense_us > 0
    assert found.layers[0].sparse == isinstance(found.model, SparseLinear)  # which it is depends on the machine
    assert torch.allclose(found.model(x), layer(x), atol=1e-4)


def test_a_single_convolution_is_measured_and_told() -> None:
    layer = nn.Conv2d(16, 256, (3, 2), 2, (1, 0))
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape) < 0.005)
    x = torch.randn(4, 16, 11, 12)
    found = pared.sparsify(layer, x)
    assert found.layers[0].dense_us > 0
    assert found.layers[0].sparse == isinstance(found.model, SparseConv2d)
    assert torch.allclose(found.model(x), layer(x), atol=1e-4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_layers_of_a_transformer_encoder_become_sparse_and_answers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(1, 7, 6)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(torch.rand(weight.shape) < 0.2)
    found = pared.sparsify(model, x)
    assert sum(isinstance(one, SparseLinear) for one in found.model.modules()) == 4
    padded = torch.tensor([[False] * 5 + [True] * 2])
    with torch.inference_mode():
        assert torch.allclose(found.model(x), model(x), atol=1e-5)
        ours, theirs = (one(x, src_key_padding_mask=padded)[:, :5] for one in (found.model, model))
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert "no kernels" not in str(found)
    assert set(found.skipped) == {f"layers.{i}.self_attn{part}" for i in range(2) for part in ("", ".out_proj")}


def test_convolutions_are_timed_in_the_memory_format_that_they_run_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []

    def timed(calls: Any) -> list[float]:
        with torch.inference_mode():
            made = [call() for call in calls]
        seen.append(tuple(one.is_contiguous(memory_format=torch.channels_last) for one in made))  # type: ignore[arg-type]
        return [1.0] * len(calls)

    monkeypatch.setattr(sparsifying, "least_us", timed)
    sparsifying._calibrated.cache_clear()
    model = nn.Conv2d(5, 6, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.randn(2, 5, 9, 9)
    for given in (x.to(memory_format=torch.channels_last), x):
        pared.sparsify(model, given)
    pared.sparsify(nn.Conv2d(5, 6, 3), x)
    assert seen[0] == seen[2] == (True, True)  # then the network itself, alone
    assert seen[4] == (False, False)
    sparsifying._calibrated.cache_clear()
