"""What every method does when it is bound."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pared import surgery
from pared.errors import ConfigError, SurgeryError
from pared.methods.session import sessions_of
from pared.methods.strengths import Strength


def check_bindable(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse what would fail later, before anything is changed.

    Raises:
        ConfigError: a scheduler exists already, or the optimizer is another network's.
        SurgeryError: the network is bound already, or the optimizer cannot follow a removal.
    """
    if any(
        hasattr(one.step, "_wrapped_by_lr_sched") for one in (optimizer, getattr(optimizer, "optimizer", optimizer))
    ):
        raise ConfigError(
            "a learning-rate scheduler already holds this optimizer's groups; bind the method before making "
            "the scheduler"
        )
    check_optimizer(model, optimizer)


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that cannot follow.

    Raises:
        ConfigError: it is another network's.
        SurgeryError: its step is not each weight's own, or drives a session of this network already.
    """
    if any(session.net is model for session in sessions_of(optimizer)):
        raise SurgeryError(
            "the network is bound already; bind a network once, call session.detach() first, or use "
            "session.load_state_dict to go on"
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in model.parameters()):
        raise ConfigError(
            "the optimizer holds none of the network's parameters; make it of the very network that is bound, not of a copy"
        )
    surgery.refuse_optimizer(optimizer)


def check_strength(strength: float | Strength, total_steps: int | None = None, *, binding: bool = False) -> None:
    """Make sure of a strength; one that moves needs `total_steps` when it is bound.

    Raises:
        ConfigError: it is no number, below 0 or not finite, or the number of steps is missing.
    """
    moves = all(hasattr(strength, name) for name in ("start", "next"))
    if isinstance(strength, bool) or not (moves or isinstance(strength, int | float)):
        raise ConfigError(
            f"strength must be a number of at least 0, or what moves it along the run, such as Geometric; got {strength!r}"
        )
    if isinstance(strength, int | float):
        if not 0.0 <= strength < math.inf:
            raise ConfigError(f"strength must be at least 0 and finite, got {strength}")
    elif binding and (total_steps is None or total_steps < 1):
        raise ConfigError(f"a strength that moves needs total_steps in bind, at least 1; got {total_steps}")


def check_total(timed: bool, total_steps: int | None, name: str) -> None:
    """Make sure of the steps of a run for a method that acts at fractions of it.

    Raises:
        ConfigError: they are missing.
    """
    if timed and (total_steps is None or total_steps < 1):
        raise ConfigError(
            f"{name} acts at fractions of a run, so it needs total_steps in bind, at least 1; got {total_steps}"
        )


def bind_switches(switches: Mapping[str, nn.Module], optimizer: Optimizer, lr_scale: float = 1.0) -> None:
    """Give switches a group without weight decay, else as the first is; those made with the network leave its group."""
    own = ((name, switch.named_parameters(recurse=False)) for name, switch in switches.items())
    thetas = [(f"{name}.{key}", parameter) for name, parameters in own for key, parameter in parameters]
    mine = {id(theta) for _, theta in thetas}
    for group in optimizer.param_groups:
        stays = [id(parameter) not in mine for parameter in group["params"]]
        for key in ("params", "param_names"):
            if key in group:
                group[key][:] = [item for item, stay in zip(group[key], stays, strict=True) if stay]
    named = any("param_names" in group for group in optimizer.param_groups)
    # Of an optimizer on spheres the Euclidean group, which has no exponent.
    like = next((group for group in optimizer.param_groups if group.get("p", 0) is None), optimizer.param_groups[0])
    group: dict[str, Any] = {key: value for key, value in like.items() if key not in ("params", "param_names")}
    group |= {"params": thetas if named else [theta for _, theta in thetas], "weight_decay": 0.0}
    group |= {"strength": 0.0} if "prox" in group else {}  # of a proximal step, which is for weights
    group |= {key: lr_scale * group[key] for key in ("lr", "initial_lr") if key in group}
    optimizer.add_param_group(group)
