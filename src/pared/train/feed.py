"""The batches of a loader that a network can be trained on: those of one row are left out where a batch norm needs two."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pared.errors import ConfigError, DataError, warn
from pared.process import forked_random
from pared.surgery.trace import evaluating
from pared.train.batches import call, first_rows, length, moved, pair
from pared.train.resuming import kept_generators


class Feed:
    """A loader's batches, gone through once an epoch.

    A batch norm cannot take statistics of one value a channel, so a batch of one row is left out wherever the network
    has such a norm, and a warning says so once. `steps` is how many batches an epoch has; where a loader does not say
    how large its batches are, those that will be left out are still among them.

    Raises:
        ConfigError: the loader does not know its length, is empty, or has batches of one row only.
        DataError: it gives no pairs, or none at all.
    """

    def __init__(self, loader: Iterable[Any], model: nn.Module) -> None:
        self.loader, self._model = loader, model
        self._norm: str | None = None
        self._told = False
        self.steps = length(loader)
        with kept_generators(loader):
            self.example = self._first()
        alone = _alone(loader)
        if not alone or self._needs_two(first_rows(self.example, 1)) is None:
            return
        if alone == self.steps:
            raise ConfigError(
                f"every batch of train_loader has one row, of which {self._norm} cannot take statistics; "
                "let batches have 2 rows or more"
            )
        self.steps -= alone
        self._tell(f"{alone} of {alone + self.steps} batches of train_loader have")

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if rows(batch) == 1 and self._needs_two(batch[0]) is not None:
                self._tell("a batch of train_loader has")
                continue
            yield batch

    def _first(self) -> Any:
        """What the network takes, of the first batch."""
        device = next(self._model.parameters()).device
        for batch in self.loader:
            return pair(batch, device)[0]
        raise DataError(
            "train_loader gave no batch, although its length is not 0; give one that can be gone through again"
        )

    def _needs_two(self, x: Any) -> str | None:
        """The batch norm that cannot train on the one row `x`, if there is one; a network is asked once."""
        if self._norm is None:
            self._norm = _norm_without_statistics(self._model, x) or ""
        return self._norm or None

    def _tell(self, found: str) -> None:
        if not self._told:
            self._told = True
            warn(
                f"{found} one row, of which {self._norm} cannot take statistics: left out; drop_last=True of the "
                "DataLoader does the same"
            )


def rows(batch: Any) -> int | None:
    """Return the rows of a pair (x, y): of the first tensor in it that has any."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((count for item in items if (count := rows(item)) is not None), None)


def _alone(loader: Any) -> int:
    """How many batches of an epoch have one row, as far as that can be known without going through it."""
    if isinstance(loader, list | tuple):
        return sum(rows(batch) == 1 for batch in loader)
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return 0
    with suppress(TypeError):  # of a sampler without an end
        count = len(loader.sampler)  # type: ignore[arg-type]
        return count if loader.batch_size == 1 else int(count % loader.batch_size == 1 and not loader.drop_last)
    return 0


class _Found(Exception):
    """A norm that has one value a channel."""


def _norm_without_statistics(model: nn.Module, x: Any) -> str | None:
    """The name of the first batch norm that is given one value a channel when `model` takes `x` while it trains."""
    norms = {
        module: name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    if not norms:
        return None
    device = next(model.parameters()).device
    with evaluating(model):
        model.train()
        training = [norm for norm in norms if norm.training]  # a network may keep some from it
        for module in model.modules():
            module.training = False

        def look(norm: nn.Module, args: tuple[Any, ...]) -> None:
            if args[0].numel() == args[0].shape[1]:
                raise _Found(next(name for one, name in norms.items() if one is norm))

        handles = [norm.register_forward_pre_hook(look) for norm in training]
        try:
            with torch.no_grad(), forked_random():
                call(model, moved(x, device))
        except _Found as found:
            return f"{type(model.get_submodule(str(found))).__name__} {str(found)!r}"
        except Exception:
            return None
        finally:
            for handle in handles:
                handle.remove()
    return None
