"""A forward pass of a sparse network beside dense ones: one process, one thread, interleaved, minimum and median.

    python benchmarks/sparse_inference.py [--json] [--quick] [--width 1024] [--batch 32]

The network is a multilayer perceptron 784-W-W-W-10 with biases and ReLU; its three hidden layers are sparse, the layer of
the outputs is dense, behind a `BatchMajor`. Ours runs in `torch.inference_mode()`, with our kernels ("native") or torch's
sparse CSR ("torch"). Its rivals have all weights, zeros too: torch ("dense"), the same through torch.compile ("compiled"),
and the graph that `pared.export` writes in onnxruntime ("onnxruntime") and OpenVINO ("openvino"); SciPy's CSR matrices
("scipy") have those that are not 0. A claim's ratio is the minimum of a rival over that of ours (of time passed or
processor time, whichever gives less), with a bar to reach against dense torch and onnxruntime at 95 % zeros and batches of
32 and 256; what the others took stands beside it. Short calls are timed behind an untimed one of the same network. All
outputs must agree with dense torch's, or nothing is printed.

OpenVINO is no dependency: `pip install openvino` and it takes part. It computes in float32 here, as all others do; its
CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE, which packs zeros away, is for 8-bit weights on processors with AMX only.
"""

import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

import pared
from pared.measure.latency import threads
from pared.native import library
from pared.nn import SparseLinear
from stacks import (
    INPUTS,
    Claim,
    claim,
    compiler,
    finish,
    options,
    rebuilt,
    say,
    sparse_network,
    take_turns,
    without_native,
)

#: Width -> times faster than a rival at these batches and this sparsity.
BARS, BATCHES, SPARSITY = {1024: 6.0, 4096: 4.0}, (32, 256), 0.95
AGAINST = ("dense", "onnxruntime")
Forward = Callable[[], np.ndarray]


def torch_forward(model: nn.Module, x: Tensor, *, compiled: bool = False) -> Forward:
    call = torch.compile(model) if compiled else model

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return call(x).numpy()

    return forward


def onnx_forward(file: Path, x: Tensor) -> Forward:
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = chosen.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, chosen, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)[0]


def openvino_forward(file: Path, x: Tensor) -> Forward:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape(list(x.shape))
    wanted = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", wanted).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))

    def forward() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return forward


def scipy_forward(model: nn.Sequential, x: Tensor) -> Forward:
    """Return the pass with SciPy's CSR products, features-major."""
    layers = []
    for layer in model:
        if isinstance(layer, SparseLinear) and layer.bias is not None:
            parts = layer.values.detach().numpy(), layer.col.numpy(), layer.crow.numpy()
            layers.append(
                (sparse.csr_matrix(parts, (layer.out_features, layer.in_features)), layer.bias.detach().numpy())
            )
    dense, offset = (p.detach().numpy() for p in model[-1].parameters())
    rows = x.numpy()

    def forward() -> np.ndarray:
        hidden = np.ascontiguousarray(rows.T)
        for weight, bias in layers:
            hidden = weight @ hidden
            hidden += bias[:, None]
            np.maximum(hidden, 0.0, out=hidden)
        return hidden.T @ dense.T + offset

    return forward


def contestants(model: nn.Sequential, x: Tensor, file: Path, rivals: dict[str, str]) -> dict[str, Forward]:
    dense = rebuilt(model, SparseLinear.to_linear)
    made: dict[str, Callable[[], Forward]] = {
        "onnxruntime": lambda: onnx_forward(file, x),
        "openvino": lambda: openvino_forward(file, x),
        "compiled": lambda: torch_forward(dense, x, compiled=True),
        "scipy": lambda: scipy_forward(model, x),
    }
    calls = {"dense": torch_forward(dense, x), "torch": without_native(torch_forward(model, x))}
    if library() is not None:
        calls["native"] = torch_forward(model, x)
    return calls | {name: make() for name, make in made.items() if rivals[name] == "measured"}


def agree(calls: dict[str, Forward]) -> None:
    """Run all a few times, and make sure that they compute the same."""
    expected = calls["dense"]().copy()
    for name, call in calls.items():
        for _ in range(3):
            got = call()
        if not np.allclose(got, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()):
            raise SystemExit(f"{name} is another network: it differs by {np.abs(got - expected).max()}")


def claims_of(
    model: nn.Sequential, case: tuple[int, float, int], file: Path, rivals: dict[str, str], seconds: float
) -> list[Claim]:
    """Return what is claimed of our paths for one network and batch."""
    width, sparsity, batch = case
    x = torch.randn(batch, INPUTS, generator=torch.Generator().manual_seed(1))
    calls = contestants(model, x, file, rivals)
    agree(calls)
    times = take_turns(calls, ("native", "torch", *AGAINST), seconds)
    found = []
    for path in ("native", "torch"):
        for rival in AGAINST:
            if path in times and rival in times:
                barred = path == "native" and sparsity == SPARSITY and batch in BATCHES
                name = f"sparse inference, {path} kernels, width {width}, {sparsity:.0%} sparse, batch {batch}: times faster"
                found.append(claim(f"{name} than {rival}", times, path, rival, BARS[width] if barred else None))
    return found


def rivals_here(*, quick: bool) -> dict[str, str]:
    """Return of each rival that it is measured, or why it is not."""
    note = "left out by --quick"
    found = {"compiled": note if quick else compiler() or "measured", "scipy": note if quick else "measured"}
    for name, needed in (("onnxruntime", ("onnxruntime", "onnxscript")), ("openvino", ("openvino", "onnxscript"))):
        found[name] = "measured" if all(find_spec(one) for one in needed) else "not installed"
    return found


def main() -> None:
    arguments = options(__doc__, "width 1024, three sparsities, without torch.compile", BARS, (1, *BATCHES))
    rivals = rivals_here(quick=arguments.quick)
    widths = [arguments.width] if arguments.width else [1024] if arguments.quick else [*BARS]
    batches = [b for b in (1, *BATCHES) if arguments.batch in (None, b)]
    claims: list[Claim] = []
    with threads(1), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        for width in widths:
            for sparsity in (0.9, 0.95, 0.98) if arguments.quick else (0.8, 0.9, 0.95, 0.98, 0.99):
                model, file = sparse_network(width, sparsity).eval(), Path(folder) / "dense.onnx"
                if "measured" in (rivals["onnxruntime"], rivals["openvino"]):
                    pared.export(model, file, torch.zeros(2, INPUTS))
                for batch in batches:
                    seconds = 2.0 if width == 1024 else 6.0
                    found = claims_of(model, (width, sparsity, batch), file, rivals, seconds)
                    claims += found
                    if not arguments.json:
                        say(found)
    installed = {name: version(name) for name in ("onnxruntime", "openvino") if rivals[name] == "measured"}
    finish(
        claims, {"rivals": {name: installed.get(name, said) for name, said in rivals.items()}}, as_json=arguments.json
    )


if __name__ == "__main__":
    main()
