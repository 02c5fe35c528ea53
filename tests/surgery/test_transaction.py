"""A removal happens whole or not at all, and nobody who survives it notices."""

import copy
import sys
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_surgery import graph_of, kill, networks, width_of
from torch import nn

from helpers import OPTIMIZERS
from pared.errors import SurgeryError
from pared.nn import Select, Switch
from pared.surgery import Constant, Gather, Plan, Resize, apply, check_sequential, fold, make_plan

MAKERS = {
    **{name: OPTIMIZERS[name] for name in OPTIMIZERS if name not in ("AdamW amsgrad", "ASGD")},
    "AdamW amsgrad": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02, amsgrad=True, weight_decay=0.0),
    "ASGD": lambda m: torch.optim.ASGD(m.parameters(), lr=0.05, lambd=0.0),
}


def dead_mask(name: str, shape: torch.Size, plan: Plan) -> torch.Tensor:
    """True where the plan removes an entry of tensor `name`."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for item in plan.gathers:
        if item.tensor == name:
            gone = [i for i in range(shape[item.axis]) if i not in item.index]
            mask.index_fill_(item.axis, torch.tensor(gone, dtype=torch.long), True)
    return mask


def cut(name: str, tensor: torch.Tensor, plan: Plan) -> torch.Tensor:
    for item in plan.gathers:
        if item.tensor == name:
            tensor = tensor[(slice(None),) * item.axis + (list(item.index),)]
    return tensor


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, mask: Any = None) -> None:
    optimizer.zero_grad()
    (model(x) - 0.3).square().mean().backward()
    for name, parameter in model.named_parameters():
        if mask is not None and parameter.grad is not None:
            parameter.grad[mask[name]] = 0.0
    optimizer.step()


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=8)
@given(networks(), st.data())
def test_the_next_updates_of_survivors_equal_those_of_a_twin_frozen_where_it_is_dead(
    name: str, model: nn.Sequential, data: st.DataObject
) -> None:
    """Exact, although dead channels emit constants: the twin's dead entries have neither gradient nor memory."""
    width = width_of(model)
    x = torch.randn(9, width, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    optimizer = MAKERS[name](model)
    for _ in range(2):
        steps(model, optimizer, x)
    plan = make_plan(graph_of(model), model, kill(model, data.draw))
    assume(all(item.bias in model.state_dict() for item in plan.constants))
    twin = copy.deepcopy(model)
    other = MAKERS[name](twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masks = {key: dead_mask(key, p.shape, plan) for key, p in twin.named_parameters()}
    for key, parameter in twin.named_parameters():
        for value in other.state[parameter].values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.ndim:
                value[masks[key]] = 0.0
    apply(plan, model, optimizer=optimizer)
    for _ in range(3):
        steps(model, optimizer, x)
        steps(twin, other, x, masks)
    expected = {key: value.detach().clone() for key, value in twin.state_dict().items()}
    for item in plan.constants:
        values = torch.tensor(item.values, dtype=torch.float64)
        expected[item.bias] += expected[item.weight][:, list(item.index)] @ values
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, cut(key, expected[key], plan), rtol=1e-8, atol=1e-9)


def troublesome() -> tuple[Any, torch.optim.Optimizer, Any, Plan]:
    """A network, an optimizer with names, an averaged copy and a plan that touches every kind of thing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = nn.Sequential(
            *(Select(4), Switch(4, sizes=[1, 1, 2]), nn.Linear(4, 6), nn.BatchNorm1d(6), Switch(6), nn.Sigmoid()),
            *(nn.Linear(6, 5, bias=False), Switch(5), nn.Softplus(), nn.Linear(5, 2)),
        )
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.1)
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    graph = graph_of(model)
    keep = {graph.at(f"{p}.theta").name: live for p, live in ((1, [0, 2]), (4, [1, 2, 5]), (7, [4]))}
    for position, live in zip((1, 4, 7), keep.values(), strict=True):
        with torch.no_grad():
            gone = [i for i in range(model[position].theta.shape[0]) if i not in live]
            model[position].theta[gone] = 0.0
    return model, optimizer, copy.deepcopy(model), make_plan(graph, model, keep)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """All that surgery may touch, by identity and by value."""
    return {
        "tensors": {
            f"{path}.{name}": None
            if t is None
            else (id(t), t.detach().tolist(), None if t.grad is None else t.grad.tolist())
            for path, m in model.named_modules()
            for name, t in (*m._parameters.items(), *m._buffers.items())
        },
        "numbers": {
            f"{path}.{key}": value
            for path, m in model.named_modules()
            for key, value in vars(m).items()
            if isinstance(value, int)
        },
        "groups": [
            {**g, "params": [id(p) for p in g["params"]], "param_names": list(g["param_names"])}
            for g in optimizer.param_groups
        ],
        "group ids": [(id(g), id(g["params"])) for g in optimizer.param_groups],
        "state": {
            id(p): {k: (id(v), v.tolist()) for k, v in s.items()}
            for p, s in sorted(optimizer.state.items(), key=lambda item: id(item[0]))
        },
    }


def fail_at_line(number: int, functions: tuple[str, ...]) -> Any:
    """A tracer that raises when the `number`-th line of the named functions is about to run."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        ours = frame.f_code.co_filename.endswith(("surgery/apply.py", "surgery/optimizers.py"))
        if frame.f_code.co_name not in functions or not ours:
            return None
        if event == "line":
            count += 1
            if count == number:
                raise KeyboardInterrupt
        return trace

    return trace


def interrupted(number: int, functions: tuple[str, ...]) -> bool:
    """Whether surgery was stopped at that line; then nothing may have changed."""
    model, optimizer, average, plan = troublesome()
    before, other = everything(model, optimizer), everything(average, optimizer)
    old = sys.gettrace()
    sys.settrace(fail_at_line(number, functions))
    try:
        apply(plan, model, optimizer=optimizer, ema=[average])
        return False
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(old)
    assert everything(model, optimizer) == before, number
    assert everything(average, optimizer) == other, number
    return True


@pytest.mark.parametrize(
    "functions", [("_commit_model", "_put"), ("commit_optimizer",), ("_draft", "draft_states", "_record")]
)
def test_an_interrupt_before_any_line_leaves_everything_as_it_was(functions: tuple[str, ...]) -> None:
    number = 1
    while interrupted(number, functions):
        number += 1 if number < 12 else 7
    assert number > 20


def test_the_plan_of_that_network_works_when_left_alone() -> None:
    model, optimizer, average, plan = troublesome()
    model.eval()
    x = torch.randn(5, 4)
    before = model(x)
    apply(plan, model, optimizer=optimizer, ema=[average])
    torch.testing.assert_close(model(x), before)
    assert [p.shape for p in model.parameters()] == [p.shape for p in average.parameters()]
    group = optimizer.param_groups[0]
    assert {n: id(p) for n, p in zip(group["param_names"], group["params"], strict=True)} == {
        n: id(p) for n, p in model.named_parameters()
    }
    assert model[6].bias is not None


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan((Gather("2.weight", 0, (-2, 1)),)), "entries up to 1"),
        (Plan((Gather("2.weight", 0, (6,)),)), "entries up to 6"),
        (Plan((Gather("2.weight", 2, (0,)),)), "axis 2"),
        (Plan((Gather("2.weight", -1, (0,)),)), "axis -1"),
        (Plan((Gather("2.weight", 0, ()),)), "axis 0"),
        (Plan((Gather("2.wait", 0, (0,)),)), "'2.wait'"),
        (Plan((), (Constant("99.weight", "9.bias", (0,), (1.0,)),)), "'99.weight'"),
        (Plan((), (Constant("9.weight", "99.bias", (0,), (1.0,)),)), "'99.bias'"),
        (Plan((), (), (Resize("99", "in_features", 1),)), "'99.in_features'"),
        (Plan((), (), (Resize("9", "width", 1),)), "'9.width'"),
    ],
)
def test_a_plan_of_another_network_is_refused_and_changes_nothing(plan: Plan, message: str) -> None:
    model, optimizer, average, _ = troublesome()
    before = everything(model, optimizer)
    with pytest.raises(SurgeryError, match=message):
        apply(plan, model, optimizer=optimizer, ema=[average])
    assert everything(model, optimizer) == before


