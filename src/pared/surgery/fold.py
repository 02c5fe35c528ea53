"""Fold switches into the layers beside them."""

import copy

import torch
from torch import nn

from pared.errors import SurgeryError
from pared.nn import Select, Switch
from pared.surgery.sequential import check_sequential, leaves


@torch.inference_mode(False)
@torch.no_grad()
def fold(model: nn.Module) -> nn.Sequential:
    """Return a new, plain `nn.Sequential` that computes what `model` computes in evaluation, without its switches.

    A switch goes into the Linear or BatchNorm1d right before it (rows and bias scaled, exact for any sign of theta; a
    norm without weight and bias gets them), else into the Linear right after it (columns scaled). A leading `Select`
    is left out: the result takes the selected inputs only. Dropout in between does not matter. The original is not
    changed.

    Raises:
        SurgeryError: a switch stands between two layers that do not scale.

    Source: ShrinkNets (arXiv 1806.03723), section 3.2, "fold".
    """
    check_sequential(model)
    assert isinstance(model, nn.Sequential)
    modules = [copy.deepcopy(module) for _, module in leaves(model)]
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
