"""A resized network goes to a file and comes back into its own class, or the file is refused by name."""

import copy
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from pared import surgery
from pared.errors import RunError
from zoo import Net, kill, random_net

EXAMPLE = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def shrunk(seed: int) -> nn.Module:
    net = random_net(seed)
    graph = surgery.graph(net, EXAMPLE)
    surgery.remove(net, kill(net, graph, random.Random(seed)), graph=graph, living="cut")
    return net


@pytest.mark.parametrize("seed", range(25))
def test_a_fresh_instance_becomes_the_network_that_was_saved(seed: int, tmp_path: Path) -> None:
    net = shrunk(seed)
    path = surgery.save(net, tmp_path / "net.safetensors")
    fresh = random_net(seed)
    for tensor in fresh.parameters():
        nn.init.normal_(tensor)
    assert surgery.load(fresh, path) is fresh
    torch.testing.assert_close(fresh(EXAMPLE), net(EXAMPLE), rtol=1e-12, atol=1e-14)  # memory alignment rounds
    with torch.device("meta"):
        hollow = Net(random.Random(seed)).double().eval()
    if same_blocks(hollow, seed):
        surgery.load(hollow, path)
        torch.testing.assert_close(hollow(EXAMPLE), net(EXAMPLE), rtol=1e-12, atol=1e-14)
    fresh(EXAMPLE).sum().backward()
    assert surgery.save(fresh, tmp_path / "again").read_bytes() == path.read_bytes()


def same_blocks(hollow: nn.Module, seed: int) -> bool:
    """Whether this is the network of the seed, and not one that had to be drawn again as its image became too small."""
    return str(hollow) == str(random_net(seed))


class Tied(nn.Module):
    def __init__(self, width: int = 6, steps: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, width, bias=False), nn.Linear(4, width, bias=False)
        self.last.weight = self.first.weight
        self.out = nn.Linear(width, 2, bias=False)
        self.rnn = nn.LSTM(width, 3, batch_first=True)
        self.steps = steps
        self.register_buffer("scale", torch.ones(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).sigmoid() * self.scale + self.last(x).sigmoid()
        return self.out(hidden) + self.rnn(hidden.unsqueeze(1))[0].sum()


def test_ties_new_biases_and_recurrent_weights_come_back(tmp_path: Path) -> None:
    net, x = Tied(), torch.randn(5, 4)
    graph = surgery.graph(net, x)
    with torch.no_grad():
        net.first.weight[[1, 4]] = 0.0
    before = net(x)
    surgery.remove(net, {"first": [1, 4]}, graph=graph)
    torch.testing.assert_close(net(x), before)
    assert net.out.bias is not None
    fresh = surgery.load(Tied(), surgery.save(net, tmp_path / "net"))
    assert torch.equal(fresh(x), net(x))
    assert fresh.first.weight is fresh.last.weight
    assert fresh.first.out_features == 4


def test_a_module_that_became_the_identity_does_so_again(tmp_path: Path) -> None:
    def make() -> Any:
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()

    net, x = make(), torch.randn(4, 3)
    net[1] = nn.Identity()
    fresh = surgery.load(make(), surgery.save(net, tmp_path / "net"))
    assert torch.equal(fresh(x), net(x))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: nn.Linear(3, 2), "not fit this network"),
        (lambda: Tied(3), "is \\(6, 4\\) in the file and \\(3, 4\\) here"),
        (lambda: Tied(steps=4), "'steps' is 3 in the file and 4 here"),
        (lambda: nn.Sequential(Tied()), "'0.first.weight' is not in the file"),
    ],
)
def test_another_network_is_refused_and_left_alone(other: Any, message: str, tmp_path: Path) -> None:
    path = surgery.save(Tied(), tmp_path / "net")
    network = other()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RunError, match=message):
        surgery.load(network, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> Any:
            return (exec, ("raise SystemExit('code ran')",))

    contents = {
        "empty": b"",
        "pickle": pickle.dumps(Boom()),
        "zip": b"PK\x03\x04" + bytes(50),
        "plain safetensors": to_bytes({"a": torch.zeros(2)}),
        "no checksum": to_bytes({"a": torch.zeros(2)}, {"pared": json.dumps({"format": 1})}),
        "deep": to_bytes({"a": torch.zeros(2)}, {"pared": "[" * 100_000}),
        "newer": to_bytes({"a": torch.zeros(2)}, {"pared": json.dumps({"format": 2})}),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(RunError, match="newer" if name == "newer" else str(path)):
            surgery.load(Tied(), path)
    with pytest.raises(RunError, match="does not exist"):
        surgery.load(Tied(), tmp_path / "nowhere")


def mutate(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place, kind = rng.randrange(len(data)), rng.randrange(6)
        header = int.from_bytes(content[:8], "little")
        place = rng.randrange(min(len(data), header + 8)) if kind < 3 else place
        if kind in (0, 3):
            data[place] ^= 1 << rng.randrange(8)
        elif kind in (1, 4):
            data[place] = rng.choice(b'0123456789"{}[],:eE-.\\ntf\x00\xff ')
        elif kind == 2:
            data[place:place] = bytes([rng.randrange(256)])
        else:
            cut = rng.randrange(len(data))
            del data[cut : cut + rng.choice((1, 8, 100, len(data)))]
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize("part", range(4))
def test_a_damaged_file_is_refused_or_loads_as_it_was(part: int, tmp_path: Path) -> None:
    net = Tied(steps=7)
    surgery.remove(net, {"first": [0, 3]}, graph=surgery.graph(net, torch.zeros(2, 4)), living="cut")
    content = surgery.save(net, tmp_path / "net").read_bytes()
    wanted = from_bytes(content)
    path, rng, refused = tmp_path / "damaged", random.Random(part), 0
    for _ in range(400):
        path.write_bytes(mutate(content, rng))
        fresh = Tied(steps=7)
        before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
        try:
            surgery.load(fresh, path)
        except RunError:
            refused += 1
            assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())
            continue
        assert all(torch.equal(wanted[name], tensor) for name, tensor in fresh.state_dict().items() if name in wanted)
    assert refused > 300
