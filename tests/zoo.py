"""Random networks for surgery: convolutions, norms, residuals, concatenation, splits, gates, attention."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.nn import Switch

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Tanh, nn.ELU, nn.Softplus)


class Conv(nn.Module):
    """Convolution, perhaps in groups, a norm, a switch, an activation, in some order."""

    def __init__(self, rng: random.Random, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        kernel = rng.choice((1, 3))
        mode = rng.choice(("zeros", "circular", "replicate"))
        bias = rng.random() < 0.8
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode=mode, groups=groups, bias=bias)
        self.norm = _norm(rng, outputs)
        self.switch = Switch(outputs, dim=1) if rng.random() < 0.3 else nn.Identity()
        self.activation = rng.choice(ACTIVATIONS)()
        self.late = rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.switch(self.activation(x)) if self.late else self.activation(self.switch(x))


def _norm(rng: random.Random, channels: int) -> nn.Module:
    kind = rng.choice(("batch", "batch", "group", "instance", "none"))
    if kind == "group":
        return nn.GroupNorm(rng.choice([g for g in range(1, channels + 1) if channels % g == 0]), channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


class Residual(nn.Module):
    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        inner = rng.randint(2, 6)
        self.first, self.second = Conv(rng, channels, inner), Conv(rng, inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Concat(nn.Module):
    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        self.extra = rng.randint(2, 4)
        self.left, self.right = Conv(rng, channels, self.extra), Conv(rng, channels, 3)
        self.dense = rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x if self.dense else self.right(x), self.left(x)], 1)


class Split(nn.Module):
    """Half of the channels goes through a convolution, or gates the other half."""

    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        self.widen = Conv(rng, channels, 2 * channels)
        self.other = Conv(rng, channels, channels)
        self.kind = rng.choice(("gate", "glu", "shuffle"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        if self.kind == "glu":
            return F.glu(x, 1)
        a, b = x.chunk(2, 1)
        if self.kind == "gate":
            return self.other(a) * b.sigmoid()
        return torch.cat([b, self.other(a)], 1)


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        inner = rng.randint(2, 4)
        self.down, self.up = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return x * scale[:, :, None, None]


class Depthwise(nn.Module):
    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=rng.choice((0, 1)), groups=channels)
        self.norm, self.mix = _norm(rng, channels), Conv(rng, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(self.conv(x)))


class Grouped(nn.Module):
    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        groups = rng.choice((2, 3))
        self.wide = Conv(rng, channels, 2 * groups)
        self.grouped = Conv(rng, 2 * groups, groups * rng.randint(1, 3), groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.wide(x))


class Attention(nn.Module):
    """Heads of size 2 over a sequence (n, places, width), projections apart or fused, keys shared by heads or not."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.kind = rng.choice(("fused", "apart", "shared", "by hand"))
        heads = 2 * rng.randint(1, 2)
        few = heads // 2 if self.kind == "shared" else heads
        self.norm = nn.LayerNorm(width)
        if self.kind == "fused":
            self.qkv = nn.Linear(width, 3 * 2 * heads)
        else:
            self.q, self.k, self.v = (nn.Linear(width, 2 * h) for h in (heads, few, few))
        self.out = nn.Linear(2 * heads, width)
        self.up, self.down = nn.Linear(width, 5), nn.Linear(5, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        n, places = y.shape[:2]
        if self.kind == "fused":
            q, k, v = self.qkv(y).view(n, places, 3, -1, 2).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(y).view(n, places, -1, 2).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.kind == "by hand":
            z = (q @ k.transpose(-2, -1) * 0.7).softmax(-1) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kind == "shared")
        x = x + self.out(z.transpose(1, 2).reshape(n, places, -1))
        return x + self.down(F.gelu(self.up(x)))


class Net(nn.Module):
    """An image (n, 3, 6, 6) through random blocks to (n, 2)."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        width = rng.randint(3, 6)
        self.stem = Conv(rng, 3, width)
        self.blocks = nn.ModuleList()
        for _ in range(rng.randint(1, 3)):
            block = rng.choice((Residual, Concat, Split, Squeeze, Depthwise, Grouped))(rng, width)
            with torch.no_grad():
                width = block(torch.zeros(2, width, 6, 6)).shape[1]
            self.blocks.append(block)
        self.end = rng.choice(("flatten", "mean", "attention"))
        self.pool = rng.choice((nn.MaxPool2d, nn.AvgPool2d))(2)
        size = 2 if any(isinstance(b, Depthwise) and b.conv.padding == (0, 0) for b in self.blocks) else 3
        size = self._size()
        self.attention = Attention(rng, width) if self.end == "attention" else nn.Identity()
        self.hidden = nn.Linear(width * size * size if self.end == "flatten" else width, 4)
        self.activation = rng.choice(ACTIVATIONS)()
        self.head = nn.Linear(4, 2)

    def _size(self) -> int:
        size = 6 - 2 * sum(isinstance(b, Depthwise) and b.conv.padding == (0, 0) for b in self.blocks)
        return max(1, size // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.pool(x) if x.shape[-1] > 1 else x
        if self.end == "flatten":
            x = x.flatten(1)
        elif self.end == "mean":
            x = x.mean((2, 3))
        else:
            x = self.attention(x.flatten(2).transpose(1, 2)).mean(1)
        return self.head(self.activation(self.hidden(x)))


def random_net(seed: int) -> Net:
    """Return a float64 network in evaluation mode, its norms' statistics and weights all drawn."""
    rng = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while True:
            try:
                net = Net(rng).double().eval()
                net(torch.zeros(2, 3, 6, 6, dtype=torch.float64))
                break
            except RuntimeError:  # the image has become too small for a kernel
                continue
        for module in net.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None or not tensor.is_floating_point():
                    continue
                if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d | Switch | nn.LayerNorm):
                    _redraw(name, tensor)
    return net


def _redraw(name: str, tensor: Tensor) -> None:
    with torch.no_grad():
        if name in ("weight", "running_var", "theta"):
            tensor.uniform_(0.5, 1.5)
        else:
            tensor.normal_()


def kill(net: nn.Module, graph: Any, rng: random.Random) -> dict[str, list[int]]:
    """Let random entries of random spaces die, some of them emitting a constant; return them by space."""
    dead: dict[str, list[int]] = {}
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for space in graph.removable():
        if rng.random() < 0.4:
            continue
        gone = sorted(rng.sample(range(space.size), rng.randint(1, space.size - 1)))
        silent = rng.random() < 0.5
        keep = {space.dim: [i for i in range(space.size) if i not in gone]}
        for slot in space.slots:
            if slot.axis == 0 and (slot.tensor.endswith((".weight", ".bias")) or "theta" in slot.tensor):
                _still(slot.tensor, tensors[slot.tensor], _lost(graph, slot, keep), silent)
        dead[space.name] = gone
    return dead


def _lost(graph: Any, slot: Any, keep: dict[Any, list[int]]) -> list[int]:
    from pared.surgery.axes import positions

    dim = graph.program.tensors[slot.tensor].dims[slot.axis]
    kept = set(positions(dim, keep))
    return [i for i in range(dim.size) if i not in kept]


def _still(name: str, tensor: Tensor, rows: list[int], silent: bool) -> None:
    """Zero weights and scales, and biases too where nothing is to be emitted."""
    with torch.no_grad():
        if silent or not name.endswith(".bias"):
            tensor[rows] = 0.0
