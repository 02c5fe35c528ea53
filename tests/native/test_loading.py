"""Which kernels are used, who says so, and how they are switched off."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import pared
from pared.native import disabled, library
from pared.native.loading import INSTRUCTIONS, why_not

BUILT = find_spec("pared.native._kernels") is not None
SOURCE = Path(pared.__file__).parents[1]


def run(code: str, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k != "PARED_NATIVE"}
    surroundings = {**inherited, "PYTHONPATH": str(SOURCE), **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_configuration_names_versions_threads_and_kernels() -> None:
    config = pared.show_config()
    assert (config.pared, config.torch, config.threads) == (
        pared.__version__,
        torch.__version__,
        torch.get_num_threads(),
    )
    opened = library()
    if opened is None:
        assert config.kernels == "torch"
        assert config.detail == why_not()
        assert config.detail
    else:
        assert config.kernels == "native"
        assert config.detail.split(", ")[0] in INSTRUCTIONS
        assert why_not() == ""
    assert repr(config) == str(config)
    assert config.kernels in str(config)
    with disabled():
        assert pared.show_config().kernels == "torch"
        assert library() is None
        assert "switched off" in pared.show_config().detail
    assert (library() is None) == (opened is None)


USE = """
import os, torch, pared
from pared.nn import SparseLinear
{before}
layer = SparseLinear(8, 4, density=0.5, generator=torch.Generator().manual_seed(0))
layer(torch.ones(2, 8)).sum().backward()
print(pared.show_config().kernels, layer.values.grad.sum().item())
"""


def test_the_environment_switches_them_off_without_a_warning() -> None:
    plain, off = run(USE.format(before="")).split(), run(USE.format(before=""), PARED_NATIVE="0").split()
    assert off[0] == "torch"
    assert plain[0] == ("native" if BUILT else "torch")
    assert float(plain[1]) == pytest.approx(float(off[1]))


def test_the_environment_is_read_when_the_first_operator_is_used() -> None:
    assert run(USE.format(before="os.environ['PARED_NATIVE'] = '0'")).split()[0] == "torch"
    if BUILT:
        late = "SparseLinear(2, 2, density=1.0)(torch.ones(2)); os.environ['PARED_NATIVE'] = '0'"
        assert run(USE.format(before=late)).split()[0] == "native"


@pytest.mark.skipif(not BUILT, reason="the kernels are not built")
def test_a_library_of_another_version_or_none_at_all_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = sys.modules["pared.native.loading"]
    read = module._opened.__wrapped__
    monkeypatch.delenv("PARED_NATIVE", raising=False)
    monkeypatch.setattr(module, "VERSION", -1)
    assert read()[0] is None
    assert "install pared again" in read()[1]
    spec = module.find_spec("pared.native._kernels")
    spec.origin = str(tmp_path / "broken.so")
    Path(spec.origin).write_bytes(b"no library")
    monkeypatch.setattr(module, "find_spec", lambda name: spec)
    assert read()[0] is None
    assert "cannot be opened" in read()[1]
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert read() == (None, "not built: pared was installed without a compiler")
