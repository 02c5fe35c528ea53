"""What optimizers with weights on the L_p sphere share: groups, the Euclidean rest, masks, state that follows."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from pared.errors import ConfigError
from pared.ops.lp import dual_exponent
from pared.optim.connections import change_connections, change_pattern
from pared.optim.euclidean import descend
from pared.optim.kernels import Options, Rows, normalise_, wide_dtype
from pared.optim.neurons import Ragged, neurons_of, take_axis, take_crow

#: Steps between two looks for numbers that are about to turn denormal, which takes them longer.
FLUSH_EVERY = 16
#: A parameter that moves, with its gradient and its state.
Held = tuple[Tensor, Tensor, dict[str, Any]]


class SphereOptimizer(Optimizer):
    """Keep rows of weights on the unit L_p sphere and the rest Euclidean; abstract."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, and put its weights on the sphere if it has a `p`, own or inherited.

        Vectors are on a sphere where the group's `crow` says what their rows are: for each parameter None, or where rows
        begin and end, as the `crow` of a sparse layer does; it is kept in the parameter's state. So is the group's
        `axis`, that of each parameter's neurons, where these are not along the first. A group that holds only other vectors
        and scalars is Euclidean.

        Raises:
            ConfigError: an option is out of range, or `crow` does not fit.
        """
        before = len(self.param_groups)
        named = "lr" in param_group
        super().add_param_group(dict(param_group))  # a copy, so that who made it can use it again
        group = self.param_groups[before]
        try:
            axes, rows = take_axis(group), take_crow(group)
            if all(p.ndim < 2 and crow is None for p, crow in zip(group["params"], rows, strict=True)):
                group["p"] = None
            euclidean_lr = group.pop("euclidean_lr", None)
            if group["p"] is None and not named and euclidean_lr is not None:
                group["lr"] = euclidean_lr
            self._check(group)
        except ConfigError:
            del self.param_groups[before]
            raise
        for p, crow in zip(group["params"], rows, strict=True):
            if crow is not None:
                self.state[p]["crow"] = crow
        for p, axis in zip(group["params"], axes, strict=True):
            if axis:
                self.state[p]["axis"] = axis
        self._normalise(group)

    def _check(self, group: dict[str, Any]) -> None:
        """Refuse a group whose options are out of range."""
        if group["p"] is not None:
            dual_exponent(group["p"])
        lr, most = group["lr"], math.inf if group["p"] is None else 1.0
        if not (isinstance(lr, Tensor) or 0.0 <= lr < most):
            raise ConfigError(f"lr must be at least 0 and below {most}, on the sphere a share of the way; got {lr}")
        if not 0.0 <= group["momentum"] < 1.0:
            raise ConfigError(f"momentum must be in [0, 1), got {group['momentum']}")
        if group["nesterov"] and group["momentum"] == 0.0:
            raise ConfigError("nesterov needs a momentum above 0")
        if not 0.0 <= group["weight_decay"] < math.inf:
            raise ConfigError(f"weight_decay must be at least 0 and finite, got {group['weight_decay']}")
        if any(not p.is_floating_point() for p in group["params"]):
            raise ConfigError("parameters must be real floating-point tensors")

    def normalize_(self) -> None:
        """Put every weight that is held on the sphere back on it, in place; rows of zeros and frozen weights stay.

        Call it after weights were loaded or set by hand. The memory of momentum stays.
        """
        for group in self.param_groups:
            self._normalise(group)

    @torch.no_grad()
    def _normalise(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if self._on_sphere(group, p) and p.requires_grad and p.numel():
                state = self.state.get(p, {})
                if "mask" in state:
                    p.mul_(state["mask"])
                normalise_(p, group["p"], neurons_of(p, state))
                state.pop("v", None)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    @torch.compiler.disable  # torch 2.13's loops for CPUs are slower than the tiles or rows here, and made for every shape
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step, and return the loss that `closure` gives, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            bound: list[Held] = []
            free: list[Held] = []
            self._init_group(group, bound, free)
            for held in bound:
                self._update(group, held)
            if free:
                descend(group, free)
        return loss

    def _init_group(self, group: dict[str, Any], bound: list[Held], free: list[Held]) -> None:
        """Sort the parameters with a gradient into those on the sphere and the rest, and begin their state."""
        for p in group["params"]:
            if p.grad is None or p.numel() == 0:
                continue
            if p.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            state = self.state[p]
            sphere = self._on_sphere(group, p)
            if sphere:
                self._begin(group, p, state)
            if group["momentum"] and "momentum_buffer" not in state:
                dtype = wide_dtype(p) if sphere else p.dtype
                state["momentum_buffer"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
            (bound if sphere else free).append((p, p.grad, state))

    def _begin(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> None:
        """Begin the state of a weight on the sphere that is not the momentum."""

    def _update(self, group: dict[str, Any], held: Held) -> None:
        """Move one weight on the sphere."""
        p, grad, state = held
        ragged = Ragged(state["crow"], p.numel()) if "crow" in state else None
        rows = Rows(p, grad, state.get("v"), state.get("momentum_buffer"), state.get("mask"), ragged)
        if ragged is not None and any(x is not None and x.shape != p.shape for x in rows[:5]):
            raise ConfigError(
                f"a vector has {p.numel()} weights, and the optimizer's state of it another number; after connections "
                "changed, call pattern_changed, and after a state was loaded into the layer, load the optimizer's too"
            )
        state["steps"] = state.get("steps", 0) + 1
        sign = -1.0 if group["maximize"] else 1.0
        if axis := state.get("axis", 0):
            rows = rows.each(lambda x: x.movedim(axis, 0))
        clean, empty = state["steps"] % FLUSH_EVERY == 0, state.get("empty", False)
        self._move(group, rows, (group["momentum"], group["nesterov"], sign, clean, empty))
        if empty:
            state["empty"] = neurons_of(p, state).has_empty(state["v"])

    @abstractmethod
    def _move(self, group: dict[str, Any], rows: Rows, options: Options) -> None:
        """Move the weights of `rows` and their state."""

    @torch.no_grad()
    def connections_changed(self, param: Tensor, mask: Tensor, fresh: Tensor) -> None:
        """Follow a change of which weights of `param` are live, and put its rows back on the sphere over these.

        Shapes: `mask`, which are live, and `fresh`, which of them have just come to life, are boolean and of the
        parameter's shape. Dead weights become exactly 0, with what is remembered of them. Fresh ones begin where `param`
        says, without momentum. Rows without any live weight stay 0.

        Raises:
            ConfigError: the optimizer does not hold `param` on a sphere, or a shape or type is another.
        """
        group = self._group(param)
        if group is None or param.ndim < 2:
            raise ConfigError(
                "connections can change only in a weight that the optimizer holds on a sphere; those of a sparse layer "
                "with pattern_changed"
            )
        state = self.state[param]
        self._begin(group, param, state)
        change_connections(param, state, group["p"], mask, fresh)

    @torch.no_grad()
    def pattern_changed(self, param: Tensor, crow: Tensor, source: Tensor) -> None:
        """Follow a change of the pattern of a sparse layer, whose values are `param`, and put its rows back on the sphere.

        Weight i, and what is remembered of it, is what source[i] was; where source[i] is -1 it begins where `param` says,
        without momentum. Call it as soon as `param` has its values:

            source = layer.repattern(pattern)
            optimizer.pattern_changed(layer.values, layer.crow, source)

        Shapes: `crow` (rows + 1,), `source` of the parameter's shape, integers.

        Raises:
            ConfigError: the optimizer does not hold `param` on a sphere by its rows, or a shape or type is another.
        """
        group = self._group(param)
        if group is None or param.ndim != 1:
            raise ConfigError(
                "a pattern can change only where the optimizer holds the values of a sparse layer on a sphere; make groups "
                "with lp_groups, or give the group crow=[layer.crow]"
            )
        change_pattern(param, self.state[param], group["p"], crow, source)

    def holds(self, param: Tensor) -> bool:
        """Return whether the optimizer holds `param` on a sphere."""
        return self._group(param) is not None

    def _group(self, param: Tensor) -> dict[str, Any] | None:
        """Return the group that holds `param` on a sphere, if one does."""
        groups = (group for group in self.param_groups if any(p is param for p in group["params"]))
        return next((group for group in groups if self._on_sphere(group, param)), None)

    def _on_sphere(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether the rows of `p` are held on the sphere: those of vectors are where it was said what they are."""
        return group["p"] is not None and (p.ndim >= 2 or "crow" in self.state.get(p, ()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as `state_dict` gave it; masks and indices stay, and state wider than its parameter stays wide."""
        super().load_state_dict(state_dict)
        held = [p for group in self.param_groups for p in group["params"]]
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, p in zip(saved, held, strict=True):
            for part, value in state_dict["state"].get(index, {}).items():
                own = isinstance(value, Tensor) and (
                    not value.is_floating_point() or value.dtype.itemsize > p.dtype.itemsize
                )
                if own:  # the base class casts to the parameter's type
                    self.state[p][part] = value.to(p.device, copy=True)

    @torch.no_grad()
    def resize(self, state: dict[str, Any], cuts: Sequence[Any], old: Tensor) -> dict[str, Any]:
        """Return what becomes of a parameter's `state` when entries are removed; `cuts` have an `axis` and an `index`.

        Entries of index -1 are new: live, and without memory. What is left of `v` is put back on its sphere, so
        that the next step puts the weights back on theirs, which scales rows that lost weights other than 0.

        Raises:
            ConfigError: the values of a sparse layer, which change by `pattern_changed`.
        """
        if "crow" in state:
            raise ConfigError("the values of a sparse layer cannot be cut; change its pattern and call pattern_changed")
        made = dict(state)
        for part, value in state.items():
            if isinstance(value, Tensor) and value.shape == old.shape:
                for cut in cuts:
                    where = torch.tensor(cut.index, dtype=torch.long, device=value.device)
                    value = value.index_select(cut.axis, where.clamp(min=0))
                    value.index_fill_(cut.axis, (where < 0).nonzero().flatten(), int(part == "mask"))
                made[part] = value
        group = next(group for group in self.param_groups if any(p is old for p in group["params"]))
        if "v" in made and made["v"].numel():
            normalise_(made["v"], dual_exponent(group["p"]), neurons_of(old, state))
        return made
