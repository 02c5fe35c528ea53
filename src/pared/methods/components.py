"""Gates on modules and channels of any network, and the removal of modules whose share has gone."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from pared import surgery
from pared.errors import ConfigError, RunError, SurgeryError
from pared.methods.makers import maker_groups
from pared.methods.selectors import Competing
from pared.methods.session import Event
from pared.methods.unit_session import UnitSession
from pared.nn import Channels, Gate, Gated, SparseAdjacency, Switched
from pared.process import forked_random
from pared.surgery import Example, remove_idle, stand_in, why_stays
from pared.surgery.idle import within
from pared.surgery.stand_in import Kind
from pared.surgery.trace import arguments, evaluating

#: Who competes with whom, by title: modules by name, or segments of what one gives.
Groups = Mapping[str, Sequence[str] | Channels]


def add_gates(model: nn.Module, groups: Groups, make: Callable[..., Gate]) -> dict[str, Gate]:
    """Put a gate for each group into `model`, in place, and return them by title.

    Raises:
        ConfigError: a module is not there, or is named twice.
    """
    _check(model, groups)
    made: dict[str, Gate] = {}
    every = [name for group in groups.values() for name in _names(group)]
    holders = {name: model.get_submodule(name.rpartition(".")[0]) for name in every}  # before names lead through gates
    layers = {name: model.get_submodule(name) for name in every}
    for title, group in groups.items():
        names = _names(group)
        like = next((p for name in names for p in layers[name].parameters()), next(model.parameters()))
        place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        if isinstance(group, Channels):
            made[title] = make(len(group.sizes), sizes=group.sizes, dim=group.dim, **place)
            _put(holders[group.name], group.name, Switched(layers[group.name], made[title]))
            continue
        made[title] = make(len(names), **place)
        for number, name in enumerate(names):
            _put(holders[name], name, Gated(layers[name], made[title], number))
    return made


def _names(group: Sequence[str] | Channels) -> list[str]:
    return [group.name] if isinstance(group, Channels) else list(group)


def _put(holder: nn.Module, name: str, module: nn.Module) -> None:
    holder._modules[name.rpartition(".")[2]] = module


def _check(model: nn.Module, groups: Groups) -> None:
    known = dict(model.named_modules(remove_duplicate=False))
    seen: set[int] = set()
    for title, group in groups.items():
        if isinstance(group, str):
            raise ConfigError(f"group {title!r} is one name; give a list of names, [{group!r}]")
        if not isinstance(group, Channels | Sequence):
            raise ConfigError(f"group {title!r} must be a list of names, or Channels; got {group!r}")
        names = _names(group)
        if not names:
            raise ConfigError(f"group {title!r} has no modules; name at least one")
        for name in names:
            if not name or name not in known:
                raise ConfigError(f"group {title!r} names {name!r}, which is no module; see model.named_modules()")
            if id(known[name]) in seen or sum(module is known[name] for module in known.values()) > 1:
                raise ConfigError(f"module {name!r} of group {title!r} is named, or used, more than once")
            seen.add(id(known[name]))


@contextmanager
def explained(model: nn.Module, groups: Groups, example: Example) -> Iterator[None]:
    """Say, where a network cannot be traced any more, which group divides channels that are not there.

    Raises:
        ConfigError: the network as it was gives other channels for `example`.
    """
    try:
        yield
    except SurgeryError as error:
        segments = {title: group for title, group in groups.items() if isinstance(group, Channels)}
        shapes = _shapes(model, {group.name for group in segments.values()}, example) if segments else {}
        for title, group in segments.items():
            shape, total = shapes.get(group.name), sum(group.sizes)
            if shape is not None and (not -len(shape) <= group.dim < len(shape) or shape[group.dim] != total):
                raise ConfigError(
                    f"group {title!r} divides {total} channels on axis {group.dim} of what module {group.name!r} gives, "
                    f"whose shape is {shape}; give sizes that add up to those of one axis"
                ) from error
        raise


def _shapes(model: nn.Module, names: Collection[str], example: Example) -> dict[str, tuple[int, ...]]:
    """The shapes of what modules give, as far as the forward pass comes."""
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str, _: nn.Module, __: Any, y: Any) -> None:
        if isinstance(y, Tensor):
            found[name] = tuple(y.shape)

    handles = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    args, kwargs = arguments(example)
    try:
        with forked_random(), evaluating(model), torch.no_grad(), suppress(Exception):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def competing_in(model: nn.Module, known: Mapping[str, Gate]) -> dict[str, Competing]:
    """Return what competes in `model`: gates `known` by their titles, others by the module that holds them, and graphs."""
    titles = {id(gate): title for title, gate in known.items()}
    found: dict[str, Competing] = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseAdjacency):
            found[name] = module
        elif isinstance(module, Gate):
            holder = name.rpartition(".")[0]
            free = holder and holder not in known and holder not in found  # a module may hold several
            found[titles.get(id(module), holder if free else name)] = module
    return found


def members_of(model: nn.Module, gate: Competing) -> dict[str, Gated]:
    """Return the modules that hold a share of `gate`, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Gated) and module.gate is gate}


