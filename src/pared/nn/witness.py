"""What a sparse layer sees, for gradients of weights that are not there."""

from typing import Any

import torch
from torch import Tensor, nn

from pared.errors import RunError

#: Backward passes that may be under way at once, one inside another.
PASSES = 8


class Witness:
    """Keep what goes into a layer and what comes back, of the backward passes that are summed up in its values' `grad`.

    While it is on, `pairs` holds inputs (columns, batch) and gradients of outputs (rows, batch). What comes back is kept for
    good when the same pass reaches the values' `grad`, and is forgotten when that starts anew: passes that go elsewhere, or
    whose gradients were thrown away, leave nothing. A copy of a witness is off and has seen nothing.
    """

    def __init__(self) -> None:
        self.on, self._handles = False, []
        self._forget()

    def _forget(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self._passing: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the number of the backward pass
        self._fresh, self._trouble = False, ""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Witness":
        return Witness()

    def __reduce__(self) -> tuple[Any, ...]:
        return Witness, ()

    def start(self, values: nn.Parameter) -> None:
        """See what comes from now on."""
        if not self.on and values.requires_grad:
            self._handles = [
                values.register_hook(lambda _: self._look(values)),
                values.register_post_accumulate_grad_hook(self._keep),
            ]
            self.on = True

    def stop(self) -> None:
        """Forget everything, and see nothing more."""
        for handle in self._handles:
            handle.remove()
        self.on, self._handles = False, []
        self._forget()

    @torch.compiler.disable
    def see(self, x: Tensor, y: Tensor, given: Tensor) -> None:
        """Follow the answer `y` to `x`, both features-major; `given` is what `x` was made of."""
        if not y.requires_grad:
            return
        x = x.detach()
        x = x.clone() if x.data_ptr() == given.data_ptr() else x  # which may be written into before it is used

        def back(dy: Tensor) -> None:
            if torch.is_grad_enabled():
                self._trouble = "a backward pass that can be derived itself (create_graph=True) went through the layer"
            self._passing.setdefault(_number(), []).append((x, dy.detach()))
            if len(self._passing) > PASSES:  # the oldest has gone elsewhere, and is over
                del self._passing[min(self._passing)]

        y.register_hook(back)

    def _look(self, values: nn.Parameter) -> None:
        self._fresh = values.grad is None or not bool(values.grad.any())

    def _keep(self, _: Tensor) -> None:
        if self._fresh:
            self.pairs.clear()
        seen = self._passing.pop(_number(), [])
        if not seen:
            self._trouble = "its values got gradients by another way than the layer's own forward pass"
        self.pairs += seen

    def check(self) -> None:
        """Make sure that what was seen is what made the gradients.

        Raises:
            RunError: it is not, so that gradients of dead connections would be wrong.
        """
        if self._trouble:
            raise RunError(
                f"where connections of a sparse layer should grow cannot be told: {self._trouble}; use a method that does not "
                "look at gradients (SET), or dense layers"
            )


def _number() -> int:
    return torch._C._current_graph_task_id()
