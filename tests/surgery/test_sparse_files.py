"""Networks with sparse layers go into files and come back, whatever the pattern they are loaded into."""

from pathlib import Path

import pytest
import torch
from torch import nn

import pared
from pared.errors import RunError, SurgeryError
from pared.nn import BatchMajor, SparseLinear
from pared.ops import Pattern


def net(density: float, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    first = SparseLinear(12, 16, density=density, generator=generator)
    return nn.Sequential(
        first, nn.ReLU(), nn.Linear(16, 14), nn.ReLU(), SparseLinear(14, 2, density=0.5, generator=generator)
    )


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()]))


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_network_comes_back_into_any_other_pattern(density: float, device: str, tmp_path: Path) -> None:
    saved = net(0.3, 0)
    path = pared.save(saved, tmp_path / "net.safetensors")
    loaded = pared.load(net(density, 1).to(device), path)
    x = torch.randn(5, 12, requires_grad=True)
    assert torch.equal(loaded(x), saved(x))
    for mine, other in zip(gradients(loaded, x), gradients(saved, x), strict=True):
        assert torch.equal(mine, other)  # by the transposed pattern too, which is not in the file
    pared.save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_sparse_layer_that_became_the_identity_stays_so(device: str, tmp_path: Path) -> None:
    def build(seed: int) -> nn.Sequential:
        inner = nn.Sequential(SparseLinear(12, 12, density=0.5))
        return nn.Sequential(*net(0.3, seed), SparseLinear(2, 2, density=1.0), inner)

    saved = build(0)
    saved[5] = nn.Identity()
    saved[6] = nn.Identity()
    path = pared.save(saved, tmp_path / "net.safetensors")
    loaded = pared.load(build(1).to(device), path)
    x = torch.randn(5, 12)
    assert torch.equal(loaded(x), saved(x))
    assert type(loaded[5]) is type(loaded[6]) is nn.Identity


class Siblings(nn.Module):
    """Two layers of one pattern object."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.pattern = Pattern.random(8, 8, 0.3, torch.Generator().manual_seed(seed))
        self.a, self.b = (SparseLinear(8, 8, mask=self.pattern) for _ in range(2))
        for layer in (self.a, self.b):
            layer.set_pattern(self.pattern)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("apart", [False, True])
def test_layers_of_one_pattern_are_not_tied(apart: bool, tmp_path: Path) -> None:
    saved, x = Siblings(0), torch.randn(4, 8)
    if apart:
        saved.b.repattern(Pattern.random(8, 8, 0.6, torch.Generator().manual_seed(5)))
    path = pared.save(saved, tmp_path / "net.safetensors")
    for seed in (0, 1):
        fresh = Siblings(seed)
        mask = fresh.pattern.entries().clone()
        loaded = pared.load(fresh, path)
        assert torch.equal(loaded(x), saved(x))
        assert torch.equal(fresh.pattern.entries(), mask)
    again = pared.save(loaded, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    assert torch.equal(pared.load(Siblings(2), again)(x), saved(x))


def test_a_sparse_layer_with_two_names_comes_back(tmp_path: Path) -> None:
    def build(density: float) -> nn.Sequential:
        layer = SparseLinear(8, 8, density=density)
        return nn.Sequential(layer, nn.ReLU(), layer)

    saved, x = build(0.5), torch.randn(4, 8)
    loaded = pared.load(build(0.2), pared.save(saved, tmp_path / "net.safetensors"))
    assert loaded[0] is loaded[2]
    assert torch.equal(loaded(x), saved(x))


def test_a_pattern_that_is_none_changes_nothing(tmp_path: Path) -> None:
    saved = net(0.3, 0)
    saved.get_buffer("0.col")[0] = 99
    path = pared.save(saved, tmp_path / "net.safetensors")
    other = net(0.3, 1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(RunError, match="columns must lie in 0 to 11"):
        pared.load(other, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(RunError, match="does not fit"):
        pared.load(
            nn.Sequential(SparseLinear(12, 9, density=0.5)), pared.save(net(0.3, 0), tmp_path / "other.safetensors")
        )


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_exports_are_dense_and_right(suffix: str, tmp_path: Path) -> None:
    model, x = net(0.3, 0), torch.randn(3, 12)
    model.insert(3, BatchMajor())
    path = pared.export(model, tmp_path / f"net.{suffix}", x)
    assert isinstance(model[0], SparseLinear)
    if suffix == "pt2":
        program = torch.export.load(path)
        assert not any("pared" in str(node.target) for node in program.graph.nodes)
        assert torch.allclose(program.module()(x), model(x), atol=1e-6)


def test_surgery_refuses_sparse_layers_by_name() -> None:
    with pytest.raises(SurgeryError, match="csr_product"):
        pared.add_switches(net(0.3, 0), torch.randn(3, 12))
