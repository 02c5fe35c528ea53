"""How methods are bound to a network with masks of `torch.nn.utils.prune` on."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from pared import surgery
from pared.surgery.prune_masks import taken_over

Bind = TypeVar("Bind", bound=Callable[..., Any])


def takes_masks(bind: Bind) -> Bind:
    """Let `bind` of a method find a network without masks, by `taken_over`; the connections of a session are its own matter."""

    @wraps(bind)
    def call(self: Any, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        with taken_over(surgery.bare(model, distributed=True), optimizer) as others:
            session = bind(self, model, optimizer, *args, **kwargs)
            others.update(id(one.weight) for one in getattr(session, "connections", {}).values())
        return session

    return cast("Bind", call)
