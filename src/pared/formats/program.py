"""Any network as ONNX or as `torch.export`'s own program, checked against torch on the way out."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pared.errors import RunError
from pared.formats.onnx import quiet, serialized
from pared.nn.dense import dense
from pared.nn.sparse_layer import SparseLayer
from pared.process import in_evaluation
from pared.storage import write_named
from pared.surgery.prune_masks import plain_copy, plain_view

#: Largest difference to torch, relative to the largest output (but at least to 1).
TOLERANCE = 1e-5


def export(model: nn.Module, path: str | Path, example: Tensor | Sequence[Tensor], *, dynamic: bool = True) -> Path:
    """Write `model`, in evaluation mode, to `path`: ONNX for ".onnx", a `torch.export` program for ".pt2".

    `example` is what the forward pass takes, a tensor or a tuple of them, the batch on the first axis of each, of any
    size; the file takes batches of any size, too, unless `dynamic` is false. It is run on the example and, if dynamic,
    on other batch sizes, before it is put in place. The model is left as it was. Sparse layers are written as dense ones,
    masks of `torch.nn.utils.prune` as zeros.

    Raises:
        RunError: another suffix, a network that does not export, or outputs that differ from torch's by more than 1e-5
            of the largest.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise RunError(f"{path} ends neither in .onnx nor in .pt2, the two that can be written")
    args = (example,) if isinstance(example, Tensor) else tuple(example)
    if any(isinstance(module, SparseLayer) for module in model.modules()):
        model = dense(plain_copy(model))
    model = plain_view(model)
    try:
        with torch.no_grad(), quiet(), in_evaluation(model):
            _try(model, _batch(args, 2), path)
            content, run = (_onnx if path.suffix == ".onnx" else _pt2)(model, _batch(args, 2), dynamic)
            for rows in (1, 2, 5) if dynamic else (2,):
                _compare(model, run, _batch(args, rows), path)
    except RunError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        hint = "; try dynamic=False" if dynamic else ""
        raise RunError(f"{path} could not be written ({type(error).__name__}: {reason}){hint}") from error
    write_named(path, content)
    return path


def _try(model: nn.Module, args: tuple[Tensor, ...], path: Path) -> None:
    """Make sure that the network takes the example: what a tracer says where it does not is long and of other things."""
    try:
        model(*args)
    except Exception as error:
        shapes = [tuple(arg.shape) for arg in args]
        raise RunError(
            f"{path} could not be written, as the network does not take the example, here {shapes} ({type(error).__name__}: "
            f"{str(error).strip()[:200]}); give what its forward pass takes"
        ) from error


def _batch(args: Sequence[Tensor], rows: int) -> tuple[Tensor, ...]:
    """The example with another number of rows: its own, over and over."""
    return tuple(arg[torch.arange(rows, device=arg.device) % arg.shape[0]] for arg in args)


def _shapes(args: Sequence[Tensor], dynamic: bool) -> Any:
    rows = torch.export.Dim("rows")
    return tuple({0: rows} for _ in args) if dynamic else None


def _pt2(model: nn.Module, args: tuple[Tensor, ...], dynamic: bool) -> tuple[bytes, Any]:
    program = torch.export.export(model, args, dynamic_shapes=_shapes(args, dynamic))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    again = torch.export.load(io.BytesIO(content)).module()
    return content, lambda given: _flat(again(*given))


def _onnx(model: nn.Module, args: tuple[Tensor, ...], dynamic: bool) -> tuple[bytes, Any]:
    import onnxruntime

    program = torch.onnx.export(model, args, dynamic_shapes=_shapes(args, dynamic), dynamo=True, verbose=False)
    assert program is not None
    content = serialized(program.model_proto)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: value.cpu().numpy() for name, value in zip(names, given, strict=True)}
        return [torch.from_numpy(np.asarray(value)) for value in session.run(None, feed)]

    return content, run


def _flat(item: Any) -> list[Tensor]:
    if isinstance(item, Tensor):
        return [item]
    values = item.values() if hasattr(item, "values") else item if isinstance(item, list | tuple) else ()
    return [tensor for value in values for tensor in _flat(value)]


def _compare(model: nn.Module, run: Any, args: tuple[Tensor, ...], path: Path) -> None:
    for expected, got in zip(_flat(model(*args)), run(args), strict=True):
        expected, got = expected.double().cpu(), got.double().cpu()
        bound = TOLERANCE * max(1.0, float(expected.abs().max()))
        if expected.shape != got.shape or not torch.allclose(expected, got, rtol=0.0, atol=bound, equal_nan=True):
            raise RunError(
                f"{path}: the written program and torch differ for a batch of {args[0].shape[0]}, by more than {bound:.0e}; "
                "use pared.save and the class itself"
            )
