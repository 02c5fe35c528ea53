"""Masks of torch.nn.utils.prune that are still on: what they leave out is dead, at every door."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import pared
from pared.errors import RunError, SurgeryError
from pared.measure.latency import model_latency_us
from pared.measure.size import macs
from pared.measure.weights import weight_figures
from pared.penalties import L2
from pared.surgery import fold_
from pared.surgery.prune_masks import masks_of, plain_copy

X, Y = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 4


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()


def pruned() -> tuple[Any, torch.optim.Optimizer]:
    """Structured, iterated, custom and bias masks, on a network that has been trained and goes on."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2, weight_decay=0.1)
    train(net, optimizer)
    prune.ln_structured(net[0], "weight", 5, n=2, dim=0)
    prune.custom_from_mask(net[0], "bias", net[0].weight_mask.any(1))
    prune.global_unstructured([(net[2], "weight"), (net[4], "weight")], prune.L1Unstructured, amount=0.3)
    prune.random_unstructured(net[2], "weight", 0.4)
    prune.random_structured(net[4], "weight", 3, dim=1)
    train(net, optimizer)
    return net, optimizer


def names(net: nn.Module) -> list[str]:
    return [one.name for one in masks_of(net)]


def test_dead_units_leave_with_masks_and_optimizer_state_and_training_goes_on_alike() -> None:
    net, optimizer = pruned()
    twin, other = pruned()
    before, on = net(X), names(net)
    graph = pared.graph(net, X)
    assert "0.weight" in str(graph)
    assert "_orig" not in str(graph)
    gone = pared.remove_dead(net, graph=graph, optimizer=optimizer)
    assert len(gone["0"]) >= 5
    assert len(gone["2"]) >= 3
    assert torch.allclose(net(X), before, atol=1e-6)
    assert names(net) == on
    assert prune.is_pruned(net)
    train(net, optimizer, 10)
    train(twin, other, 10)
    assert torch.allclose(net(X), twin(X), atol=1e-5)
    assert all(one.effective()[one.mask == 0].count_nonzero() == 0 for one in masks_of(net))
    prune.l1_unstructured(net[4], "weight", 0.5)  # torch goes on with it, too
    assert net[4].weight_mask.shape == net[4].weight.shape == net[4].weight_orig.shape
    for one in masks_of(net):
        prune.remove(one.module, one.key)
    assert pared.remove(net, {"0": [0]}, graph=graph, optimizer=optimizer, living="cut")
    train(net, optimizer, 1)


def test_a_graph_made_before_the_masks_serves_and_one_made_with_them_afterwards() -> None:
    net, optimizer = pruned()
    plain = plain_copy(net)
    graph = pared.graph(plain, X)
    before = net(X)
    pared.remove_dead(net, graph=graph, optimizer=optimizer)
    assert torch.allclose(net(X), before, atol=1e-6)
    assert net[2].weight_mask.shape == net[2].weight.shape == net[2].weight_orig.shape


def test_a_constant_brings_a_dead_bias_to_life() -> None:
    net: Any = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    prune.custom_from_mask(net[0], "weight", torch.tensor([[0.0], [1], [1], [1]]).expand(4, 3))
    prune.custom_from_mask(net[2], "bias", torch.tensor([0.0, 1.0]))
    x = torch.randn(5, 3)
    before = net(x)
    assert pared.remove_dead(net, graph=pared.graph(net, x), optimizer=optimizer) == {"0": (0,)}
    assert torch.allclose(net(x), before, atol=1e-6)
    assert net[2].bias_mask.tolist() == [1.0, 1.0]
    net(x).sum().backward()
    optimizer.step()


def test_an_interrupt_at_any_line_leaves_all_or_nothing() -> None:
    def state(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[int, ...]]:
        masked = [tuple(getattr(one.module, one.key).shape) for one in masks_of(net)]
        held = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in net.parameters()} == {id(p) for g in optimizer.param_groups for p in g["params"]}
        return [*masked, *held, *(tuple(t.shape) for t in net.state_dict().values())]

    for every in range(0, 3000, 61):
        net, optimizer = pruned()
        graph = pared.graph(net, X)
        start, count = state(net, optimizer), 0

        def at(frame: object, event: str, arg: object, every: int = every) -> object:
            nonlocal count
            here = getattr(frame, "f_code").co_filename  # noqa: B009
            if event == "line" and here.endswith(("apply.py", "prune_masks.py", "optimizers.py", "operate.py")):
                count += 1
                if count == every:
                    raise KeyboardInterrupt
            return at

        dead = masks_of(net)[0].mask.sum(1).eq(0).nonzero().flatten().tolist()
        interrupted, tracer = False, sys.gettrace()
        sys.settrace(at)  # type: ignore[arg-type]
        try:
            pared.remove(net, {"0": dead}, graph=graph, optimizer=optimizer)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(tracer)
        now = state(net, optimizer)
        assert now == start or (now != start and graph.find("0").size == 11)
        net(X).sum().backward()
        if not interrupted and count < every:
            break
    else:
        raise AssertionError("the last line was not reached")


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        return self.o(self.a(x, x, x, need_weights=False)[0].squeeze(1))


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r, self.o = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(x.unsqueeze(1))[0][:, -1])


def attention() -> nn.Module:
    net = Attends()
    for module, key in ((net.a, "in_proj_weight"), (net.a, "in_proj_bias"), (net.o, "weight")):
        prune.l1_unstructured(module, key, 0.5)
    return net


