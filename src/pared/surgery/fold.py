"""Fold switches into the layers beside them."""

from typing import TypeVar, overload

import torch
from torch import nn

from pared.errors import SurgeryError
from pared.nn import Select, Switch
from pared.surgery.apply import bare
from pared.surgery.folding import Folder
from pared.surgery.graph import Graph, build
from pared.surgery.prune_masks import plain_copy, refuse_masks
from pared.surgery.sequential import check_sequential, leaves
from pared.surgery.trace import Example
from pared.surgery.whole import trains

Network = TypeVar("Network", bound=nn.Module)


@overload
def fold(model: nn.Module, example: None = None) -> nn.Sequential: ...
@overload
def fold(model: Network, example: Example) -> Network: ...
@trains
@torch.no_grad()
def fold(model: nn.Module, example: Example | None = None) -> nn.Module:
    """Return a new network that computes what `model` computes in evaluation, without its switches.

    A switch goes into the layer or norm right before it (rows and bias scaled, exact for any sign of theta; a batch norm
    without weight and bias gets them), else into the layers behind it (columns scaled), through whatever passes a factor
    on: dropout, reshapes, concatenation, averages; and, if all of theta is positive, relu and max-pooling.

    With `example` (as for `pared.graph`) the network may be any that can be traced: a copy of it comes back, where the
    layer that was switched stands under its own name again (`nn.Identity` where a switch stood by itself), and with
    those switches still in place that cannot be folded exactly. Without it,
    `model` is an `nn.Sequential` of linear layers, and a plain `nn.Sequential` comes back, whose first layer takes what
    a leading `Select` selected. The original is not changed.

    Raises:
        SurgeryError: the network cannot be traced, or is no such Sequential, or a switch in it stands between two
            layers that do not scale.

    Source: ShrinkNets (arXiv 1806.03723), section 3.2, "fold".
    """
    if example is not None:
        folded = plain_copy(bare(model))
        Folder(folded, build(folded, example).program).run()
        return folded
    return _fold_sequential(model)


@trains
@torch.no_grad()
def fold_by(model: Network, graph: Graph) -> Network:
    """Return what `fold` does, by a graph that is true of `model`, without tracing it again."""
    folded = plain_copy(model)
    fold_(folded, graph)
    return folded


@trains
@torch.no_grad()
def fold_(model: nn.Module, graph: Graph) -> list[str]:
    """Do to `model` itself what `fold_by` does to a copy, and return the switches by name that had to stay.

    Raises:
        SurgeryError: a weight has a mask of torch.nn.utils.prune.
    """
    refuse_masks(model, "folding in place (pared.fold makes a copy)")
    return Folder(model, graph.program).run()


def _fold_sequential(model: nn.Module) -> nn.Sequential:
    check_sequential(model)
    assert isinstance(model, nn.Sequential)
    modules = [module for _, module in leaves(plain_copy(model))]
    kept: list[nn.Module] = []
    pending: Switch | None = None
    for position, module in enumerate(modules):
        if isinstance(module, Switch):
            before = next((m for m in reversed(kept) if not isinstance(m, nn.Dropout)), None)
            if isinstance(before, nn.Linear | nn.BatchNorm1d):
                _into_rows(module, before)
            elif pending is None and _scales_next(modules[position + 1 :]):
                pending = module
            else:
                raise SurgeryError(
                    f"switch {position} stands between layers that do not scale, so it cannot be folded away; "
                    "place it right after a Linear"
                )
        elif not isinstance(module, Select | nn.Identity):
            if isinstance(module, nn.Linear) and pending is not None:
                module.weight.mul_(pending.factors())
                pending = None
            kept.append(module)
    folded = nn.Sequential(*kept)
    folded.training = model.training
    return folded


def _into_rows(switch: Switch, layer: nn.Linear | nn.BatchNorm1d) -> None:
    factors = switch.factors()
    if isinstance(layer, nn.BatchNorm1d) and not layer.affine:
        layer.affine = True
        layer.weight = nn.Parameter(torch.ones_like(factors))
        layer.bias = nn.Parameter(torch.zeros_like(factors))
    layer.weight.mul_(factors.unsqueeze(1) if isinstance(layer, nn.Linear) else factors)
    if layer.bias is not None:
        layer.bias.mul_(factors)


def _scales_next(following: list[nn.Module]) -> bool:
    following = [m for m in following if not isinstance(m, nn.Dropout | nn.Identity)]
    return bool(following) and isinstance(following[0], nn.Linear)