@pytest.mark.parametrize("keep", [[-1], [3], [0, 0], [1, 0], []])
def test_groups_to_keep_must_exist_be_sorted_and_distinct(keep: list[int]) -> None:
    model = troublesome()[0]
    graph = graph_of(model)
    name = graph.at("1.theta").name
    with pytest.raises(SurgeryError, match="1.theta"):
        make_plan(graph, model, {name: keep})


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_optimizers_that_look_at_all_entries_at_once_are_refused_by_name(make: Any) -> None:
    model, _, _, plan = troublesome()
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(SurgeryError, match=make.__name__):
        apply(plan, model, optimizer=make(model.parameters()))
    assert before == {name: id(p) for name, p in model.named_parameters()}


def test_a_tensor_with_two_names_is_cut_at_both_or_not_at_all() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    for plan in (
        Plan((Gather("0.weight", 0, (1, 2)),)),
        Plan((Gather("2.weight", 0, (1, 2)),)),
        Plan((), (Constant("2.weight", "2.bias", (0,), (1.0,)),)),
        Plan((Gather("0.bias", 0, (1,)), Gather("2.bias", 0, (1,))), (Constant("2.weight", "2.bias", (0,), (1.0,)),)),
    ):
        with pytest.raises(SurgeryError, match="is tied to"):
            apply(plan, model)
    assert model[2].weight is model[0].weight
    with pytest.raises(SurgeryError, match="is tied to"):
        check_sequential(model)


