"""The pair NAME.json and NAME.safetensors: structure, preprocessing and task as JSON, weights as safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pared._version import __version__
from pared.data.dialect import Dialect
from pared.data.encode import Encoder
from pared.data.task import Task
from pared.errors import RunError
from pared.storage import write_atomically

#: Version 2 has the dialect of the training table, "table"; files of version 1 are read without one.
FORMAT, VERSION, OLDEST = "pared.model", 2, 1
#: Layers without parameters that a document may name.
PLAIN: dict[str, type[nn.Module]] = {
    layer.__name__: layer
    for layer in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Identity)
}


@dataclass(frozen=True)
class Document:
    """A network with everything needed to answer for a table; `model` takes `encoder`'s inputs, in evaluation mode."""

    model: nn.Sequential
    encoder: Encoder
    task: Task
    metric: str
    scores: Mapping[str, Any]
    dialect: Dialect | None = None

    def reading(self) -> dict[str, Any]:
        """Return the keywords with which `load_table` reads new rows as the training table was read."""
        texts = [column.name for column in self.encoder.columns if column.kind in ("category", "boolean")]
        return {"like": self.dialect, "texts": texts}


def save_document(path: Path, document: Document) -> None:
    """Write `path`.safetensors and `path`.json (path without extension), each atomically, the weights first.

    Raises:
        RunError: the network holds a layer that documents do not know, or the disk is full.
    """
    from safetensors.torch import save

    layers = [_layer(name, module) for name, module in document.model.named_children()]
    data = {
        "format": FORMAT,
        "version": VERSION,
        "pared": __version__,
        "layers": layers,
        "encoder": document.encoder.to_json(),
        "task": document.task.to_json(),
        "metric": document.metric,
        "scores": dict(document.scores),
        "table": None if document.dialect is None else document.dialect.to_json(),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in document.model.state_dict().items()}
    write_atomically(path.with_suffix(".safetensors"), save(tensors))
    write_atomically(path.with_suffix(".json"), json.dumps(data, indent=1, ensure_ascii=False))


def load_document(path: Path) -> Document:
    """Read a document by the path of either file, or without extension; nothing in it is executed.

    Raises:
        RunError: a file is missing, damaged, of another format, or the two do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    structure, weights = path.with_suffix(".json"), path.with_suffix(".safetensors")
    try:
        data = json.loads(structure.read_text(encoding="utf-8"))
        tensors = load(weights.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{error.filename} does not exist; give the path of a model that pared wrote") from None
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise RunError(f"{structure.with_suffix('')} is damaged ({error}); copy or write the model again") from None
    try:
        if data["format"] != FORMAT or data["version"] not in range(OLDEST, VERSION + 1):
            raise RunError(
                f"{structure}: expected {FORMAT} version {OLDEST} to {VERSION}, got {data['format']!r} version "
                f"{data['version']!r}; "
                "use the pared that wrote it"
            )
        model = nn.Sequential(*[_module(layer) for layer in data["layers"]])
        encoder, task = Encoder.from_json(data["encoder"]), Task.from_json(data["task"])
        _fill(model, tensors, len(encoder.inputs), task.outputs, structure)
        dialect = Dialect.from_json(data["table"]) if data.get("table") is not None else None
        return Document(model.eval(), encoder, task, str(data["metric"]), dict(data["scores"]), dialect)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise RunError(
            f"{structure} is no model document of pared ({type(error).__name__}: {error}); write it again"
        ) from None


def _layer(name: str, module: nn.Module) -> dict[str, Any]:
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        sizes = {"in_features": module.in_features, "out_features": module.out_features}
        return {"type": kind, "name": name, **sizes, "bias": module.bias is not None}
    if PLAIN.get(kind) is not type(module):
        raise RunError(
            f"layer {name!r} is a {kind}, which a model document does not hold; use Linear and plain activations"
        )
    return {"type": kind, "name": name}


def _module(layer: Mapping[str, Any]) -> nn.Module:
    if layer["type"] == "Linear":
        sizes = layer["in_features"], layer["out_features"]
        if not all(isinstance(size, int) and 0 < size < 2**31 for size in sizes):
            raise ValueError(f"sizes {sizes} of layer {layer['name']!r}")
        return nn.Linear(*sizes, bias=bool(layer["bias"]), device="meta")
    return PLAIN[layer["type"]]()


def _fill(model: nn.Sequential, tensors: Mapping[str, torch.Tensor], inputs: int, outputs: int, path: Path) -> None:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    got = {key: tuple(value.shape) for key, value in tensors.items()}
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    widths = [inputs, *(layer.out_features for layer in linears)]
    fits = bool(linears) and all(layer.in_features == width for layer, width in zip(linears, widths, strict=False))
    plain = all(value.dtype == torch.float32 for value in tensors.values())
    if expected != got or not fits or widths[-1] != outputs or not plain:
        raise RunError(f"{path}: the weights do not fit the structure; copy both files of the model again")
    model.load_state_dict(dict(tensors), assign=True)