@runtime_checkable
class Loser(Protocol):
    """A module that says itself what leaves when components of the gate inside of it do, as a layer of a dense block."""

    def without(self, gone: Sequence[int], sizes: Sequence[int], name: str) -> surgery.Plan:
        """Return the plan by which the components `gone`, of the channels `sizes`, leave this module, called `name`."""
        ...


def loser_of(model: nn.Module, gate: Competing) -> tuple[str, Loser] | None:
    """Return what says what leaves with components of `gate`, by name: the innermost module around it that can."""
    paths = [name for name, module in model.named_modules() if module is gate]
    if isinstance(gate, SparseAdjacency):
        return (paths[0], surgery.Edges(model, gate)) if paths else None
    for name in reversed(list(_around(paths[0]))) if paths else ():
        module = model.get_submodule(name)
        if isinstance(module, Loser):
            return name, module
    return None


def sizes_of(gate: Competing) -> list[int]:
    """Return how many channels each component has."""
    sizes = gate.sizes if isinstance(gate, Gate) else None
    return [1] * len(gate.theta) if sizes is None else sizes.tolist()


@dataclass(eq=False)
class Members:
    """Modules whose share is gone for good: they, what leads to them alone, and blocks that do nothing without them."""

    example: Example
    removed: list[tuple[str, Any]] = field(default_factory=list)

    def remove(self, session: UnitSession) -> None:
        """Remove them, with what is dead, from model, optimizer and averaged copies."""
        lost: dict[str, list[int]] = {}
        for title, gate in session.competing.items():
            members = members_of(session.net, gate)
            dead = [name for name, member in members.items() if not bool(gate.alive[member.place])]
            left = [name for name in dead if not self._remove(session, name)]
            gone = [members[name].place for name in dead if name not in left]
            self._tell_stuck(session, title, {name: members[name].place for name in left})
            if gone:
                event = Event(session.steps, title, len(gone), len(members) - len(gone), tuple(gone))
                session.tell(event)
                session.recount()
            if not members and title not in session.slots and not bool(gate.alive.all()):
                gone = gate.alive.logical_not().nonzero().flatten().tolist()
                lost[title] = gone[1:] if len(gone) == len(gate.alive) else gone  # one stays, whoever killed all
        for title in self._lose(session, lost):
            left = len(session.competing[title].theta)
            session.tell(Event(session.steps, title, len(lost[title]), left, tuple(lost[title])))

    def _lose(self, session: UnitSession, lost: Mapping[str, Sequence[int]]) -> list[str]:
        """Let the modules around gates lose components, by title, and return the titles of those that did."""
        done: dict[str, Loser] = {}
        for title, gone in lost.items():
            loser = loser_of(session.net, session.competing[title])
            if loser is None or not gone:
                continue
            name, module = loser
            plan = module.without(gone, sizes_of(session.competing[title]), name)
            surgery.apply(plan, session.model, optimizer=session.optimizer, ema=session.followers)
            left = {session.kept[title][place] for place in gone}
            session.kept[title] = [factor for factor in session.kept[title] if factor not in left]
            done[title] = module
        if all(isinstance(module, surgery.Edges) for module in done.values()):
            if done:  # nothing else costs less by that: a new graph can wait
                session.outdate(self.example)
                session.recount()
        else:  # once for all: it takes longer than what was done
            self.trace(session)
        return list(done)

    def trace(self, session: UnitSession) -> None:
        """Let the session's graph be true again, and count."""
        session.outdate(self.example)
        session.costs.graph = session.graph
        session.recount()

    def _remove(self, session: UnitSession, name: str) -> bool:
        """Remove the largest module around a silent one that can be."""
        follow = {"graph": session.graph, "optimizer": session.optimizer, "ema": session.followers}
        for block in _around(name):
            try:
                self.removed += surgery.remove_blocks(session.net, [block], silent=[name], **follow).items()
            except SurgeryError:
                continue
            idle: list[tuple[str, Kind]] = [(one, "identity") for one in remove_idle(session.net, **follow)]
            self.removed += idle
            return True
        return False

    def _tell_stuck(self, session: UnitSession, title: str, places: Mapping[str, int]) -> None:
        """Cut branches that cannot leave as a whole down to one channel, and tell of what stays, each once."""
        known = {place for event in session.events if event.layer == title for place in event.index}
        left = int(session.competing[title].alive.sum())
        for name, place in places.items():
            if place in known:
                continue
            cut = self._cut_branch(session, name)
            if cut:
                self.removed.append((name, "branch"))
                session.recount()
            else:
                told = why_remains(session.graph, session.net, name)
                session.skipped[name] = told or "no module around it can be removed as the network is now"
            session.tell(Event(session.steps, title, int(cut), left, (place,)))

    def _cut_branch(self, session: UnitSession, name: str, *, living: surgery.Living = "refuse") -> bool:
        """Let a branch whose share is gone, and those who read it, keep one of its channels, if that changes nothing."""
        spaces, held = _branch(session.graph, session.net, name)
        if not spaces:
            return False
        keep = {space.name: [0] for space in spaces}
        with _zeroed(held if living == "refuse" else {}) as settle:  # a share of 0 hides that for good
            plan = surgery.make_plan(session.graph, session.net, keep, living=living)
            surgery.apply(plan, session.model, optimizer=session.optimizer, ema=session.followers)
            settle()
            session.graph.follow(keep, ((item.bias, item.weight) for item in plan.constants))
            session.created += [item.bias for item in plan.constants if item.bias not in session.created]
            return True
        return False

    def saved(self) -> list[Any]:
        """Return what stands where, JSON-able."""
        return [list(pair) for pair in self.removed]

    def load(self, session: UnitSession, saved: Sequence[Any], kept: Mapping[str, Sequence[int]]) -> None:
        """Let the same stand in a session that was freshly bound.

        Raises:
            RunError: a module is not there; nothing was changed.
        """
        pairs = [(str(name), kind) for name, kind in saved]
        known = dict(session.net.named_modules())
        for name, kind in pairs:
            if name not in known or kind not in (*get_args(Kind), "branch"):
                raise RunError(f"the saved session does not fit this network: it has no module {name!r} to remove")
        new = [pair for pair in pairs if pair not in self.removed]
        for name, kind in new:
            if kind != "branch":
                stand_in({name: kind}, session.net, optimizer=session.optimizer, ema=session.followers)
        self.removed[:] = pairs
        if new:
            self.trace(session)
        for name in [name for name, kind in new if kind == "branch"]:
            self._cut_branch(session, name, living="cut")
            session.recount()
        self._lose(session, self._lost(session, kept))

    def _lost(self, session: UnitSession, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Where, among what gates without a slot have now, the components are that a saved session no longer had."""
        gates = (title for title, gate in session.competing.items() if loser_of(session.net, gate) is not None)
        left = {title: set(kept[title]) for title in gates if title not in session.slots and title in kept}
        return {t: [p for p, factor in enumerate(session.kept[t]) if factor not in some] for t, some in left.items()}


def why_remains(graph: surgery.Graph, model: nn.Module, name: str) -> str | None:
    """Return why nothing leaves with the module `name` when its share is 0, None if it, or all but one channel, does."""
    reason = why_stays(graph, model, name)
    spaces, held = ([], {}) if reason is None else _branch(graph, model, name)
    with _zeroed(held if spaces else {}):
        surgery.make_plan(graph, model, {space.name: [0] for space in spaces})
        return None if spaces else reason
    return reason


def _branch(graph: surgery.Graph, model: nn.Module, name: str) -> tuple[list[surgery.Space], dict[str, Tensor]]:
    """The spaces of what the module `name` gives that can lose entries, and the parameters in it that make these."""
    try:
        dims = [dim for value in surgery.results_of(graph, model, name) for dim in value.dims]
    except SurgeryError:
        return [], {}
    found = {leaf for dim in dims for leaf in surgery.leaves_of(dim)}
    spaces = [space for space in graph.removable() if space.dim in found]
    groups = [maker_groups(graph, model, space) for space in spaces]
    own = [rows for group in groups for n, parts in group.items() if within(n, name) for rows in parts]
    return spaces, {rows.tensor: model.get_parameter(rows.tensor) for rows in own}


@contextmanager
def _zeroed(held: Mapping[str, Tensor]) -> Iterator[Callable[[], None]]:
    """Let tensors be 0 in the block, and for good if what it yields was called; a refusal ends it without an error."""
    before = [(tensor.detach(), tensor.detach().clone()) for tensor in held.values()]
    kept: list[bool] = []
    try:
        for tensor, _ in before:
            tensor.zero_()
        with suppress(SurgeryError):
            yield lambda: kept.append(True)
    finally:
        for tensor, old in () if kept else before:
            tensor.copy_(old)


def _around(name: str) -> Iterator[str]:
    """The modules around one, the outermost first, and itself."""
    parts = name.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))
