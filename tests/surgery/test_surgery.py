import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import OPTIMIZERS
from pared import surgery
from pared.errors import SurgeryError
from pared.nn import Select, Switch
from pared.surgery import Gather, Plan, Resize, apply, check_sequential, fold, make_plan
from pared.surgery.gather import gather

ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Softplus, nn.Tanh, nn.GELU, nn.ELU)


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Random float64 perceptrons with switches, some grouped or on inputs, norms, dropout and nesting."""
    torch_seed = draw(st.integers(0, 2**31))
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed)
        return _network(draw).double()


def _network(draw: st.DrawFn) -> nn.Sequential:
    width = draw(st.integers(2, 6))
    layers: list[nn.Module] = []
    inputs = draw(st.sampled_from(["none", "single", "grouped"]))
    if inputs != "none":
        sizes = [1, width - 1] if inputs == "grouped" else None
        layers += [Select(width), Switch(width, init="uniform", sizes=sizes)]
    for _ in range(draw(st.integers(1, 3))):
        out = draw(st.integers(2, 6))
        block: list[nn.Module] = [nn.Linear(width, out, bias=draw(st.booleans()))]
        norm_first = draw(st.booleans())
        norm = _norm(out) if draw(st.booleans()) else nn.Identity()
        switch = Switch(out, init="uniform")
        block += [norm, switch] if norm_first else [switch, norm]
        block += [draw(st.sampled_from(ACTIVATIONS))(), nn.Dropout(0.3)]
        layers += [nn.Sequential(*block)] if draw(st.booleans()) else block
        width = out
    return nn.Sequential(*layers, nn.Linear(width, 3, bias=draw(st.booleans()))).eval()


def _norm(width: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(width)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor.data)
    return norm


def width_of(model: nn.Module) -> int:
    """The features that a network takes."""
    for module in model.modules():
        if isinstance(module, Select):
            return module.original
        if isinstance(module, nn.Linear):
            return module.in_features
    raise AssertionError


def graph_of(model: nn.Module) -> surgery.Graph:
    return surgery.graph(model, torch.zeros(2, width_of(model), dtype=next(model.parameters()).dtype))


def switched(model: nn.Module, graph: surgery.Graph) -> dict[str, surgery.Space]:
    return {n: graph.at(f"{n}.theta") for n, module in model.named_modules() if isinstance(module, Switch)}


def kill(model: nn.Sequential, draw: Any) -> dict[str, list[int]]:
    """Switch off random factors; return what is to be kept, by space."""
    keep = {}
    for name, space in switched(model, graph_of(model)).items():
        switch = model.get_submodule(name)
        assert isinstance(switch, Switch)
        factors = switch.theta.shape[0]
        dead = draw(st.sets(st.integers(0, factors - 1), max_size=factors - 1))
        with torch.no_grad():
            switch.theta[list(dead)] = 0.0
            switch.alive[list(dead)] = False
        keep[space.name] = [i for i in range(factors) if i not in dead]
    return keep


@settings(max_examples=150, deadline=None)
@given(networks(), st.data())
def test_removal_preserves_the_function(model: nn.Sequential, data: st.DataObject) -> None:
    keep = kill(model, data.draw)
    first, graph = width_of(model), graph_of(model)
    x = torch.randn(7, first, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = model(x)
    single = copy.deepcopy(model).float()
    plan = make_plan(graph, model, keep)
    plan = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    apply(plan, model)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    apply(plan, single)
    torch.testing.assert_close(single(x.float()).double(), before, rtol=1e-4, atol=1e-5)
    for name, space in switched(model, graph).items():
        assert model.state_dict()[f"{name}.theta"].shape[0] == len(keep[space.name])


@settings(max_examples=80, deadline=None)
@given(networks())
def test_folding_preserves_the_function(model: nn.Sequential) -> None:
    x = torch.randn(5, width_of(model), dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    small = fold(model)
    torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    assert all(type(m).__module__.startswith("torch.nn") for m in small.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def hand_made(seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(5, 6), Switch(6), nn.Sigmoid(), nn.Linear(6, 4), Switch(4), nn.ReLU(), nn.Linear(4, 2)
        ).double()


def test_adam_survivors_agree_exactly_when_the_dead_emit_nothing() -> None:
    """With relu the dead path emits zero, so even momentum on dead columns cannot show: updates agree to rounding."""
    for make in (OPTIMIZERS["Adam"], OPTIMIZERS["SGD Nesterov"], OPTIMIZERS["AdamW amsgrad"]):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model: Any = nn.Sequential(nn.Linear(5, 6), Switch(6), nn.ReLU(), nn.Linear(6, 2)).double()
        x = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        optimizer = make(model)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            model[1].theta[[0, 2]] = 0.0
        twin, keep = copy.deepcopy(model), [1, 3, 4, 5]
        twin_optimizer = make(twin)
        twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        apply(make_plan(graph_of(model), model, {"0": keep}), model, optimizer=optimizer)
        for _ in range(3):
            for net, opt in ((model, optimizer), (twin, twin_optimizer)):
                opt.zero_grad()
                net(x).square().mean().backward()
                opt.step()
            with torch.no_grad():
                twin[1].theta[[0, 2]] = 0.0
            torch.testing.assert_close(model[0].weight, twin[0].weight[keep], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(model[3].weight, twin[3].weight[:, keep], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(model[3].bias, twin[3].bias, rtol=1e-10, atol=1e-12)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    tensors = {name: (id(t), t.detach().clone()) for name, t in model.named_parameters()}
    widths = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    groups = [[id(p) for p in g["params"]] for g in optimizer.param_groups]
    state = {
        id(p): {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in s.items()}
        for p, s in optimizer.state.items()
    }
    return tensors, widths, groups, state


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def trained() -> tuple[Any, torch.optim.Optimizer]:
    model = hand_made()
    optimizer = OPTIMIZERS["Adam"](model)
    model(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("fail_at", range(0, 10, 2))
def test_an_error_midway_leaves_everything_as_it_was(fail_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained()
    plan = make_plan(graph_of(model), model, {"0": [0, 1], "3": [2]}, living="cut")
    before, calls = snapshot(model, optimizer), 0
    module = __import__("pared.surgery.apply", fromlist=["_put"])
    put = module._put

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at + 1:
            raise RuntimeError("disk on fire")
        put(*arguments)

    monkeypatch.setattr(module, "_put", failing)
    with pytest.raises(RuntimeError, match="on fire"):
        apply(plan, model, optimizer=optimizer)
    assert same(before, snapshot(model, optimizer))


def test_unknown_state_and_names_are_refused_whole() -> None:
    model, optimizer = trained()
    plan = make_plan(graph_of(model), model, {"0": [0, 1]}, living="cut")
    optimizer.state[model[0].weight]["factor"] = torch.ones(6)
    before = snapshot(model, optimizer)
    with pytest.raises(SurgeryError, match="'factor' of shape"):
        apply(plan, model, optimizer=optimizer)
    with pytest.raises(SurgeryError, match="does not have"):
        apply(Plan((Gather("9.weight", 0, (0,)),)), model)
    with pytest.raises(SurgeryError, match="entries up to 7"):
        apply(Plan((Gather("0.weight", 0, (7,)),)), model)
    with pytest.raises(SurgeryError, match="LBFGS"):
        apply(plan, model, optimizer=torch.optim.LBFGS(model.parameters()))
    assert same(before, snapshot(model, optimizer))


def test_tied_frozen_hooked_and_graded_parameters_stay_so() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    seen = []
    model[4].bias.register_hook(lambda grad: seen.append(grad.shape))
    model[4].bias.grad = torch.arange(4.0)
    cut = Gather("0.weight", 0, (1, 2)), Gather("2.weight", 0, (1, 2))
    with pytest.raises(SurgeryError, match="tied"):
        apply(Plan((cut[0], Gather("2.weight", 0, (0, 3)))), model)
    apply(Plan((*cut, Gather("0.bias", 0, (1, 2)), Gather("4.bias", 0, (3, 0)))), model)
    assert model[0].weight is model[2].weight
    assert not model[0].bias.requires_grad
    assert model[4].bias.grad.tolist() == [3.0, 0.0]
    (model[4].bias * 1.0).sum().backward()
    assert seen == [torch.Size([2])]


def test_gather_of_minus_one_is_new_and_zero() -> None:
    assert gather(torch.tensor([5.0, 6.0]), 0, (1, -1, 0)).tolist() == [6.0, 0.0, 5.0]


def test_a_created_bias_joins_its_weights_group() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), Switch(4), nn.Sigmoid(), nn.Linear(4, 2, bias=False))
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": [model[1].theta, model[3].weight]}], lr=0.1
    )
    groups = [id(g) for g in optimizer.param_groups]
    with torch.no_grad():
        model[1].theta[0] = 0.0
    x, before = torch.randn(4, 3), None
    before = model(x)
    apply(make_plan(graph_of(model), model, {"0": [1, 2, 3]}), model, optimizer=optimizer)
    torch.testing.assert_close(model(x), before)
    assert groups == [id(g) for g in optimizer.param_groups]
    assert any(p is model[3].bias for p in optimizer.param_groups[1]["params"])


def test_one_activation_used_twice_is_two_places() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 3), Switch(3), relu, nn.Linear(3, 3), Switch(3), relu, nn.Linear(3, 2))
    x = torch.randn(8, 2)
    torch.testing.assert_close(fold(model)(x), model(x))


class Odd(nn.Module):
    pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "expected an nn.Sequential"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)), "'1' is a LayerNorm"),
        (nn.Sequential(nn.Conv1d(1, 1, 1)), "'0' is a Conv1d"),
        (nn.Sequential(nn.ReLU()), "no Linear layer"),
        (nn.Sequential(nn.Linear(2, 2), Odd()), "'1' is a Odd"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        check_sequential(model)


def test_a_module_used_twice_and_wrong_spaces_are_refused() -> None:
    linear = nn.Linear(2, 2)
    with pytest.raises(SurgeryError, match="appears twice"):
        check_sequential(nn.Sequential(linear, nn.ReLU(), linear))
    model = hand_made()
    graph = graph_of(model)
    for keep, message in (
        ({"6": [0]}, "output of the network"),
        ({"hidden": [0]}, "no space or layer"),
        ({"0": []}, "keep at least one"),
        ({"0": [3, 1]}, "sorted"),
        ({"0": [0, 1, 2, 3, 4]}, "is alive"),
    ):
        with pytest.raises(SurgeryError, match=message):
            make_plan(graph, model, keep)


def test_a_switch_between_layers_that_do_not_scale_is_refused() -> None:
    with pytest.raises(SurgeryError, match="do not scale"):
        fold(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), Switch(2), nn.Tanh(), nn.Linear(2, 2)))


def test_resize_is_plain_data() -> None:
    plan = Plan((Gather("a", 0, (1,)),), (), (Resize("a", "n", 1),))
    assert surgery.Plan.from_json(plan.to_json()) == plan
    assert plan
    assert not Plan()
