"""An interrupt at any line of surgery leaves all of it done, or nothing: network, optimizer, copies, graph, session, modes."""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import pared
from pared.methods import GroupLasso, UnitSession
from pared.surgery import Graph, remove_blocks, remove_idle


@dataclass
class Scene:
    """What an operation changes, copied for each try."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module
    graph: Graph
    session: UnitSession | None = None


def trained(model: nn.Module, x: torch.Tensor) -> Scene:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(x).sum().backward()
    optimizer.step()
    return Scene(model, optimizer, copy.deepcopy(model), pared.graph(model, x))


def units() -> Scene:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    scene = trained(model, torch.ones(3, 4))
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0.0  # type: ignore[index]
    return scene


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def block() -> Scene:
    model = nn.Sequential(nn.Linear(3, 4), Residual(), nn.Linear(4, 2))
    scene = trained(model, torch.ones(2, 3))
    with torch.no_grad():
        for parameter in model.get_submodule("1.body.2").parameters():
            parameter.zero_()
    return scene


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.second(x)
        return self.last(self.first(x).relu())


def pressed() -> Scene:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    session = GroupLasso(every=100).bind(model, optimizer, torch.ones(3, 4), steps_per_epoch=9)
    model(torch.ones(3, 4)).sum().backward()
    session.step()
    for selector in session.selectors.values():
        selector.alive[1] = False
        selector.silence()
    average = copy.deepcopy(model)
    session.follow(average)
    return Scene(model, optimizer, average, session.graph, session)


def follow(scene: Scene) -> dict[str, Any]:
    return {"graph": scene.graph, "optimizer": scene.optimizer, "ema": [scene.average]}


def session_of(scene: Scene) -> UnitSession:
    assert scene.session is not None
    return scene.session


CASES: dict[str, tuple[Callable[[], Scene], Callable[[Scene], object]]] = {
    "units": (units, lambda s: pared.remove(s.model, {"0": [1, 4]}, **follow(s))),
    "all dead": (units, lambda s: pared.remove_dead(s.model, **follow(s))),
    "block": (block, lambda s: remove_blocks(s.model, ["1"], **follow(s))),
    "idle": (lambda: trained(Idle(), torch.ones(2, 3)), lambda s: remove_idle(s.model, **follow(s))),
    "session": (pressed, lambda s: session_of(s).remove()),
}


def told(scene: Scene) -> Any:
    """All that has to fit together, by value."""
    held = {id(p): name for name, p in scene.model.named_parameters()}
    session, graph = scene.session, scene.graph
    fields = ("slots", "weights", "params", "kept", "created", "events")
    return {
        "network": [(n, tuple(t.shape), float(t.detach().double().sum())) for n, t in scene.model.state_dict().items()],
        "modules": [(name, type(module).__name__, str(module)) for name, module in scene.model.named_modules()],
        "average": [(name, tuple(t.shape)) for name, t in scene.average.state_dict().items()],
        "groups": [[held[id(p)] for p in group["params"]] for group in scene.optimizer.param_groups],
        "state": {held[id(p)]: tuple(s["exp_avg"].shape) for p, s in scene.optimizer.state.items()},
        "graph": str(graph) + str([(s.name, s.size, s.kept, s.slots) for s in graph.spaces]),
        "program": [(s.op, [v.shape for v in s.values()], [v.shape for v in s.outs()]) for s in graph.program.steps],
        "tensors": {name: value.shape for name, value in graph.program.tensors.items()},
        "session": session
        and [str(getattr(session, f)) for f in fields] + [str(u.state) for u in session.units.values()],
    }


class Tracer:
    """Raise before line `number` of those of the library, and of torch's switches of modes, that run in this thread."""

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        place = frame.f_code.co_filename
        if "/pared/" not in place and not place.endswith(("grad_mode.py", "_contextlib.py")):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.number:
                raise KeyboardInterrupt
        return self


def lines(scene: Scene, act: Callable[[Scene], object], number: int) -> int:
    """Act, interrupted at a line, and return how many ran."""
    tracer, old = Tracer(number), sys.gettrace()
    sys.settrace(tracer)
    try:
        act(scene)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(old)
    return tracer.count


def check(case: str, chosen: Callable[[int], list[int]]) -> None:
    make, act = CASES[case]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = make()
    before, after = told(first), copy.deepcopy(first)
    count = lines(after, act, 0)
    done = told(after)
    assert done != before
    partly = case == "all dead"  # one removal after the other
    ends = [0, 0]
    for number in chosen(count):
        scene = copy.deepcopy(first)
        assert lines(scene, act, number) == number
        assert torch.is_grad_enabled(), number
        now = told(scene)
        assert partly or now in (before, done), number
        ends[now == done] += 1
        if now == before:  # and it can be done again
            act(scene)
            assert told(scene)["network"] == done["network"], number
    assert ends[0]


@pytest.mark.parametrize("case", CASES)
def test_some_lines(case: str) -> None:
    check(case, lambda count: sorted({*range(1, count, max(1, count // 25)), *range(count - 25, count + 1)}))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_line(case: str) -> None:
    check(case, lambda count: list(range(1, count + 1)))
