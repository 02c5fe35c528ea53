"""What stands beside a network while it trains goes on after a removal as if nothing had happened."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pared

STEPS, GONE = 8, {"first": [1, 4], "inner": [0]}


class Net(nn.Module):
    """A convolution, a residual branch with norms, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.inner, self.outer = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()
        y = y + self.outer(self.inner(y).relu())
        return self.head(y.mean((2, 3)))


def dead() -> Net:
    """A network in which the entries of GONE neither say anything nor are listened to, so that they stay dead."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: Any = Net().double()
    with torch.no_grad():
        for tensor in (net.norm.weight, net.norm.bias, net.outer.weight, net.outer.bias):
            tensor[GONE["first"]] = 0.0
        for tensor in (net.inner.weight, net.head.weight):
            tensor[:, GONE["first"]] = 0.0
        for tensor in (net.inner.weight, net.inner.bias):
            tensor[GONE["inner"]] = 0.0
        net.outer.weight[:, GONE["inner"]] = 0.0
    return net


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=generator), torch.randint(
        3, (8,), generator=generator
    )


Companion = Callable[[nn.Module, torch.optim.Optimizer], Any]


def train(companion: Companion, *, surgery: bool, forward: Callable[[nn.Module], Any] = lambda net: net) -> list[Any]:
    """Losses, step sizes and averaged answers, step by step."""
    net = dead()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    graph, beside, run, told = pared.graph(net, batch(0)[0]), companion(net, optimizer), forward(net), []
    for step in range(STEPS):
        if surgery and step == 3:
            averaged = [beside] if isinstance(beside, AveragedModel) else []
            pared.remove(net, GONE, graph=graph, optimizer=optimizer, ema=averaged)
            assert net.first.out_channels == net.norm.num_features == 4
        x, y = batch(step)
        loss = nn.functional.cross_entropy(run(x), y)
        if isinstance(beside, torch.amp.GradScaler):
            beside.scale(loss).backward()
            beside.step(optimizer)
            beside.update()
            told.append(beside.get_scale())
        else:
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        if isinstance(beside, AveragedModel):
            beside.update_parameters(net)
            told.append(beside.eval()(x).tolist())
        elif isinstance(beside, lr_scheduler.ReduceLROnPlateau):
            beside.step(1.0)
        elif isinstance(beside, lr_scheduler.LRScheduler):
            beside.step()
        group = optimizer.param_groups[0]
        told += [float(loss.detach()), group["lr"], group["momentum"]]
    return told


COMPANIONS: dict[str, Companion] = {
    "LambdaLR": lambda net, optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
    "OneCycleLR": lambda net, optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1),
    "ReduceLROnPlateau": lambda net, optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "EMA": lambda net, optimizer: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True),
    "GradScaler": lambda net, optimizer: torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2),
}


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_run_goes_on_as_if_nothing_had_been_removed(name: str) -> None:
    whole, cut = (train(COMPANIONS[name], surgery=surgery) for surgery in (False, True))
    torch.testing.assert_close(torch.tensor(cut[-1]), torch.tensor(whole[-1]))
    for mine, wanted in zip(cut, whole, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_follows() -> None:
    def compiled(net: nn.Module) -> Any:
        return torch.compile(net, backend="aot_eager", fullgraph=True)

    torch.compiler.reset()
    whole = train(lambda *_: None, surgery=False)
    cut = train(lambda *_: None, surgery=True, forward=compiled)
    torch.compiler.reset()
    torch.testing.assert_close(torch.tensor(cut), torch.tensor(whole), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_wrapper_that_compile_returns_can_be_given() -> None:
    torch.compiler.reset()
    net = dead().eval()
    wrapped: Any = torch.compile(net, backend="aot_eager")
    before = wrapped(batch(0)[0])
    graph = pared.graph(wrapped, batch(0)[0])
    pared.remove(wrapped, GONE, graph=graph)
    torch.testing.assert_close(wrapped(batch(0)[0]), before, rtol=1e-10, atol=1e-12)
    assert net.first.out_channels == 4
    torch.compiler.reset()


def test_a_network_may_be_compiled_after() -> None:
    net = dead().eval()
    before = net(batch(0)[0])
    pared.remove(net, GONE, graph=pared.graph(net, batch(0)[0]))
    again = copy.deepcopy(net)
    again.compile(backend="aot_eager")
    torch.testing.assert_close(again(batch(0)[0]), before, rtol=1e-10, atol=1e-12)
    torch.compiler.reset()
