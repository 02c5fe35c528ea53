"""A resized network in one file, and back into a fresh instance of the user's own class."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pared.errors import ConfigError, RunError
from pared.nn import FixedAdjacency, Zero, ZeroAttention
from pared.nn.graph import checked
from pared.nn.sparse_layer import DERIVED, SparseLayer
from pared.ops.pattern import Pattern
from pared.storage import read_tensors, write_named
from pared.surgery.apply import refresh_recurrent
from pared.surgery.prune_masks import folded_file, refresh_masked, refuse_plain_file
from pared.surgery.stand_in import FUSED, stands_for, unfuse
from pared.surgery.trace import tensors

FORMAT = 1
Network = TypeVar("Network", bound=nn.Module)
_KEY = "pared"
#: The indices of a sparse layer that a file holds.
_INDICES = ("crow", "col")
_ZEROS = (Zero, ZeroAttention)


def save(model: nn.Module, path: str | Path) -> Path:
    """Write the tensors of `model` and its structure to one safetensors file, whole or not at all; return its path.

    Structure is JSON in the file's metadata: the integer attributes of modules (widths, groups, heads), ties between
    tensors, modules that have become the identity or zero, and a checksum over everything. Nothing is pickled. Masks of
    `torch.nn.utils.prune` are written as they are.

    Raises:
        RunError: a tensor's type is not known to safetensors, or the file cannot be written.
    """
    from safetensors.torch import save as to_bytes

    path = Path(path)
    first: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    mine = _tensors(model)
    keys = _identities(model, mine)
    for name, tensor in mine.items():
        if keys[name] in first:
            aliases[name] = first[keys[name]]
        else:
            first[keys[name]] = name
            held[name] = tensor.detach().cpu().contiguous().clone()
    structure = {
        "format": FORMAT,
        "network": f"{type(model).__module__}.{type(model).__qualname__}",
        "aliases": aliases,
        "numbers": {name: numbers for name, module in model.named_modules() if (numbers := _numbers(module))},
        "identities": [name for name, module in model.named_modules() if type(module) is nn.Identity],
        "zeros": [name for name, module in model.named_modules() if type(module) in _ZEROS],
    }
    structure["checksum"] = _checksum(structure, held)
    try:
        content = to_bytes(held, metadata={_KEY: json.dumps(structure)})
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(
            f"{path} cannot hold this network ({error}); use real floating-point and integer tensors"
        ) from None
    write_named(path, content)
    return path


def load(model: Network, path: str | Path, *, device: torch.device | str | None = None, mmap: bool = False) -> Network:
    """Resize `model`, a fresh instance of the class that was saved, to the file's structure, fill it, and return it.

    It may live on the meta device, so that no weight is made twice; it then comes to `device` (the CPU if None). Make
    the optimizer afterwards: parameters of other sizes are new objects. Values come in the model's own type.

    Where the file has masks of `torch.nn.utils.prune`, and `model` has none, weights are 0 where they are dead.
    The network keeps nothing of the file. With `mmap`, parameters that are made anew (those of other sizes, and all of a
    model on the meta device) stay mapped to it, which saves memory; the file must then stay as it is.

    Raises:
        RunError: the file is missing, damaged, of a newer format, or of another network; nothing was changed.
    """
    path = Path(path)
    structure, held = _read(path, mmap)
    mine = _tensors(model)
    held, structure["aliases"] = folded_file(held, structure["aliases"], mine)
    refuse_plain_file(path, model, (*held, *structure["aliases"]))
    _check_names(path, model, mine, held, structure)
    drawn = {name: held[structure["aliases"].get(name, name)] for name in (*held, *structure["aliases"])}
    patterns = _patterns(path, model, structure, drawn)
    places = {f"{prefix}{part}" for prefix in patterns for part in _INDICES}
    graphs = _graphs(path, model, structure, drawn)
    free = places | {f"{prefix}values" for prefix in patterns} | graphs
    changed = _check_shapes(path, mine, {name: tensor for name, tensor in drawn.items() if name not in free})
    changed |= {name for name in graphs if mine[name].shape != drawn[name].shape}
    settings = _settings(path, model, structure, changed)
    # Patterns come whole, and never into indices that are there, which other layers and the user may hold too.
    _fill(model, mine, {name: tensor for name, tensor in drawn.items() if name not in places}, device)
    for layer, pattern in patterns.values():
        layer.set_pattern(pattern.to(layer.values.device))
    for name in _replaced(model, structure):
        parent, _, key = name.rpartition(".")
        kind = "zero" if name in structure.get("zeros", ()) else "identity"
        model.get_submodule(parent)._modules[key] = stands_for(model.get_submodule(name), kind)
        unfuse(model, name)
    for module, attribute, value in settings:
        setattr(model.get_submodule(module), attribute, value)
    refresh_masked(model, [], always=True)
    refresh_recurrent(model, [])
    return model


def _numbers(module: nn.Module) -> dict[str, int]:
    """The integer attributes of a module itself, but for what follows from the modules that it holds."""
    return {k: v for k, v in vars(module).items() if type(v) is int and not k.startswith("_") and k != FUSED}


def _checksum(structure: Mapping[str, Any], held: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps({k: v for k, v in structure.items() if k != "checksum"}, sort_keys=True).encode())
    for name in sorted(held):
        tensor = held[name]
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()


def _read(path: Path, mmap: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError

    try:
        metadata, held = read_tensors(path, mmap=mmap)
        structure = json.loads(metadata[_KEY])
        version = structure["format"]
        if type(version) is int and version > FORMAT:
            raise RunError(f"{path} has format {version}, newer than this pared's {FORMAT}; update pared")
        if version != FORMAT or structure["checksum"] != _checksum(structure, held):
            raise RunError(f"{path} is damaged: its content does not match its checksum; take it from its source again")
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; give the path that pared.save returned") from None
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError) as error:
        raise RunError(
            f"{path} cannot be read as a network that pared saved ({type(error).__name__}: {error})"[:300]
            + "; take it from its source again"
        ) from None
    return structure, held


def _misfit(path: Path, what: str) -> RunError:
    return RunError(f"{path} does not fit this network: {what}; build the network with the arguments it was saved with")


def _check_names(
    path: Path, model: nn.Module, mine: Mapping[str, Tensor], held: Mapping[str, Tensor], structure: Mapping[str, Any]
) -> None:
    names = {*held, *structure["aliases"]}
    gone = tuple(f"{name}." for name in _replaced(model, structure))
    missing = [name for name in mine if name not in names and not name.startswith(gone or ("\0",))]
    if missing:
        raise _misfit(path, f"{missing[0]!r} is not in the file")
    for name in names - mine.keys():
        parent, _, key = name.rpartition(".")
        try:
            fits = key == "bias" and key in model.get_submodule(parent)._parameters
        except AttributeError:
            fits = False
        if not fits:
            raise _misfit(path, f"it holds {name!r}, which the network does not have")
    ids: dict[Any, str] = {}
    for name, key in _identities(model, mine).items():
        source = structure["aliases"].get(name, name)
        if name in names and ids.setdefault(key, source) != source:
            raise _misfit(path, f"{name!r} is tied to another tensor here and not in the file")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a file holds: those of sparse layers that follow from others it does not."""
    derived = {prefix + part for prefix in _sparse(model) for part in DERIVED}
    return {name: tensor for name, tensor in tensors(model).items() if name not in derived}


