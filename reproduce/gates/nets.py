"""The networks of images.py: what competes in each, how a group lasso presses on it, and how what has lost leaves."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pared.methods import Gates
from pared.methods.components import Groups, add_gates
from pared.models import branch_groups, densenet, depth_groups, input_groups, resnet, resnext
from pared.nn import Channels, Gate, SoftmaxGate
from pared.ops import group_soft_threshold


@dataclass(frozen=True)
class Net:
    """A network by its width, what competes in it, the side of the images it sees, and what is tried with it."""

    make: Callable[..., nn.Module]
    groups: Callable[[nn.Module], Groups]
    side: int
    widths: tuple[int, ...]
    strengths: tuple[float, ...]
    lassos: tuple[float, ...]


def _resnext(width: int, generator: torch.Generator) -> nn.Module:
    """Thinner in all: fewer branches, and fewer channels between blocks."""
    return resnext((2, 2, 2), branches=width, width=2, stem=width, generator=generator)


def _densenet(width: int, generator: torch.Generator) -> nn.Module:
    """Without bottlenecks, in which inputs would cost little beside the 3x3 convolution behind them."""
    return densenet((4, 4, 4), growth=width, stem=2 * width, bottleneck=False, generator=generator)


#: The first width is the dense network's. Strengths are near those that removed some but not all on seed 100, in few runs; those
#: of ResNet's lasso are guesses.
NETS = {
    "resnet": Net(
        lambda width, generator: resnet((3, 3, 3), width=width, generator=generator),
        depth_groups,
        32,
        (8, 6, 5, 4),
        (0.12, 0.2, 0.3),
        (0.1, 0.2, 0.4),
    ),
    "resnext": Net(_resnext, branch_groups, 16, (8, 6, 4), (0.16, 0.18), (0.03, 0.1)),
    "densenet": Net(_densenet, input_groups, 16, (8, 6, 4), (0.1, 0.4), (0.05, 0.1)),
}


def sizes(groups: Groups) -> dict[str, int]:
    """Return how many components each group has."""
    return {title: len(group.sizes if isinstance(group, Channels) else group) for title, group in groups.items()}


def without(model: nn.Module, groups: Groups, kept: Mapping[str, Sequence[int]], example: Tensor) -> nn.Module:
    """Return the network with the components `kept` only, physically: gates of 1 and 0 are put in, killed and removed."""
    gates = add_gates(model, groups, Gate)
    for title, gate in gates.items():
        dead = torch.ones_like(gate.alive)
        dead[list(kept[title])] = False
        gate.kill(dead)
        gate.scale = float(len(kept[title]))
    return removed(model, example)


def removed(model: nn.Module, example: Tensor) -> nn.Module:
    """Return the network without what its gates have killed."""
    return Gates(0.0).bind(model, torch.optim.SGD(model.parameters()), example, steps_per_epoch=1).realize()


def softmax_gates(model: nn.Module, groups: Groups, kept: Mapping[str, Sequence[int]]) -> dict[str, SoftmaxGate]:
    """Put softmax gates into a network, which keep as many components as `kept` has; all begin at 1, as those of `Gates`."""
    count = iter(len(kept[title]) for title in groups)

    def make(n: int, **options: Any) -> SoftmaxGate:
        gate = SoftmaxGate(n, k=next(count), **options)
        gate.scale = float(n)
        return gate

    return add_gates(model, groups, make)  # pyright: ignore[reportReturnType]


def components(model: nn.Module, groups: Groups) -> dict[str, list[Tensor]]:
    """Return the weights that each component's contribution hangs on, by group: without them it gives 0.

    Of a block those of its last norm; of channels the columns of the convolution that reads them. A norm follows both
    ResNeXt's sum of branches and DenseNet's layers, so that there only the ratios of norms matter.
    """
    found: dict[str, list[Tensor]] = {}
    for title, group in groups.items():
        if isinstance(group, Channels):
            found[title] = list(_reader(model, group).weight.split(list(group.sizes), 1))
        else:
            found[title] = [model.get_parameter(f"{name}.weight") for name in group]
    return found


def _reader(model: nn.Module, group: Channels) -> nn.Conv2d:
    layer, _, relu = group.name.rpartition(".")
    return model.get_submodule(f"{layer}.{'conv3' if relu == 'relu2' else 'conv1'}")  # pyright: ignore[reportReturnType]


def lasso_groups(model: nn.Module, groups: Groups, strength: float, example: Tensor) -> list[dict[str, Any]]:
    """Return groups of parameters for `Proximal`, pressed by what a component costs, as those of `Gates` are."""
    twin = copy.deepcopy(model)
    costs = Gates(0.0, groups, cost="macs").bind(twin, torch.optim.SGD(twin.parameters()), example, steps_per_epoch=1)
    found: list[dict[str, Any]] = []
    for title, group in groups.items():
        pressed = {"strength": strength * costs.weights[title]}
        if isinstance(group, Channels):
            prox = partial(_shrunk, sizes=list(group.sizes), dim=1)
            found.append({"params": [_reader(model, group).weight], "prox": prox, **pressed})
            continue
        for name in group:
            norm: Any = model.get_submodule(name)
            prox = partial(_shrunk, sizes=[norm.num_features], dim=0)
            found.append({"params": [norm.weight], "prox": prox, **pressed})
            found.append({"params": [norm.bias], "prox": partial(_follows, weight=norm.weight), **pressed})
    return found


def _shrunk(x: Tensor, threshold: float, sizes: list[int], dim: int) -> Tensor:
    """Shrink segments along `dim`, each as a group, by a threshold that goes with the root of its size (Yuan and Lin)."""
    axes = tuple(range(x.ndim))
    parts = (group_soft_threshold(part, threshold * math.sqrt(part.numel()), axes) for part in x.split(sizes, dim))
    return torch.cat(list(parts), dim)


def _follows(bias: Tensor, threshold: float, weight: Tensor) -> Tensor:
    """A norm's bias is 0 where its weights are, so that nothing is left of the block."""
    del threshold
    return bias * weight.any()


def hold_zeros(optimizer: Any) -> None:
    """Let what a lasso has made 0 stay so, and press no more on the rest."""
    for group in optimizer.param_groups:
        if callable(group["prox"]):
            (weight,) = group["params"]
            group["prox"] = partial(_masked, mask=weight.detach() != 0)


def _masked(x: Tensor, threshold: float, mask: Tensor) -> Tensor:
    """Return `x` with zeros where they were."""
    del threshold
    return x * mask
