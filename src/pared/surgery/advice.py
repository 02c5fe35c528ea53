"""What to do where a graph does not understand weights that modules compute from others."""

import re
from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pared.surgery.axes import leaves
from pared.surgery.graph import Graph

_LAYER = re.compile(r"layer '([^']*)'")


def advise(graph: Graph, model: nn.Module) -> None:
    """Say of spaces that computed weights fix how to have plain ones instead."""
    ways = dict(_ways(model))
    for leaf in {leaf for space in graph.spaces for leaf in leaves(space.dim)} if ways else ():
        found = _LAYER.search(leaf.fixed or "")
        path = found[1] if found else None
        way = next((way for place, way in ways.items() if path == place or str(path).startswith(f"{place}.")), None)
        if way is not None:
            leaf.fixed = f"{leaf.fixed}; to have a plain weight there, call {way}"


def _ways(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield where weights are computed, with the call of torch's that makes them plain."""
    for path, module in model.named_modules():
        if isinstance(module, ParametrizationList):
            layer, _, key = path.rpartition(".parametrizations.")
            yield path, f"torch.nn.utils.parametrize.remove_parametrizations on {layer!r} and {key!r}"
        for hook in module._forward_pre_hooks.values():
            for kind, name in ((WeightNorm, "weight_norm"), (SpectralNorm, "spectral_norm")):
                if isinstance(hook, kind):
                    yield path, f"torch.nn.utils.remove_{name} on {path!r} and {hook.name!r}"
