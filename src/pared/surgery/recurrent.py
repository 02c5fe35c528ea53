"""Recurrent layers: which of their units stay at a constant, and which are read within the layer."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pared.errors import SurgeryError
from pared.surgery.axes import Dim
from pared.surgery.constants import Constants, Known, full, handler
from pared.surgery.trace import Step, Value

#: By operator: how many gates a unit has, and which of them is the candidate, without which it stays where it is.
GATES = {"lstm": (4, 2), "gru": (3, 2), "rnn_tanh": (1, 0), "rnn_relu": (1, 0)}


@dataclass(frozen=True, eq=False)
class Cell:
    """The weights of one layer and direction: (gates x hidden, in), (gates x hidden, out), biases, (out, hidden)."""

    incoming: Value
    history: Value
    biases: tuple[Value, ...]
    projection: Value | None

    @property
    def out(self) -> Dim:
        """The units that others read: those of the projection where there is one."""
        return self.history.dims[1]


def cells(step: Step) -> list[Cell] | None:
    """Return the cells of a recurrent step, layer by layer, each with its directions; None where it is not understood."""
    if step.op not in GATES or "input" not in step.args:  # packed sequences come without
        return None
    params: list[Value] = step["params"]
    biases, count = 2 if step["has_biases"] else 0, step["num_layers"] * ways(step)
    per_cell, left = divmod(len(params), count)
    if left or per_cell - 2 - biases not in (0, 1):
        return None
    parts = (params[at : at + per_cell] for at in range(0, len(params), per_cell))
    return [Cell(p[0], p[1], tuple(p[2 : 2 + biases]), p[2 + biases] if per_cell > 2 + biases else None) for p in parts]


def ways(step: Step) -> int:
    """Return the number of directions."""
    return 2 if step["bidirectional"] else 1


def inner_readers(step: Step) -> Iterator[tuple[Value, int, Dim, int]]:
    """Yield what reads units within a recurrent step: a weight, the cell it reads, the dim of these units, from where on.

    Entries from the last on, as many as the dim has, of axis 1 of the weight are its columns for these units.
    """
    held = cells(step) or []
    for place, cell in enumerate(held):
        yield cell.history, place, cell.out, 0
        if cell.projection is not None:
            yield cell.projection, place, cell.projection.dims[1], 0
        after = place - place % ways(step) + ways(step)
        for other in held[after : after + ways(step)]:
            yield other.incoming, place, cell.out, place % ways(step) * cell.out.size


@dataclass(frozen=True, eq=False)
class _Still:
    """What is constant of a cell: `hidden` units at 0, (hidden,); `out` ones at `values`, (out,); `quiet` from the start."""

    hidden: Tensor
    out: Tensor
    values: Tensor
    quiet: Tensor


@handler(*GATES)
def _recurrent(constants: Constants, step: Step) -> list[Known | None] | None:
    found = still(constants, step)
    if not found:
        return None
    last, one = found[-ways(step) :], [1, 1, -1]
    out = Known(torch.cat([s.values for s in last]).view(one), torch.cat([s.out for s in last]).view(one))
    values, mask = (torch.stack(parts).unsqueeze(1) for parts in ([s.values for s in found], [s.out for s in found]))
    hidden = torch.stack([s.hidden for s in found]).unsqueeze(1)
    return [out, Known(values, mask), Known(torch.zeros_like(hidden, dtype=torch.float64), hidden)]


def still(constants: Constants, step: Step) -> list[_Still]:
    """Return which units of each cell stay at a constant: none where the step is not understood."""
    held = cells(step)
    if held is None:
        return []
    entries, mask = constants.along(step["input"], len(step["input"].dims) - 1)
    silent = mask & (entries == 0)
    starts = _starts(constants, step, len(held))
    found: list[_Still] = []
    for place, cell in enumerate(held):
        found.append(_cell(constants, step, cell, silent, [zero[place] for zero in starts]))
        if (place + 1) % ways(step) == 0:
            silent = torch.cat([s.out & (s.values == 0) for s in found[-ways(step) :]])
    return found


def _starts(constants: Constants, step: Step, count: int) -> list[Tensor]:
    """Which units start at 0, for every cell, of each state: (cells, units)."""
    states, found = step["hx"], []
    for state in states if isinstance(states, list) else [states]:
        known, size = constants.of(state), state.shape[-1]
        zero = torch.zeros(1, 1, 1, dtype=torch.bool)
        if known is not None:
            zero = full(known.mask & (known.values == 0), 3).all(1)
        found.append(zero.reshape(zero.shape[0], -1).expand(count, size))
    return found


def _cell(constants: Constants, step: Step, cell: Cell, silent: Tensor, starts: list[Tensor]) -> _Still:
    """A unit stays at 0 if it starts there and its candidate reads nothing; without a memory, at what its bias says."""
    gates, place = GATES[step.op]

    def candidate(value: Value | None) -> Tensor:
        weight = constants.weight(value)
        if weight is None:
            return torch.full((1, 1), torch.nan)
        return weight.detach().double().cpu().unflatten(0, (gates, -1))[place]

    incoming, history = candidate(cell.incoming), candidate(cell.history)
    hidden, out = cell.history.shape[0] // gates, cell.out.size
    base = ~_reads(incoming, ~silent, hidden)
    shift = torch.zeros(hidden, dtype=torch.float64)
    for bias in cell.biases:
        shift = shift + candidate(bias).flatten()
        base = base & (candidate(bias).flatten() == 0) if gates > 1 else base
    if gates > 1:
        base = base & starts[-1]  # of an LSTM its memory's
    values = torch.zeros(out, dtype=torch.float64)
    if gates == 1:
        values = shift.tanh() if step.op == "rnn_tanh" else shift.relu()
    projection = None if cell.projection is None else constants.weight(cell.projection)
    quiet = starts[0] & (values == 0)
    while True:
        within = base & ~_reads(history, ~quiet, hidden)
        told = within if projection is None else ~_reads(projection.detach().cpu(), ~within, out)
        if bool((told & quiet == quiet).all()):
            return _Still(within, told, values, quiet)
        quiet = quiet & told


def _reads(rows: Tensor, live: Tensor, count: int) -> Tensor:
    """Which rows of a weight have an entry other than 0 where something may be `live`."""
    if rows.shape[-1] != len(live):
        return torch.ones(count, dtype=torch.bool)
    return (rows[:, live] != 0).any(1)


def check_recurrent(step: Step, known: Constants) -> None:
    """Make sure that no unit to be removed is read by its own layer, unless it is at zero by itself.

    Raises:
        SurgeryError: one is.
    """
    found: list[_Still] = []
    for weight_value, place, dim, first in inner_readers(step):
        gone = known.gone(dim)
        weight = known.weight(weight_value)
        if not len(gone) or weight is None:
            continue
        found = found or still(known, step)
        cell = found[place]
        own = (cells(step) or [])[place]
        zero = cell.quiet if weight_value is own.history else cell.out & (cell.values == 0)
        zero = cell.hidden if weight_value is own.projection else zero
        needed = gone[~zero[gone]]
        columns = weight.detach()[~known.lost(weight_value.dims[0]).to(weight.device)]
        read = (columns[:, (needed + first).to(columns.device)] != 0).any(0).cpu()
        if bool(read.any()):
            raise SurgeryError(
                f"unit {int(needed[read][0])} of {step.where()} is alive and {weight_value.tensor!r} reads it; let the "
                "weights and biases of its candidate gate be zero in every layer and direction, and its start, or its "
                "column there"
            )