def recurrent() -> nn.Module:
    net = Recurs()
    for key in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        mask = torch.ones_like(getattr(net.r, key))
        mask.view(4, 8, *mask.shape[1:])[:, 2] = 0.0
        prune.custom_from_mask(net.r, key, mask)
    return net


def twice() -> nn.Module:
    shared = nn.Linear(6, 6)
    prune.l1_unstructured(shared, "weight", 0.5)
    return nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 2))


def tied() -> nn.Module:
    net: Any = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    net[2].weight = net[0].weight
    prune.l1_unstructured(net[2], "weight", 0.5)
    return net


def soft() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    prune.custom_from_mask(net[0], "weight", torch.linspace(0, 1, 36).view(6, 6))
    return net


KINDS = [lambda: pruned()[0], attention, recurrent, twice, tied, soft]


@pytest.mark.parametrize("make", KINDS, ids=["many", "attention", "recurrent", "twice", "tied", "soft"])
def test_copies_are_plain_and_the_network_stays_as_it_is(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = make().eval()
    net(X).sum().backward()
    on, before = names(net), net(X)
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for copied in (pared.sparsify(net, X).model, pared.fold(net, X)):
        assert not names(copied)
        assert torch.allclose(copied(X), before, atol=1e-5)
    path = pared.export(net, tmp_path / "net.pt2", X, dynamic=make is not attention)
    program = torch.export.load(path)
    assert not [name for name in program.state_dict if name.endswith("_mask")]
    assert macs(net, X) > 0
    assert model_latency_us(net, X) > 0
    assert names(net) == on
    assert all(torch.equal(kept[name], tensor) for name, tensor in net.state_dict().items())
    net(X).sum().backward()


@pytest.mark.parametrize("make", [KINDS[0], recurrent, tied], ids=["many", "recurrent", "tied"])
def test_files_keep_masks_for_who_has_them_and_zeros_for_who_has_not(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = make()
    if make is KINDS[0]:
        pared.remove_dead(net, graph=pared.graph(net, X))
    before = net(X)
    path = pared.save(net, tmp_path / "net.safetensors")
    torch.manual_seed(1)
    again = make()
    assert torch.equal(pared.load(again, path)(X), before)
    again(X).sum().backward()
    fresh = make()
    for one in masks_of(fresh):
        prune.remove(one.module, one.key)
    if make is tied:
        with pytest.raises(RunError, match="is tied to another tensor here and not in the file"):
            pared.load(fresh, path)
        fresh.get_submodule("2").weight = nn.Parameter(torch.zeros(6, 6))
    assert torch.allclose(pared.load(fresh, path)(X), before, atol=1e-6)
    plain = pared.save(fresh, tmp_path / "plain.safetensors")
    with pytest.raises(RunError, match="has a mask of torch.nn.utils.prune here and none in the file"):
        pared.load(again, plain)


def test_what_cannot_be_cut_alike_is_refused_by_name() -> None:
    net = tied()
    graph = pared.graph(net, X)
    before = net(X)
    with pytest.raises(SurgeryError, match=r"'2.weight' and '0.weight' are one parameter with different masks"):
        pared.remove(net, {"0": [1]}, graph=graph, living="cut")
    assert torch.equal(net(X), before)
    masked, _ = pruned()
    with pytest.raises(SurgeryError, match=r"'0.weight' has a mask of torch.nn.utils.prune"):
        fold_(masked, pared.graph(masked, X))


def test_blocks_leave_with_their_masks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    net = nn.Sequential(nn.Linear(6, 6), Block(), nn.Linear(6, 4))
    optimizer = torch.optim.Adam(net.parameters())
    last = net.get_submodule("1.body.2")
    prune.l1_unstructured(last, "weight", 30)
    prune.l1_unstructured(last, "bias", 6)
    train(net, optimizer)
    before = net(X)
    assert pared.remove_blocks(net, ["1"], graph=pared.graph(net, X), optimizer=optimizer) == {"1": "identity"}
    assert torch.equal(net(X), before)
    assert len(optimizer.param_groups[0]["params"]) == len(list(net.parameters())) == 4


def test_penalties_and_figures_are_of_what_lives() -> None:
    net, _ = pruned()
    plain = plain_copy(net)
    assert weight_figures(net) == pytest.approx(weight_figures(plain))
    assert set(L2(net, 1.0).weights()) == {"0.weight", "2.weight", "4.weight"}
    L2(net, 1.0)().backward()
    assert L2(net, 1.0)().item() == pytest.approx(L2(plain, 1.0)().item())
    assert net[2].weight_orig.grad[net[2].weight_mask == 0].count_nonzero() == 0


# --- other weights that modules compute ---


class Triangle(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "own", "kept"])
def test_other_computed_weights_are_copied_or_refused_with_what_to_do(kind: str) -> None:
    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.last = [x]  # to look at, as attention often is
            return x

    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), Keeps(), nn.Linear(6, 2))
    layer = net[2]
    if kind == "orthogonal":
        parametrizations.orthogonal(layer)
    elif kind == "own":
        parametrize.register_parametrization(layer, "weight", Triangle())
    elif kind != "kept":
        getattr(nn.utils, kind)(layer)
    net(X).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    copied = pared.sparsify(net, X)
    assert torch.allclose(copied.model(X), net.eval()(X), atol=1e-5)
    told = str(pared.graph(net, X))
    if kind in ("orthogonal", "own"):
        assert "call torch.nn.utils.parametrize.remove_parametrizations on '2' and 'weight'" in told
