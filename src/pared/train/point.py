"""A network on the way down: a candidate for the front."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Point:
    """A plain network, the inputs it asks for, int64 (kept,), and how it did on validation.

    `score` is the metric with the sign that makes larger better, `loss` the task loss, which settles ties; `tuned` is
    how many epochs it was fine-tuned for.
    """

    model: nn.Sequential
    inputs: Tensor
    score: float
    loss: float
    epoch: int
    strength: float
    tuned: int = 0

    @property
    def rank(self) -> tuple[float, float]:
        """What to compare points by: the score, then the smaller loss; a score that is no number is the worst."""
        return (-math.inf, -math.inf) if math.isnan(self.score) else (self.score, -self.loss)

    @property
    def params(self) -> int:
        """Numbers stored."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def hidden(self) -> list[int]:
        """The widths between inputs and outputs."""
        return [layer.out_features for layer in self.model if isinstance(layer, nn.Linear)][:-1]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the point; the model is an mlp with ReLU."""
        return {
            "model": self.model.state_dict(),
            "inputs": self.inputs,
            "score": self.score,
            "loss": self.loss,
            "epoch": self.epoch,
            "strength": self.strength,
            "tuned": self.tuned,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Point":
        """Rebuild a point from `state`'s data."""
        layers: list[nn.Module] = []
        weights = [value for key, value in state["model"].items() if key.endswith(".weight")]
        for weight in weights:
            layers += [nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype, device="meta"), nn.ReLU()]
        model = nn.Sequential(*layers[:-1])
        model.load_state_dict(state["model"], assign=True)
        for parameter in model.parameters():
            parameter.requires_grad_()
        rest = {key: value for key, value in state.items() if key != "model"}
        return cls(model, **rest)


def candidates(points: Iterable[Point], *, per_decade: int = 6) -> list[Point]:
    """Return the best-scored point of each size class, largest first; `per_decade` classes per factor of ten."""
    best: dict[int, Point] = {}
    for point in points:
        size = math.floor(math.log10(point.params) * per_decade)
        if size not in best or point.rank >= best[size].rank:
            best[size] = point
    return [best[size] for size in sorted(best, reverse=True)]


def front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no smaller point equals in score, ties settled by loss; largest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.params, -p.rank[0], -p.rank[1])):
        if not kept or point.rank > kept[-1].rank:
            kept.append(point)
    return kept[::-1]


def freeze(model: nn.Sequential) -> nn.Sequential:
    """Return the model in evaluation mode on the CPU, as points are kept."""
    return model.to("cpu").eval()


def everything(size: int) -> Tensor:
    """Return the indices of all inputs, int64 (size,)."""
    return torch.arange(size)
