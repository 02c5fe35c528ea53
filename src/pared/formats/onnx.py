"""ONNX, checked against torch on the way out."""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pared.errors import RunError
from pared.process import LOCK, silent
from pared.storage import write_atomically

#: Largest difference to torch that a float32 model may show.
TOLERANCE = 1e-5


def export_onnx(model: nn.Module, path: Path, inputs: Sequence[str], *, about: Mapping[str, str] | None = None) -> None:
    """Write `model` as one ONNX file with a dynamic batch: "inputs" float32 (n, len(inputs)) -> "outputs" (n, …).

    `inputs` are the names of the encoded features, stored with `about` in the file's metadata. The file is run with
    onnxruntime on batches of 1 and 17 rows before it is put in place.

    Raises:
        RunError: the two disagree by more than 1e-5.
    """
    example = torch.zeros(2, len(inputs))
    with quiet():
        program = torch.onnx.export(
            model.eval(),
            (example,),
            input_names=["inputs"],
            output_names=["outputs"],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    for key, value in {"inputs": "\n".join(inputs), **(about or {})}.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    content = serialized(proto)
    _check(content, model, len(inputs), path)
    write_atomically(path, content)


def serialized(proto: Any) -> bytes:
    """Return an exported model as bytes, its shapes checked in full and free of what tools stumble over.

    The exporter lists initializers among the values with inferred shapes, too, where they say nothing new. A tool that
    rewrites a weight, as onnxruntime's quantizers do, leaves that entry behind, which then contradicts the weight.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the model is not valid.
    """
    import onnx

    _forget_initializers(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return proto.SerializeToString()


def _forget_initializers(graph: Any) -> None:
    """Drop the recorded shapes of initializers, in the graphs inside of nodes as well."""
    known = {item.name for item in graph.initializer}
    kept = [item for item in graph.value_info if item.name not in known]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for one in (*inner, *attribute.graphs):
                _forget_initializers(one)


@torch.inference_mode()
def _check(content: bytes, model: nn.Module, inputs: int, path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 17):
        x = torch.randn(rows, inputs, generator=generator)
        expected = model(x).numpy()
        got = np.asarray(session.run(None, {"inputs": x.numpy()})[0])
        worst = float(np.abs(got - expected).max() / max(1.0, float(np.abs(expected).max())))
        if worst > TOLERANCE:
            raise RunError(
                f"{path}: ONNX and torch differ by {worst:.1e}, more than {TOLERANCE}; use model.safetensors instead"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the exporter's chatter inside the block only, which one thread at a time is in."""
    with LOCK, _quiet():  # torch.export is not reentrant, and there is one stdout
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with silent(), redirect_stdout(io.StringIO()):
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
