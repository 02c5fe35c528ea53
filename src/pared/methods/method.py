"""What a method is."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import SurgeryError, warn
from pared.methods.binding import check_bindable, check_strength, check_total
from pared.methods.parts import Parts
from pared.methods.pruned import takes_masks
from pared.methods.session import Session
from pared.methods.strengths import Strength
from pared.methods.unit_session import UnitSession, updates_per_removal
from pared.ops.processes import Processes
from pared.surgery import Example


class Method(ABC):
    """A frozen config that can be bound to a network."""

    @abstractmethod
    def bind(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example: Example,
        *,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Session:
        """Bind the method to `model` and `optimizer`, and return the session that drives it.

        Args:
            model: the network; wrapped, in several processes.
            optimizer: over the model's parameters, without state yet or with.
            example: what the forward pass takes, as for `pared.graph`: one batch of its inputs, say.
            total_steps: optimizer steps of the whole run, for what happens at fractions of it.
            steps_per_epoch: optimizer steps in an epoch, for what happens once an epoch.
            generator: where random numbers are drawn from.

        Raises:
            ConfigError: the optimizer is another network's, or a number of steps is missing.
            SurgeryError: the network is bound already; nothing was changed.
        """


class UnitMethod(Method):
    """A method that removes units; one of your own says in `assemble` what it is made of.

    Attributes:
        strength: how hard it presses, >= 0, or what moves it along the run.
        every: dead units are removed every so many steps, or each "epoch".
        timed: whether it has to know the steps of the whole run.
    """

    strength: float | Strength = 0.0
    every: int | str = 1
    timed: ClassVar[bool] = False

    @takes_masks
    def bind(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example: Example,
        *,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
    ) -> UnitSession:
        """Bind the method to `model` and `optimizer`; see `Method.bind`.

        Methods of switches put them into `model` and give them a group of `optimizer` without weight decay; the others
        put nothing into it. Bind before any learning-rate scheduler is made. Masks of `torch.nn.utils.prune` are folded in:
        `weight` is a plain parameter again, the one that the optimizer holds, and what was dead stays 0 in `model` for good.

        Args:
            model: any network that `torch.export` can follow.
            optimizer: over the model's parameters, without state yet or with.
            example: what the forward pass takes, as for `pared.graph`: one batch of its inputs, say.
            total_steps: optimizer steps of the whole run; a strength that moves and cuts at fractions of it need them.
            steps_per_epoch: optimizer steps in an epoch; `every="epoch"` needs it.
            generator: where random factors and gates are drawn from.

        Raises:
            SurgeryError: the network is not understood, nothing in it can be removed, or a process group of several
                processes was initialised; nothing was changed.
            ConfigError: a scheduler exists already, the optimizer is another network's, or a number of steps is missing.
        """
        every = updates_per_removal(self.every, steps_per_epoch)
        check_strength(self.strength, total_steps, binding=True)
        check_total(self.timed, total_steps, type(self).__name__)
        try:
            net = surgery.bare(model)
        except SurgeryError:
            raise SurgeryError(
                f"{type(self).__name__} removes units while it trains, and {type(model).__name__} holds on to the parameters "
                "it was made with; bind the bare network, train it in one process, and wrap what realize() returns"
            ) from None
        _refuse_several(type(self).__name__)
        check_bindable(net, optimizer)
        if total_steps is not None and every > total_steps:
            warn(
                f"{type(self).__name__} removes dead units every {every} steps, and the run has {total_steps}: none "
                f"leaves before realize(); let every be at most {total_steps}"
            )
        return UnitSession(
            model,
            optimizer,
            self.assemble(net, optimizer, example, generator),
            every=every,
            strength=self.strength,
            total_steps=total_steps,
            features=example.shape[-1] if isinstance(example, Tensor) and example.ndim else 0,
        )

    @abstractmethod
    def assemble(
        self, model: nn.Module, optimizer: Optimizer, example: Example, generator: torch.Generator | None
    ) -> Parts:
        """Return the parts for `model`, a bare network; where something is put into it, `optimizer` is told.

        Raises:
            SurgeryError: as in `bind`; nothing was changed.
        """


def _refuse_several(name: str) -> None:
    """Refuse any process group: a bare network may be inside of a wrapper, or be wrapped later."""
    processes = Processes.of()
    if processes.several:
        raise SurgeryError(
            f"{name} removes units while it trains, by what one process sees, and a process group of {processes.size} was "
            "initialised, whose ranks would remove different units; train in one process, or before init_process_group, and "
            "wrap what realize() returns; pared.remove_ddp removes on all ranks alike"
        )
