"""Riemannian SGD on the unit L_p sphere, which LpSGD is compared with."""

from typing import Any

from pared.optim.base import SphereOptimizer
from pared.optim.kernels import Number, Options, Rows, advance, step_tangent


class SphereSGD(SphereOptimizer):
    """Constrained SGD: project the gradient onto the sphere's tangent space, step, go back by dividing by the L_p norm.

    Construction changes the network, as that of `LpSGD` does, and groups, vectors, sparse layers and options mean the
    same; on this sphere `lr` is a length, not a share, but must be in [0, 1) as well, and the size of gradients matters.
    Momentum follows along the sphere by projection onto the tangent space where it is used.

    Shapes: state `momentum_buffer` has the parameter's shape, `mask` and `crow` are as in `LpSGD`.

    Raises:
        ConfigError: an option is out of range.

    Source: L_p sphere (arXiv 2103.16013), "Training the weight constrained on unit L_p-sphere", after Roy and Harandi
    (2017), Constrained stochastic gradient descent: the good practice. The normal at w is w^[p - 1], the projection the
    Euclidean one; the paper gives no formula.
    """

    def __init__(
        self,
        params: Any,
        lr: Number,
        p: float | None,
        momentum: float = 0.9,
        nesterov: bool = False,
        euclidean_lr: Number | None = None,
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
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _move(self, group: dict[str, Any], rows: Rows, options: Options) -> None:
        advance(step_tangent, rows, options, group["p"], group["lr"])
