"""Modules in the place of others, and plain dense ones in the place of sparse."""

from collections.abc import Mapping

from torch import nn

from pared.nn.batch_major import BatchMajor
from pared.nn.sparse_layer import SparseLayer
from pared.nn.sparse_sequential import SparseSequential


def dense(model: nn.Module) -> nn.Module:
    """Return `model` with every sparse layer in it, itself perhaps, made a dense one; in place but for itself.

    What only turns tensors for sparse layers becomes the identity, and a `SparseSequential` an `nn.Sequential`.
    """
    made: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, SparseLayer):
            made[id(module)] = module.to_dense_layer()
        elif isinstance(module, BatchMajor):
            made[id(module)] = nn.Identity().train(module.training)
        elif type(module) is SparseSequential:
            made[id(module)] = retyped(module, nn.Sequential())
    return replaced(model, made)


def replaced(model: nn.Module, made: Mapping[int, nn.Module]) -> nn.Module:
    """Return `model` with what is `made` in the place of modules by their `id`, itself perhaps; in place but for itself.

    A module in several places stays one.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in made:
                parent._modules[name] = made[id(child)]
    return made.get(id(model), model)


def retyped(module: nn.Sequential, made: nn.Sequential) -> nn.Sequential:
    """Return `made`, a fresh one, with all that `module` holds: both have the same layers and hooks."""
    made.__dict__.update(module.__dict__)
    return made
