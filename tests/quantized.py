"""What other people's tools do with an ONNX file: check it in full, infer its shapes strictly, quantize it both ways."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static


class Rows(CalibrationDataReader):
    """The same batch, three times."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self.batches = iter([feed] * 3)

    def get_next(self) -> Any:
        return next(self.batches, None)


def check_onnx(path: Path, *inputs: np.ndarray, folder: Path, tolerance: float = 0.1) -> None:
    """Fail unless `path` passes all of them, and quantized files answer as it does but for `tolerance` of the largest."""
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    feed = dict(zip([item.name for item in proto.graph.input], inputs, strict=True))
    wanted = run(path, feed)
    for per_channel in (False, True):
        for kind in ("dynamic", *QuantFormat):
            made = folder / "quantized.onnx"
            if kind == "dynamic":
                quantize_dynamic(path, made, per_channel=per_channel)
            else:
                quantize_static(path, made, Rows(feed), quant_format=kind, per_channel=per_channel)
            worst = np.abs(run(made, feed) - wanted).max() / max(1.0, np.abs(wanted).max())
            assert worst < tolerance, (path, kind, per_channel, worst)


def run(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path).run(None, feed)[0])
