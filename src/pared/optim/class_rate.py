"""SGD with a learned step size for each weight and class."""

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared.errors import ConfigError, RunError
from pared.ops.processes import Processes
from pared.optim.class_shares import Batch, Watch, shares, singles

#: What has a rate of its own for each class: each weight, each neuron (or filter), or each layer.
Per = Literal["weight", "neuron", "layer"]


class ClassRateSGD(Optimizer):
    """Take SGD's steps with a rate for each weight and class, which grows by the square of the class's part of the gradient.

    Of a batch of B samples, G_j = (1/B) times the sum of the gradients of class j. A managed weight goes by
    -lr · sum over j of mu_j G_j, and then mu_j, which is 1 at first, grows by rate_lr · lr · G_j². Rates of classes that a
    batch lacks stay as they are. Managed are the first `layers` weights of `nn.Linear` and `nn.Conv2d`, in the order of
    `model.modules()`, without the last one, which gives the outputs; all else takes plain steps, groups added later, weights
    with a parametrization and those of recurrent layers and `nn.MultiheadAttention` too: `skipped` names them.
    Of groups the first says what holds for rates and classes; each has an `lr` and a `momentum`.

    The forward and the backward pass both stand in a `with optimizer.classes(y):`, where gradients of managed weights are
    kept by class and are not in `.grad`: clip no gradients by norm, and use no `GradScaler`. The loss is a mean over samples.
    With `rate_lr` 0, and from step `cutoff` on, all weights take plain steps, bit-equal to those of `torch.optim.SGD`.

    Groups may be single samples too: `classes` is then how many there are, `y` their numbers, and `per` "layer" or "neuron".
    With `decay_lr` each managed weight has a weight decay of its own as well, 0 at first and never below, which goes by
    decay_lr · lr · w · G: the same descent, on the strength of a penalty.

    Memory: `classes` times that of the managed weights, and once more for decays.

    Args:
        model: the network; all its parameters that learn are held.
        lr: the rate, > 0.
        rate_lr: how fast rates grow, >= 0; the paper takes 1e5 for SELU and tanh, 1e4 for ReLU, and a tenth where that
            diverges.
        classes: how many there are; any other grouping of samples does as well.
        layers: how many layers are managed at most, >= 0.
        momentum: of the whole step, in [0, 1); the paper has none.
        cutoff: the step from which on rates are 1; None is never.
        reset_every: steps after which all rates become 1 again; several numbers take turns, as for halves of an epoch with
            an odd number of steps; None is never.
        per: what a rate is for; those of neurons and layers grow by the mean of squares.
        trade_off: factors of how fast each class's rates grow, (classes,), >= 0; 1 by default.
        decay_lr: how fast decays of weights grow, >= 0.

    Raises:
        ConfigError: an option is out of range, or no layer is there to manage.

    Source: per-weight class-based learning rates (ICLR 2018 submission), equations 1 and 6. The paper has single samples;
    batches are read so that rates only grow and rates of 1 are SGD. Rates of samples and layers and learned decays are
    what its conclusion names.
    """

    #: `GradScaler` then calls `step` with its scale, which is refused there: it would not find these gradients.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        rate_lr: float = 1e5,
        *,
        classes: int,
        layers: int = 16,
        momentum: float = 0.0,
        cutoff: int | None = None,
        reset_every: int | Sequence[int] | None = None,
        per: Per = "weight",
        trade_off: Sequence[float] | None = None,
        decay_lr: float = 0.0,
    ) -> None:
        every = () if reset_every is None else (reset_every,) if isinstance(reset_every, int) else tuple(reset_every)
        defaults = {
            "lr": lr,
            "rate_lr": rate_lr,
            "classes": classes,
            "momentum": momentum,
            "cutoff": cutoff,
            "reset_every": every,
            "per": per,
            "trade_off": None if trade_off is None else tuple(trade_off),
            "decay_lr": decay_lr,
            "steps": 0,
        }
        _check(defaults, layers)
        parameters = [p for p in model.parameters() if p.requires_grad]
        fused = {
            id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)
        }  # which reads it itself
        found = [
            m.weight
            for m in model.modules()
            if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.requires_grad and id(m) not in fused
        ]
        hidden = [w for w in dict.fromkeys(found) if w is not found[-1] and isinstance(w, nn.Parameter)]
        managed = hidden[:layers]
        if layers and not managed:
            raise ConfigError(
                "the network has no hidden nn.Linear or nn.Conv2d that learns and whose weight is a parameter; use "
                "torch.optim.SGD"
            )
        super().__init__(parameters, defaults)
        for weight in managed:
            self.state[weight]["managed"] = True  # in its state, which follows it through files and removals
        self._model: Callable[[], nn.Module | None] = weakref.ref(model)
        self._batches: list[Batch] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_batches", [])  # of a copy
        self.__dict__.setdefault("_model", _unknown)

    @property
    def skipped(self) -> dict[str, str]:
        """Why parameters of two and more axes take plain steps, by name."""
        managed = set(map(id, self._managed()))
        return {
            self._name(p): (
                "rates are for the first `layers` weights of nn.Linear and nn.Conv2d that are called as such, without the last"
            )
            for group in self.param_groups
            for p in group["params"]
            if p.ndim > 1 and id(p) not in managed
        }

    @property
    def learning(self) -> bool:
        """Whether the next step has rates by class, or decays."""
        group = self.param_groups[0]
        return bool((group["rate_lr"] or group["decay_lr"]) and self._managed()) and not _over(group)

    @contextmanager
    def classes(self, y: Tensor) -> Iterator[None]:
        """Run a forward and a backward pass whose samples are of these classes.

        Shapes: y (samples,) of integers in 0 to classes - 1, or booleans. A layer that sees several rows of a sample, as
        of a sequence, sees them in its middle axes. Each pass that goes back through a managed layer counts, those of
        `torch.autograd.grad` too.

        Raises:
            ConfigError: `y` is not as above.
            RunError: rates are learned, and a process group of several processes was initialised.
        """
        count = self.param_groups[0]["classes"]
        if y.ndim != 1 or y.is_floating_point() or y.is_complex():
            raise ConfigError(f"expected classes (samples,) of integers, got {y.dtype} {tuple(y.shape)}")
        y = y.long()
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < count:
            raise ConfigError(f"expected classes in 0 to {count - 1}, got {int(y.min())} to {int(y.max())}")
        if not self.learning:
            yield
            return
        processes = Processes.of()
        if processes.several:  # each would learn from its own gradients by class, which nothing averages
            raise RunError(
                f"ClassRateSGD learns rates by the gradients of one process, and {processes.size} train together, whose "
                "networks would drift apart; train in one process, or with rate_lr=0, which is plain SGD"
            )
        batch = Batch(y)
        self._batches.append(batch)
        with Watch({id(w) for w in self._managed()}, batch):
            yield

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, those by class too."""
        super().zero_grad(set_to_none)
        self._batches = []

    def rates(self, weight: Tensor) -> Tensor:
        """Return the rates of a managed weight, which are its state: (classes, *weight.shape), or 1 where they are shared.

        Raises:
            ConfigError: the weight is not managed.
        """
        if not any(weight is w for w in self._managed()):
            raise ConfigError(
                "this weight is not managed: it is that of the last layer, or of none of the first `layers`"
            )
        state, group = self.state[weight], self.param_groups[0]
        if "mu" not in state:
            sizes = {
                "weight": weight.shape,
                "neuron": (len(weight), *[1] * (weight.ndim - 1)),
                "layer": [1] * weight.ndim,
            }
            state["mu"] = weight.new_ones((group["classes"], *sizes[group["per"]]))
        return state["mu"]

    def reset_rates(self) -> None:
        """Make all rates 1, and all decays 0."""
        for state in self.state.values():
            if "mu" in state:
                state["mu"].fill_(1.0)
            if "decay" in state:
                state["decay"].zero_()

    @torch.no_grad()
    def resize(self, state: dict[str, Any], cuts: Sequence[Any], old: Tensor) -> dict[str, Any]:
        """Return what becomes of a parameter's `state` when entries are removed; `cuts` have an `axis` and an `index`.

        Entries of index -1 are new: their rates are 1, and they have no momentum.
        """
        made = dict(state)
        for part, shift, fresh in (("momentum_buffer", 0, 0.0), ("decay", 0, 0.0), ("mu", 1, 1.0)):
            for cut in cuts if part in state else ():
                axis, value = cut.axis + shift, made[part]
                if value.shape[axis] == old.shape[cut.axis]:  # not 1, as where weights share a rate
                    where = torch.tensor(cut.index, dtype=torch.long, device=value.device)
                    made[part] = value.index_select(axis, where.clamp(min=0))
                    made[part].index_fill_(axis, (where < 0).nonzero().flatten(), fresh)
        return made

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step, and return the loss that `closure` gives, if there is one.

        Raises:
            ConfigError: a `GradScaler` calls.
            RunError: a batch of `classes` has had no backward pass, or one that did not reach managed layers.
        """
        if getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None:
            raise ConfigError("ClassRateSGD takes no GradScaler: squares of scaled gradients are lost; use bfloat16")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _managed(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if self.state.get(p, {}).get("managed")]

    def _step(self) -> None:
        if self._batches and not any(batch.seen for batch in self._batches):
            raise RunError(
                "no managed layer had a gradient: forward and backward pass both stand in `with classes(y):`"
            )
        if self.learning and not self._batches and any(weight.grad is not None for weight in self._managed()):
            warnings.warn(
                "this step has no rates by class, as its forward and backward pass did not stand in `with "
                "optimizer.classes(y):`; it is that of plain SGD",
                stacklevel=4,
            )
        for group in self.param_groups:
            for weight in group["params"]:
                seen = [(batch, batch.seen[weight]) for batch in self._batches if weight in batch.seen]
                if seen:
                    change = self._change(weight, seen, group["lr"])
                    change = change if weight.grad is None else change.add_(weight.grad)
                elif weight.grad is not None:
                    self._check_seen(weight)
                    change = weight.grad
                else:
                    continue
                weight.add_(self._with_momentum(weight, change, group["momentum"]), alpha=-group["lr"])
        first = self.param_groups[0]
        first["steps"] += 1
        if _over(first) or _turn(first):
            self.reset_rates()

    def _name(self, parameter: Tensor) -> str:
        model = self._model()
        names = {} if model is None else {id(p): name for name, p in model.named_parameters()}
        return names.get(id(parameter), f"a parameter of shape {tuple(parameter.shape)}")

    def _check_seen(self, weight: Tensor) -> None:
        """Say of a managed weight that what came back to it was not seen by class."""
        if self._batches and self.state.get(weight, {}).get("managed"):
            warnings.warn(
                f"{self._name(weight)} has a gradient that came neither through F.linear nor through "
                "F.conv2d, so that it takes plain steps without rates by class",
                stacklevel=6,
            )

    def _with_momentum(self, weight: Tensor, change: Tensor, momentum: float) -> Tensor:
        if not momentum:
            return change
        state = self.state[weight]
        if "momentum_buffer" in state:
            return state["momentum_buffer"].mul_(momentum).add_(change)
        state["momentum_buffer"] = change.clone()
        return state["momentum_buffer"]

    def _change(self, weight: Tensor, seen: list[Any], lr: float) -> Tensor:
        """Return the sum over classes of mu_j G_j, and the decay, and let both grow."""
        group, mu = self.param_groups[0], self.rates(weight)
        per, decay_lr = group["per"], group["decay_lr"]
        single = None if per == "weight" or decay_lr else singles(seen)
        if single is not None:
            return self._by_sample(mu, single, lr)
        change, whole = torch.zeros_like(weight), torch.zeros_like(weight) if decay_lr else None
        for number, share in shares(seen, weight):
            rate, speed = mu[number], self._speed(number, lr)
            change.addcmul_(rate, share)
            if whole is not None:
                whole.add_(share)
            if per == "weight":
                rate.addcmul_(share, share, value=speed)
            else:
                axes = tuple(range(per == "neuron", share.ndim))
                rate.add_(share.square().mean(axes, keepdim=True), alpha=speed)
        if whole is not None:
            state = self.state[weight]
            decay = state["decay"] if "decay" in state else state.setdefault("decay", torch.zeros_like(weight))
            whole.mul_(weight)
            change.addcmul_(decay, weight)
            decay.add_(whole, alpha=decay_lr * lr).clamp_(min=0.0)
        return change

    def _by_sample(self, mu: Tensor, single: tuple[Tensor, Tensor, Tensor], lr: float) -> Tensor:
        """The same where each sample of a linear layer is a group of its own: its gradient has rank one, and is not made."""
        numbers, x, dy = single[0], single[1].to(mu.dtype), single[2].to(mu.dtype)
        rate = mu[numbers]
        change = (dy * rate.flatten(1)).t() @ x
        grown = dy.square() * x.square().mean(1, keepdim=True)
        if self.param_groups[0]["per"] == "layer":
            grown = grown.mean(1, keepdim=True)
        speed = torch.tensor([self._speed(number, lr) for number in numbers.tolist()], dtype=mu.dtype, device=mu.device)
        mu[numbers] = rate + (grown * speed.view(-1, 1)).unflatten(1, rate.shape[1:])
        return change

    def _speed(self, number: int, lr: float) -> float:
        group = self.param_groups[0]
        factors = group["trade_off"]
        return group["rate_lr"] * lr * (1.0 if factors is None else factors[number])


