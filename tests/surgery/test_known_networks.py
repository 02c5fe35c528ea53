"""Surgery on well-known architectures, units and heads; and Torch-Pruning as an oracle."""

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from networks import UNet, ViT, densenet121, mobilenet, resnet50
from pared import surgery
from pared.errors import SurgeryError
from pared.models import mlp
from zoo import kill

IMAGE = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))


def from_transformers(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers as t

        size: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
        if name == "ViT":
            return t.ViTModel(t.ViTConfig(**size, intermediate_size=20, image_size=32, patch_size=8))
        if name == "BERT":
            return t.BertModel(t.BertConfig(**size, vocab_size=50, intermediate_size=20))
        if name == "GPT-2":
            return t.GPT2LMHeadModel(
                t.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
            )
        return t.LlamaForCausalLM(t.LlamaConfig(**size, vocab_size=50, num_key_value_heads=2, intermediate_size=20))


#: name: (network, example, how many entries can be removed in how many spaces)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any, tuple[int, int]]] = {
    "MLP": (lambda: mlp(6, 3, (9, 8)), torch.randn(4, 6).double(), (2, 17)),
    "ResNet-50": (lambda: resnet50(4, 5), IMAGE, (37, 716)),
    "DenseNet-121": (lambda: densenet121(3, 5, (3, 4, 3)), IMAGE, (23, 172)),
    "MobileNetV2": (lambda: mobilenet(4, 5), IMAGE, (8, 136)),
    "U-Net": (lambda: UNet(4, 2), IMAGE, (12, 92)),
    "ViT": (lambda: from_transformers("ViT"), {"pixel_values": IMAGE}, (4, 48)),
    "ViT, fused": (lambda: ViT(32, 8, 16, 2, 4, 5), IMAGE, (4, 136)),
    "BERT": (lambda: from_transformers("BERT"), {"input_ids": TOKENS}, (4, 48)),
    "GPT-2": (lambda: from_transformers("GPT-2"), {"input_ids": TOKENS, "use_cache": False}, (4, 136)),
    "Llama": (lambda: from_transformers("Llama"), {"input_ids": TOKENS, "use_cache": False}, (4, 44)),
}


def made(name: str) -> tuple[nn.Module, Any]:
    make, example, _ = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = make().double().eval()
        for key, tensor in (*net.named_parameters(), *net.named_buffers()):
            if "running" in key or (tensor.ndim == 1 and isinstance(tensor, nn.Parameter)):
                nn.init.uniform_(tensor.data, 0.5, 1.5)
    return net, example


@torch.no_grad()
def answer(net: nn.Module, example: Any) -> torch.Tensor:
    out = net(**example) if isinstance(example, dict) else net(example)
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_dead_units_and_heads_leave_without_a_trace(name: str) -> None:
    net, example = made(name)
    graph = surgery.graph(net, example)
    removable = graph.removable()
    assert (len(removable), sum(space.size for space in removable)) == NETWORKS[name][2], str(graph)
    gone_in_all = 0
    for seed in range(3):
        small, copied = copy.deepcopy((net, graph))
        gone = kill(small, copied, random.Random(seed))
        before = answer(small, example)
        single = copy.deepcopy(small).float()
        plan = None
        for space, entries in gone.items():  # one by one: what emits a constant into zero padding has to stay
            try:
                plan = surgery.remove(small, {space: entries}, graph=copied)
            except SurgeryError:
                continue
            surgery.apply(plan, single)
            gone_in_all += len(entries)
        torch.testing.assert_close(answer(small, example), before, rtol=1e-10, atol=1e-10)
        floats = (
            {k: v.float() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in example.items()}
            if isinstance(example, dict)
            else example.float()
        )
        torch.testing.assert_close(answer(single, floats), before.float(), rtol=1e-4, atol=1e-5)
    assert gone_in_all > 20
