"""What was loaded does not depend on its file any longer."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_documents import document
from torch import Tensor, nn

import pared
from pared.formats.document import load_document, save_document
from pared.train.checkpoint import load_state, save_state


def net(width: int = 600) -> nn.Sequential:
    return nn.Sequential(nn.Linear(9, width), nn.ReLU(), nn.Linear(width, 3))


def loaded_fresh(path: Path) -> list[Tensor]:
    pared.save(net(400), path)
    return list(pared.load(net(), path).parameters())


def loaded_meta(path: Path) -> list[Tensor]:
    pared.save(net(400), path)
    with torch.device("meta"):
        hollow = net()
    return list(pared.load(hollow, path).parameters())


def loaded_checkpoint(path: Path) -> list[Tensor]:
    save_state(path, {"model": net().state_dict(), "list": [torch.randn(5000), (torch.randn(3),)]})
    state = load_state(path)
    return [*state["model"].values(), state["list"][0], state["list"][1][0]]


def loaded_document(path: Path) -> list[Tensor]:
    save_document(path, document())
    return list(load_document(path).model.parameters())


@pytest.mark.parametrize("load", [loaded_fresh, loaded_meta, loaded_checkpoint, loaded_document])
def test_a_file_that_changes_later_changes_no_loaded_weight(
    load: Callable[[Path], list[Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    tensors = load(path)
    before = [tensor.detach().clone() for tensor in tensors]
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.write(bytes([7]) * size)
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor, old)
    os.truncate(path, 0)  # a mapped page that is gone would end the process
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor, old)


def test_who_wants_them_mapped_gets_the_same_values(tmp_path: Path) -> None:
    path = pared.save(net(400), tmp_path / "net.safetensors")
    with torch.device("meta"):
        hollow = net()
    mapped = pared.load(hollow, path, mmap=True)
    x = torch.randn(4, 9)
    assert torch.equal(mapped(x), pared.load(net(), path)(x))
    content = path.read_bytes()
    with torch.no_grad():
        next(mapped.parameters()).zero_()  # private pages: the file stays
    assert path.read_bytes() == content
