"""Fold switches into their neighbours in any network that can be traced."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pared.nn import Gated, KernelSwitch, Scale, Switch, Switched
from pared.nn.kernel import SWITCHED_CONVOLUTIONS
from pared.surgery.axes import find
from pared.surgery.constants import HANDLERS, Known, full
from pared.surgery.operators import AVERAGES, MOVES, POSITIVE, SAME, WEIGHTED
from pared.surgery.trace import Program, Step, Value

#: Layers whose result a switch scales as their own weight and bias would, and the axis of their units.
_SCALED_BY_WEIGHT = {"batch_norm": 1, "instance_norm": 1, "group_norm": 1, "layer_norm": -1, "rms_norm": -1}
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
#: The axis of what a step gives along which its weight has rows.
_ROWS = {**_SCALED_BY_WEIGHT, **dict.fromkeys((*WEIGHTED, *_TRANSPOSED), 1), "linear": -1, "addmm": -1}


class Folder:
    """Fold the switches of `model`, in place, by its `program`; what cannot be folded exactly stays."""

    def __init__(self, model: nn.Module, program: Program) -> None:
        self.model, self.program = model, program
        self.made: dict[int, Step] = {}
        self.read: dict[int, list[Step]] = {}
        for step in self.program.steps:
            if step.op == "getitem":  # names one of several results, which are values by themselves
                continue
            self.made.update({id(value): step for value in step.outs()})
            for value in step.values():
                self.read.setdefault(id(value), []).append(step)
        self.told = {id(value) for value in self.program.outputs}
        self.scales: dict[int, Tensor] = {}

    def run(self) -> list[str]:
        """Fold every switch that can be; return the names of those that stay."""
        left = []
        for path, module in list(self.model.named_modules()):
            if isinstance(module, Gated):
                folded = module.layer if self._fold_share(path, module) else _scaled(module)
                parent, _, name = path.rpartition(".")
                self.model.get_submodule(parent)._modules[name] = folded
        for path, module in list(self.model.named_modules()):
            if isinstance(module, Switch) and not isinstance(module, KernelSwitch):
                if self._fold(path, module):
                    self._take_out(path)
                else:
                    left.append(path)
        return left

    def _take_out(self, path: str) -> None:
        """Put the identity where a switch was, or its layer where the two were wrapped together."""
        parent, _, name = path.rpartition(".")
        holder = self.model.get_submodule(parent)
        if not isinstance(holder, Switched):
            holder._modules[name] = nn.Identity()
            return
        above, _, name = parent.rpartition(".")
        self.model.get_submodule(above)._modules[name] = holder.layer

    def _fold(self, path: str, switch: Switch) -> bool:
        names = [name for name, module in self.model.named_modules(remove_duplicate=False) if module is switch]
        steps = [step for step in self.program.steps if step.layer == path and step.op == "mul"]
        if len(steps) != 1 or len(names) != 1:
            return False
        step, x = steps[0], steps[0].values()[0]
        axis = switch.dim % len(x.dims)
        return self._into_maker(x, axis, switch.factors()) or self._into_readers(step.out, axis, switch.factors())

    def _fold_share(self, path: str, gated: Gated) -> bool:
        """Multiply what makes a gated module's result by its share."""
        steps = [step for step in self.program.steps if step.layer == path and step.op == "mul"]
        if len(steps) != 1:
            return False
        x, share = steps[0].values()[0], gated.gate.factors()[gated.place]
        step = self._maker(x, positive=bool(share >= 0))
        axis = None if step is None else _ROWS.get(step.op)
        if step is None or axis is None:
            return False
        rows = step.out.shape[axis]
        return self._into_rows(step, axis % len(step.out.dims), share.expand(rows))

    def _maker(self, x: Value, *, positive: bool) -> Step | None:
        """The step behind a value that no one else reads, as far back as a number passes, of any sign or a positive one."""
        while self._alone(x) and (step := self.made.get(id(x))) is not None:
            passes = step.op in POSITIVE if positive else False
            if step.inplace and not (passes and self._alone(step.values()[0])):
                return None
            moved = step.op in SAME and not step.op.endswith("_like")
            moved = moved or step.op in ("view", "reshape", "_unsafe_view", "permute", "transpose", "flatten")
            if not (passes or moved or step.op in AVERAGES):
                return step
            x = step.values()[0]
        return None

    def _alone(self, value: Value) -> bool:
        """Whether one step reads `value`, and no one outside."""
        return len(self.read.get(id(value), ())) == 1 and id(value) not in self.told

    def _own(self, value: Any) -> nn.Parameter | None:
        """The parameter behind a value that one step reads, under one name."""
        return self._named(value) if isinstance(value, Value) and self._alone(value) else None

    def _named(self, value: Any) -> nn.Parameter | None:
        """The parameter behind a value that has one name."""
        if not isinstance(value, Value) or value.tensor is None:
            return None
        names = [name for name, other in self.program.tensors.items() if other is value]
        tensor = dict(self.model.named_parameters(remove_duplicate=False)).get(value.tensor)
        return tensor if len(names) == 1 and type(tensor) is nn.Parameter else None

    def _weight(self, step: Step) -> nn.Parameter | None:
        """The weight of a layer's step; of a switched kernel that behind it, whose rows and columns are the same."""
        value = step["mat2"] if step.op == "addmm" else step["weight"]
        module = self.model.get_submodule(step.layer) if step.layer else None
        if isinstance(module, SWITCHED_CONVOLUTIONS):
            value = self.program.tensors.get(f"{step.layer}.weight")
            if any(reader.layer != step.layer for reader in self.read.get(id(value), ())):
                return None
            return self._named(value)
        return self._own(value)

    # --- before the switch: rows ---

    def _into_maker(self, x: Value, axis: int, factors: Tensor) -> bool:
        while self._alone(x) and (step := self.made.get(id(x))) is not None and not step.inplace:
            if step.op in SAME and not step.op.endswith("_like"):
                x = step.values()[0]
                continue
            if step.op in ("view", "reshape", "_unsafe_view") and axis == len(x.dims) - 1:
                source = step.values()[0]
                if find(source.dims[-1]) is find(x.dims[-1]):  # only the places before the units are arranged otherwise
                    x, axis = source, len(source.dims) - 1
                    continue
            return self._into_rows(step, axis, factors)
        return False

    def _into_rows(self, step: Step, axis: int, factors: Tensor) -> bool:
        if step.op not in _ROWS or _ROWS[step.op] % len(step.out.dims) != axis:
            return False
        if step.get("weight") is None and step.op == "batch_norm":
            return self._give_affine(step, factors)
        weight = self._weight(step)
        bias_value = step.get("self") if step.op == "addmm" else step.get("bias")
        bias = self._own(bias_value)
        if weight is None or (bias_value is not None and (bias is None or bias.ndim != 1)):
            return False
        row = 1 if step.op == "addmm" or step.op in _TRANSPOSED else 0
        if weight.shape[row] != len(factors):  # a layer norm over several axes, a transposed convolution in groups
            return False
        weight.mul_(factors.view([-1 if place == row else 1 for place in range(weight.ndim)]))
        if bias is not None:
            bias.mul_(factors)
        return True

    def _give_affine(self, step: Step, factors: Tensor) -> bool:
        module = self.model.get_submodule(step.layer)
        if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            return False
        module.affine = True
        module.weight, module.bias = nn.Parameter(factors.clone()), nn.Parameter(torch.zeros_like(factors))
        return True

    # --- behind it: columns ---

    def of(self, value: Any) -> Known | None:
        """Return the factors of `value` as constants, for the rules that move them about; others have 1."""
        scale = self.scales.get(id(value), torch.ones([1] * len(value.dims), dtype=torch.float64))
        return Known(scale, torch.ones_like(scale, dtype=torch.bool))

    def _into_readers(self, y: Value, axis: int, factors: Tensor) -> bool:
        self.scales = {id(y): factors.double().view([-1 if place == axis else 1 for place in range(len(y.dims))])}
        found: list[tuple[nn.Parameter, Tensor]] = []
        todo = [y]
        while todo:
            value = todo.pop()
            if id(value) in self.told or id(value) not in self.read:
                return False
            for step in self.read[id(value)]:
                if step.op in WEIGHTED:
                    columns = self._columns(step, value)
                    if columns is None:
                        return False
                    found.append(columns)
                elif self._passes(step, value):
                    todo += step.outs()
                else:
                    return False
        for weight, scale in found:
            weight.mul_(scale.to(weight.dtype))
        return bool(found)

    def _passes(self, step: Step, value: Value) -> bool:
        """Note the factors of what `step` makes, if it passes them on."""
        scale = full(self.scales[id(value)], len(value.dims))
        outs: Iterable[Value] = step.outs()
        if step.inplace:
            return False
        if step.op in MOVES:
            result: Any = HANDLERS[step.op](self, step)  # type: ignore[arg-type]
            results = result if isinstance(result, list) else [result]
            if any(known is None for known in results):
                return False
            self.scales.update({id(out): known.values for out, known in zip(outs, results, strict=True)})
            return True
        alone = len(step.values()) == 1 and not step.op.endswith("_like") and isinstance(step.out, Value)
        if not alone or (step.op in POSITIVE and not bool((scale > 0).all())):
            return False
        if step.op == "mean" and any(scale.shape[place] != 1 for place in step.get("dim") or range(scale.ndim)):
            return False
        if step.op in (*AVERAGES, *POSITIVE) or step.op in SAME:
            squeezed = step.op == "mean" and not step.get("keepdim", False)
            kept = [s for place, s in enumerate(scale.shape) if not squeezed or place not in _axes(step, scale.ndim)]
            self.scales[id(step.out)] = scale.reshape(kept)
            return True
        return False

    def _columns(self, step: Step, value: Value) -> tuple[nn.Parameter, Tensor] | None:
        weight, x = self._weight(step), step["mat1"] if step.op == "addmm" else step["input"]
        if weight is None or x is not value or len([v for v in step.values() if v is value]) != 1:
            return None
        scale, axis = full(self.scales[id(value)], len(x.dims)), 1 if step.op.startswith("conv") else len(x.dims) - 1
        if scale.numel() != scale.shape[axis]:
            return None
        scale = scale.flatten().expand(x.shape[axis])
        if step.op == "linear":
            return weight, scale
        if step.op == "addmm":
            return weight, scale.unsqueeze(1)
        groups = len(scale) // weight.shape[1]  # each row of the weight meets the channels of its own group
        rows = scale.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1).reshape(weight.shape[:2])
        return weight, rows.view(*weight.shape[:2], *([1] * (weight.ndim - 2)))


def _scaled(gated: Gated) -> nn.Module:
    """A gated module with its share as a number."""
    made = nn.Sequential(gated.layer, Scale(gated.gate.factors()[gated.place]))
    return made.train(gated.training)


def _axes(step: Step, ndim: int) -> set[int]:
    return {place % ndim for place in step.get("dim") or range(ndim)}