def _unknown() -> None:
    """The network of a copied optimizer."""


def _over(group: dict[str, Any]) -> bool:
    return group["cutoff"] is not None and group["steps"] >= group["cutoff"]


def _turn(group: dict[str, Any]) -> bool:
    """Whether the step just taken was the last one before rates become 1."""
    every = group["reset_every"]
    return bool(every) and (group["steps"] - 1) % sum(every) + 1 in set(accumulate(every))


def _check(options: dict[str, Any], layers: int) -> None:
    wrong = {
        "lr must be > 0": not options["lr"] > 0,
        "rate_lr must be >= 0": not options["rate_lr"] >= 0,
        "decay_lr must be >= 0": not options["decay_lr"] >= 0,
        "classes must be at least 1": options["classes"] < 1,
        "layers must be >= 0": layers < 0,
        "momentum must be in [0, 1)": not 0 <= options["momentum"] < 1,
        "cutoff must be None or >= 0": options["cutoff"] is not None and options["cutoff"] < 0,
        "reset_every must be None or positive": any(one < 1 for one in options["reset_every"]),
        f"per must be one of {get_args(Per)}": options["per"] not in get_args(Per),
    }
    factors = options["trade_off"]
    if factors is not None:
        wrong["trade_off must be one number >= 0 for each class"] = (
            len(factors) != options["classes"] or min(factors) < 0
        )
    for message, so in wrong.items():
        if so:
            raise ConfigError(f"{message}; got {options | {'layers': layers}}")