def _sparse(model: nn.Module) -> dict[str, SparseLayer]:
    """Return sparse layers by what all their names in front of their tensors are."""
    named = model.named_modules(remove_duplicate=False)
    return {f"{name}." if name else "": layer for name, layer in named if isinstance(layer, SparseLayer)}


def _identities(model: nn.Module, mine: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return by name what two names have in common that are one tensor.

    Indices count as the layer's own: layers that are made from one pattern share them without being tied.
    """
    own = {prefix + part: (id(layer), part) for prefix, layer in _sparse(model).items() for part in _INDICES}
    return {name: own.get(name, id(tensor)) for name, tensor in mine.items()}


def _patterns(
    path: Path, model: nn.Module, structure: Mapping[str, Any], drawn: Mapping[str, Tensor]
) -> dict[str, tuple[SparseLayer, Pattern]]:
    """Return sparse layers that stay, by all their names, with where the file says that their weights live."""
    gone = tuple(f"{name}." for name in _replaced(model, structure))
    found = {}
    for prefix, layer in _sparse(model).items():
        if prefix.startswith(gone):
            continue
        try:
            found[prefix] = (layer, layer.read_pattern(*(drawn[prefix + part] for part in (*_INDICES, "values"))))
        except ConfigError as error:
            raise _misfit(path, f"layer {prefix[:-1]!r}: {error}") from None
    return found


def _graphs(path: Path, model: nn.Module, structure: Mapping[str, Any], drawn: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the tensors of fixed graphs that stay: they come as the file has them, dense or by edges."""
    found: set[str] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        names = [f"{name}.{part}".lstrip(".") for part in ("value", "row", "col")]
        if not isinstance(module, FixedAdjacency) or not drawn.keys() >= set(names):
            continue
        value, row, col = (drawn[part] for part in names)
        nodes = structure["numbers"].get(name, {}).get("nodes", module.nodes)
        try:
            row, _ = checked(nodes, (row, col))
        except ConfigError as error:
            raise _misfit(path, f"graph {name!r}: {error}") from None
        if nodes > module.nodes or value.shape != ((nodes, nodes) if value.ndim == 2 else row.shape):
            told = f"{nodes} nodes and values of shape {tuple(value.shape)} in the file and {module.nodes} nodes here"
            raise _misfit(path, f"graph {name!r} has {told}")
        found.update(names)
    return found


def _check_shapes(path: Path, mine: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> set[str]:
    """Return the names of tensors whose shape changes."""
    changed = set()
    for name, new in drawn.items():
        old = mine.get(name)
        if old is None:
            changed.add(name)
            continue
        if old.ndim != new.ndim or any(n > o for n, o in zip(new.shape, old.shape, strict=True)):
            raise _misfit(path, f"{name!r} is {tuple(new.shape)} in the file and {tuple(old.shape)} here")
        if old.is_floating_point() != new.is_floating_point():
            raise _misfit(path, f"{name!r} is {new.dtype} in the file and {old.dtype} here")
        if old.shape != new.shape:
            changed.add(name)
    return changed


def _settings(
    path: Path, model: nn.Module, structure: Mapping[str, Any], changed: set[str]
) -> list[tuple[str, str, int]]:
    """The integer attributes to set: those that differ in modules whose tensors have another shape."""
    found = []
    for name, module in model.named_modules():
        saved = structure["numbers"].get(name, {})
        for key, value in _numbers(module).items():
            other = saved.get(key, value)
            if other == value:
                continue
            if type(other) is not int or not any(tensor.startswith(f"{name}." if name else "") for tensor in changed):
                raise _misfit(path, f"{f'{name}.{key}'.lstrip('.')!r} is {other} in the file and {value} here")
            found.append((name, key, other))
    return found


def _replaced(model: nn.Module, structure: Mapping[str, Any]) -> list[str]:
    """The modules that have become the identity, or zero, since they were built."""
    modules = dict(model.named_modules())
    wanted = [(name, (nn.Identity,)) for name in structure["identities"]]
    wanted += [(name, _ZEROS) for name in structure.get("zeros", ())]
    return [name for name, kinds in wanted if name and name in modules and type(modules[name]) not in kinds]


@torch.no_grad()
def _fill(model: nn.Module, mine: Mapping[str, Tensor], drawn: Mapping[str, Tensor], device: Any) -> None:
    made: dict[int, Tensor] = {}
    for name, new in drawn.items():
        old = mine.get(name)
        if old is None:
            parent, _, key = name.rpartition(".")
            module = model.get_submodule(parent)
            like = next(t for t in module._parameters.values() if t is not None)
            where = _where(like, device)
            module._parameters[key] = nn.Parameter(new.to(where, like.dtype), requires_grad=like.requires_grad)
        elif id(old) not in made:
            made[id(old)] = _made(old, new, _where(old, device))
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for key, old in table.items():
                if old is not None and id(old) in made:
                    table[key] = made[id(old)]  # type: ignore[assignment]


def _where(old: Tensor, device: Any) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cpu") if old.is_meta else old.device


def _made(old: Tensor, new: Tensor, where: torch.device) -> Tensor:
    if old.shape == new.shape and old.device == where:
        return old.copy_(new)
    content = new.to(where, old.dtype)
    return nn.Parameter(content, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else content
