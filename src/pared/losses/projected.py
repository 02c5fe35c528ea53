"""Cross-entropy over a few of the classes, those that the network answers with most strongly."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.ops.lp import widened
from pared.penalties.sampling import Prior, Sampling

_TINY = 1e-30
#: The softmax is over the selected classes, or over all, of samples whose class was selected.
Reading = Literal["restricted", "counted"]


class ProjectedCrossEntropy(nn.CrossEntropyLoss):
    """Return cross-entropy with softmax over the target and ⌈sampling_density · C⌉ of C classes, averaged over draws.

    For each draw, sample and class there is a u from U(0, 1); the classes with the largest u · logit are selected, and those
    of the target always are. Only they get a gradient. Without label smoothing the loss is at most `nn.CrossEntropyLoss`;
    where all classes are selected it is that loss, bit by bit.

    Shapes: as of `nn.CrossEntropyLoss`: inputs (C,), (n, C) or (n, C, d1, …), targets classes (), (n,) or (n, d1, …), or
    probabilities like the inputs, of which all that are not 0 are the target's.

    Args:
        sampling_density: s_p, in (0, 1]; at least one class is selected.
        draws: S, at least 1; the paper has no number.
        weight: of each class, (C,).
        ignore_index: the class of samples that do not count.
        reduction: "mean", "sum" or "none".
        label_smoothing: in [0, 1]; the share of the target that goes to all selected classes alike.
        prior: "signed"; "magnitude", u |logit|; "printed", -u · logit of equation 4; "uniform", u.
        reading: "restricted"; or "counted": softmax over all classes, of the draws in which the target was selected, by
            which a mean is divided.
        seed: of the generator, the loss's own; its state is part of `state_dict`. States of `nn.CrossEntropyLoss` load, too.

    Raises:
        ConfigError: an option is out of range, targets do not fit, or probabilities with reading "counted".

    Source: arXiv 1910.14241, section 2.5.2, which says that "the thresholded probability distribution governs the selection
    of softmax-output" and activations replace weights in equation 4. That the target's class is in is our reading, so that
    there always is one, as gradients reach selected nodes only (section 3.2); so is the average over draws, and that "higher
    activations" have a sign: by magnitude, unlike for weights, the classes least like the sample are selected, which are no
    rivals of the target, and the others are hardly ever told from it (docs/dynamic-prior.md has what that costs).
    """

    def __init__(
        self,
        sampling_density: float = 0.1,
        draws: int = 10,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        prior: Prior = "signed",
        reading: Reading = "restricted",
        seed: int = 0,
    ) -> None:
        if not isinstance(draws, int) or draws < 1:
            raise ConfigError(f"draws must be an integer of at least 1, got {draws}")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ConfigError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        for name, value, allowed in (
            ("reduction", reduction, ("mean", "sum", "none")),
            ("reading", reading, get_args(Reading)),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.sampling = Sampling(sampling_density, 1.0, prior)
        self.draws, self.reading = draws, reading
        self.generator = torch.Generator().manual_seed(seed)

    def extra_repr(self) -> str:
        """Return the options that matter."""
        options = {"sampling_density": self.sampling.density, "draws": self.draws, "prior": self.sampling.prior}
        return ", ".join(f"{name}={value!r}" for name, value in (options | {"reading": self.reading}).items())

    def get_extra_state(self) -> Tensor:
        """Return the generator's state."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Set the generator's state."""
        self.generator.set_state(state.cpu())

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load a state, also one of `nn.CrossEntropyLoss`, which has no generator: the draws go on then."""
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing_keys[:] = [key for key in missing_keys if key != f"{prefix}_extra_state"]

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss: a scalar, or of the targets' shape without a reduction."""
        axis = 1 if input.ndim > 1 else 0
        classes, count = input.shape[axis], self.sampling.count(input.shape[axis])
        probable = target.is_floating_point()
        self._check(input, target, axis)
        if count == classes:
            return super().forward(input, target if probable else target.long())
        rows = widened(input.movedim(axis, -1))
        if probable:
            found = self._reduced(*self._probable(rows, widened(target.movedim(axis, -1)), count))
        elif self.reading == "counted":
            found = self._counted(rows, target.long(), count)
        else:
            found = self._reduced(*self._classed(rows, target.long(), count))
        # As of torch's own loss, the type is that of the inputs and probabilities, but float32 under autocast.
        dtype = torch.result_type(input, target) if probable else input.dtype
        return found if torch.is_autocast_enabled(input.device.type) else found.to(dtype)

    def _check(self, input: Tensor, target: Tensor, axis: int) -> None:
        """Raise a ConfigError for targets or weights that do not fit the inputs."""
        shape = input.movedim(axis, -1).shape
        probable = target.is_floating_point()
        if target.shape != (input.shape if probable else shape[:-1]) or target.dtype == torch.bool:
            raise ConfigError(
                f"targets of inputs {tuple(input.shape)} are classes {tuple(shape[:-1])} or probabilities like the inputs; "
                f"got {tuple(target.shape)}, {target.dtype}"
            )
        if self.weight is not None and self.weight.shape != shape[-1:]:
            raise ConfigError(f"weight is one number for each of {shape[-1]} classes, got {tuple(self.weight.shape)}")
        if probable and self.reading == "counted":
            raise ConfigError("reading 'counted' asks whether the target's class is selected; give classes as targets")
        if probable and self.ignore_index >= 0:
            raise ConfigError("ignore_index is of classes as targets; leave out samples that have no probabilities")

    def _draw(self, rows: Tensor, count: int) -> Tensor:
        """Return which classes a draw selects, like `rows`, (…, C)."""
        u = torch.rand(rows.shape, generator=self.generator, device=self.generator.device).to(rows.device)
        keys = u
        if self.sampling.prior != "uniform":
            scores = self.sampling.scores(rows.detach())
            keys = u * scores.masked_fill(scores == 0.0, _TINY)  # so that u decides between logits of 0
            keys = keys.masked_fill(rows == -math.inf, -math.inf)  # a class that was ruled out is none to be told from
        return torch.zeros_like(keys, dtype=torch.bool).scatter_(-1, keys.topk(count, -1).indices, value=True)

    def _classed(self, rows: Tensor, target: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return each sample's loss and what it counts, (…,), for classes as targets."""
        alive = target != self.ignore_index
        at = target.where(alive, 0).unsqueeze(-1)
        rows = rows.masked_fill(~alive.unsqueeze(-1), 0.0)  # what is ignored may be anything
        weight = rows.new_ones(rows.shape[-1]) if self.weight is None else self.weight
        share = weight[at.squeeze(-1)] * alive
        loss, smooth = rows.new_zeros(share.shape), self.label_smoothing
        for _ in range(self.draws):
            keep = self._draw(rows, count).scatter_(-1, at, value=True)
            logs = _logs(rows, keep)
            loss = loss - (1.0 - smooth) * share * logs.gather(-1, at).squeeze(-1)
            if smooth:
                loss = loss - smooth * alive * (logs * weight).sum(-1) / keep.sum(-1)
        return loss / self.draws, share

    def _probable(self, rows: Tensor, target: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return each sample's loss and what it counts, (…,), for probabilities as targets."""
        weight = 1.0 if self.weight is None else self.weight
        loss, smooth = rows.new_zeros(rows.shape[:-1]), self.label_smoothing
        for _ in range(self.draws):
            keep = self._draw(rows, count).logical_or_(target != 0.0)
            aim = (1.0 - smooth) * target + smooth / keep.sum(-1, keepdim=True)
            loss = loss - (aim * weight * _logs(rows, keep)).sum(-1)
        return loss / self.draws, torch.ones_like(loss)

    def _counted(self, rows: Tensor, target: Tensor, count: int) -> Tensor:
        """Return the loss over all classes of the draws that select the target's."""
        alive = target != self.ignore_index
        at = target.where(alive, 0).unsqueeze(-1)
        rows = rows.masked_fill(~alive.unsqueeze(-1), 0.0)
        times = torch.stack([self._draw(rows, count).gather(-1, at).squeeze(-1) for _ in range(self.draws)])
        share = times.to(rows.dtype).mean(0) * alive
        each = nn.functional.cross_entropy(
            rows.reshape(-1, rows.shape[-1]),
            target.flatten(),
            None if self.weight is None else self.weight.to(rows.dtype),
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=self.label_smoothing,
        ).view(target.shape)
        return self._reduced(each * share, share if self.weight is None else share * self.weight[at.squeeze(-1)])

    def _reduced(self, loss: Tensor, share: Tensor) -> Tensor:
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss.sum()
        total = share.sum()
        mean = loss.sum() / total.masked_fill(total == 0.0, 1.0)
        return (
            mean if self.reading == "counted" else mean.where(total != 0.0, math.nan)
        )  # as torch, with gradients of 0


def _logs(rows: Tensor, keep: Tensor) -> Tensor:
    """Return logarithms of the softmax over the classes that are kept, and 0 for the others."""
    return rows.masked_fill(~keep, -math.inf).log_softmax(-1).masked_fill(~keep, 0.0)
