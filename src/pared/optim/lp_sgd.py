"""SGD on the unit L_p sphere, in the dual space or directly."""

from typing import Any, Literal

from torch import Tensor

from pared.errors import ConfigError
from pared.ops.lp import dual_exponent, signed_power
from pared.optim.base import SphereOptimizer
from pared.optim.kernels import Number, Options, Rows, advance_lp, normalise_, wide_dtype
from pared.optim.neurons import neurons_of

Form = Literal["momentum", "direct"]


class LpSGD(SphereOptimizer):
    """Descend with every neuron's weights on the unit L_p sphere: the smaller p, the fewer weights that count.

    Construction changes the network: every row (axis 0, the rest flattened) of a weight with two or more axes in a group
    with a `p` is divided by its L_p norm, there and then, as the paper begins. Make the optimizer after the weights are
    set, call `normalize_` when they are set again. The values of a sparse layer are on the sphere row by row, as its
    weight would be with a mask, where the group's `crow` says what their rows are: make groups with `lp_groups`, or write
    `{"params": [layer.values], "p": 1.3, "crow": [layer.crow]}`. Other vectors, as biases, and groups with `p=None` take
    heavy-ball SGD. The size of gradients does not matter on the sphere: a row whose momentum is not all zeros moves a
    share `lr` of the way, however small it is; rows whose momentum is all zeros stay.

    Shapes: state `v` (form "momentum"), `momentum_buffer` and `mask` have the parameter's shape. `v`, with ‖v‖_q = 1 and
    w = v^[q - 1], is in float32 where the parameter is float16 or bfloat16, and momentum on the sphere too. `mask`,
    boolean, is there once `connections_changed` was called: what it leaves out is exactly 0 and in no norm. Values of a
    sparse layer have `crow`, int32 (rows + 1,), instead; who changes the layer's pattern calls `pattern_changed`, as the
    sessions of `pared.methods` do. `torch.compile` runs the step as it is.

    Args:
        params: parameters, or groups with options of their own, as `lp_groups` makes.
        lr: in [0, 1) on the sphere; the paper's experiments divide their schedule's value by the batch size there, not
            that of the Euclidean rest.
        p: the sphere's exponent, above 1.01 and finite; None for a Euclidean group.
        momentum: in [0, 1).
        nesterov: look ahead, as in the authors' demonstration.
        euclidean_lr: the rate of groups with `p=None` that have none of their own; `lr` if left out.
        form: "momentum" moves the dual vector `v`, equations 21 to 26; "direct" moves the weights, equation 13 with the
            momentum's mean for the gradient (momentum 0 is the paper's).
        weight_decay: of Euclidean parameters; on the sphere there is nothing to decay.
        foreach: whether Euclidean parameters are stepped together; None decides by device.
        maximize: ascend.

    Raises:
        ConfigError: an option is out of range.

    Source: L_p sphere (arXiv 2103.16013), equations 9 to 14 and 21 to 26. Equation 13 prints the norm L_q, with which
    weights leave the sphere; here it is L_p. Equation 26 prints the next step's momentum; here it is this one's. Norms
    are scaled by the largest entry, as their powers underflow otherwise, where the authors' code adds 1e-6.
    """

    def __init__(
        self,
        params: Any,
        lr: Number,
        p: float | None,
        momentum: float = 0.9,
        nesterov: bool = False,
        euclidean_lr: Number | None = None,
        form: Form = "momentum",
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "p": p,
            "momentum": momentum,
            "nesterov": nesterov,
            "euclidean_lr": euclidean_lr,
            "form": form,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group["form"] not in ("momentum", "direct"):
            raise ConfigError(f"form must be 'momentum' or 'direct', got {group['form']!r}")

    def _begin(self, group: dict[str, Any], p: Tensor, state: dict[str, Any]) -> None:
        if group["form"] == "momentum" and "v" not in state:
            v, over = signed_power(p.to(wide_dtype(p)), group["p"] - 1.0), neurons_of(p, state)
            state["v"] = normalise_(v, dual_exponent(group["p"]), over)
            state["empty"] = over.has_empty(v)

    def _move(self, group: dict[str, Any], rows: Rows, options: Options) -> None:
        advance_lp(rows, options, dual_exponent(group["p"]), group["lr"])
