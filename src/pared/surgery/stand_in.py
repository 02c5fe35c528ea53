"""Put the identity, or zero, where modules were, in a network and all that follows it."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from pared.nn import Gated, Switched, Zero, ZeroAttention
from pared.surgery.apply import bare
from pared.surgery.gather import Undo
from pared.surgery.optimizers import Optimizers, listed
from pared.surgery.whole import Whole, keeps_mode

#: What stands where a module was.
Kind = Literal["identity", "zero"]


@keeps_mode
@torch.no_grad()
def stand_in(
    kinds: Mapping[str, Kind], model: nn.Module, *, optimizer: Optimizers = None, ema: Iterable[nn.Module] = ()
) -> None:
    """Replace named modules of `model` and its averaged copies; what no one else uses leaves the optimizers.

    All or nothing. Nothing is said about what the network computes afterwards. In the place of `nn.MultiheadAttention` there
    is zero in either case.
    """
    with Whole() as undo:
        replace_modules(kinds, model, undo, optimizer=optimizer, ema=ema)


def replace_modules(
    kinds: Mapping[str, Kind],
    model: nn.Module,
    undo: list[Undo],
    *,
    optimizer: Optimizers = None,
    ema: Iterable[nn.Module] = (),
) -> None:
    """Do what `stand_in` does, and append how to take it back to `undo`."""
    model = bare(model)
    before = list(model.parameters())
    for target in (model, *map(bare, ema)):
        for name, kind in kinds.items():
            _replace(target, name, kind, undo)
    gone = {id(p) for p in before} - {id(p) for p in model.parameters()}
    for one in listed(optimizer):
        _forget(one, gone, undo)


def _replace(model: nn.Module, name: str, kind: Kind, undo: list[Undo]) -> None:
    parent, _, key = name.rpartition(".")
    modules = model.get_submodule(parent)._modules
    old = modules[key]
    undo.append(partial(modules.__setitem__, key, old))
    modules[key] = stands_for(old, kind)
    for module, attribute in _fused_around(model, name):
        undo.append(partial(setattr, module, attribute, getattr(module, attribute)))
        setattr(module, attribute, False)


def stands_for(old: nn.Module | None, kind: Kind) -> nn.Module:
    """Return what stands in the place of `old`: attention gives two results, so that it becomes zero in any case."""
    inner = getattr(old, "layer", old)
    if isinstance(inner, nn.MultiheadAttention):
        made: nn.Module = ZeroAttention(batch_first=inner.batch_first)
    else:
        made = nn.Identity() if kind == "identity" else Zero()
    return made.train(old is None or old.training)


#: By this torch's own transformer layers know which activation to fuse with the weights around it, past all modules: 0 is none.
FUSED = "activation_relu_or_gelu"
#: By this torch's own encoders know whether to give their layers nested tensors, which only those that are fused can take.
NESTED = "use_nested_tensor"


def unfuse(model: nn.Module, name: str) -> None:
    """Let torch's own transformer layers around module `name`, which is not what it was, call their modules."""
    for module, attribute in _fused_around(model, name):
        setattr(module, attribute, False)


def unnest(model: nn.Module) -> None:
    """Let torch's own encoders with gates or switches inside, which no layer is fused with, give them plain tensors."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, Gated | Switched) for m in module.modules()):
            setattr(module, NESTED, False)


def _fused_around(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    parts = name.split(".")
    around = [model.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
    told = {nn.TransformerEncoderLayer: FUSED, nn.TransformerEncoder: NESTED}
    return [(module, attribute) for module in around for kind, attribute in told.items() if isinstance(module, kind)]


def _forget(optimizer: Optimizer, gone: set[int], undo: list[Undo]) -> None:
    for group in optimizer.param_groups:
        before: list[Any] = list(group["params"])
        stays = [id(p) not in gone for p in before]
        for key in ("params", "param_names"):
            if key in group:
                held = list(group[key])
                undo.append(partial(group[key].__setitem__, slice(None), held))
                group[key][:] = [item for item, stay in zip(held, stays, strict=True) if stay]
        for parameter, stay in zip(before, stays, strict=True):
            if not stay and parameter in optimizer.state:
                undo.append(partial(optimizer.state.__setitem__, parameter, optimizer.state[parameter]))
                del optimizer.state[parameter]