class Residual(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Shifted(nn.ReLU):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


class Named(nn.Linear):
    """A subclass that computes what its base computes is welcome."""


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Residual(nn.Linear(4, 4)), "Residual with a forward of its own"),
        (nn.Sequential(Residual(nn.Linear(4, 4)), nn.Linear(4, 4)), "'0' is a Residual"),
        (nn.Sequential(Doubled(4, 4), nn.Linear(4, 4)), "'0' is a Doubled"),
        (nn.Sequential(nn.Linear(4, 4), Shifted(), nn.Linear(4, 4)), "'1' is a Shifted"),
        (nn.Sequential(parametrized(), nn.Linear(4, 4)), "'0' computes its weight"),
        (nn.Sequential(nn.Linear(4, 4), Select(4), nn.Linear(4, 4)), "'1' is a Select"),
    ],
)
def test_what_computes_something_else_is_refused_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        check_sequential(model)
    check_sequential(nn.Sequential(Named(4, 4), nn.ReLU(), Named(4, 2)))


def test_a_bias_made_beside_a_frozen_weight_is_frozen_and_one_under_inference_trains() -> None:
    for frozen in (True, False):
        model: Any = nn.Sequential(nn.Linear(3, 4), Switch(4), nn.Sigmoid(), nn.Linear(4, 2, bias=False))
        model[3].weight.requires_grad_(not frozen)
        with torch.no_grad():
            model[1].theta[1] = 0.0
        plan = make_plan(graph_of(model), model, {"0": [0, 2, 3]})
        with torch.inference_mode():
            apply(plan, model)
        assert model[3].bias.requires_grad is not frozen
        model(torch.ones(2, 3)).sum().backward()


@settings(max_examples=30)
@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from(["rows", "norm", "bare norm", "columns", "grouped"]),
    st.integers(0, 99),
)
def test_switches_of_any_sign_fold_wherever_they_can_stand(bias: bool, training: bool, place: str, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        switch = Switch(4, init="normal", sizes=[1, 3] if place == "grouped" else None)
        before: dict[str, list[nn.Module]] = {
            "rows": [nn.Linear(3, 4, bias=bias), nn.Dropout(0.4), switch, nn.Tanh()],
            "norm": [nn.Linear(3, 4), nn.BatchNorm1d(4), switch, nn.Sigmoid()],
            "bare norm": [nn.Linear(3, 4, bias=bias), nn.BatchNorm1d(4, affine=False), switch, nn.ELU()],
            "columns": [nn.Linear(3, 4), nn.Tanh(), switch, nn.Dropout(0.5)],
            "grouped": [nn.Linear(3, 4), nn.GELU(), switch],
        }
        model = nn.Sequential(*before[place], nn.Linear(4, 2, bias=bias)).double().train(training)
        x = torch.randn(6, 3, dtype=torch.float64)
    small = fold(model)
    assert small.training is training
    assert not any(isinstance(m, Switch) for m in small.modules())
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-10)


def test_a_norm_without_a_bias_behind_the_switch_emits_its_constant() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(4)
        norm.register_parameter("bias", None)
        model: Any = nn.Sequential(nn.Linear(3, 4), Switch(4), norm, nn.Sigmoid(), nn.Linear(4, 2)).double()
        x = torch.randn(6, 3, dtype=torch.float64)
    model(x)
    model.eval()
    with torch.no_grad():
        model[1].theta[2] = 0.0
    before = model(x)
    apply(make_plan(graph_of(model), model, {"0": [0, 1, 3]}), model)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
