"""A graph by word of mouth, for networks that cannot be exported: who makes the units, who reads them."""

import re
from collections.abc import Mapping, Sequence

from torch import nn

from pared.errors import SurgeryError
from pared.nn import Switch
from pared.surgery.axes import Dim, product, total
from pared.surgery.graph import Attribute, Consumer, Graph, Slot, Space, state_of
from pared.surgery.prune_masks import plain_view
from pared.surgery.trace import Program, Step, Value, tensors

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS += (nn.PReLU,)
#: The axes of a layer's tensors that are its units, and the one by which it reads; the attributes that count them.
_UNITS: dict[type[nn.Module], tuple[int, str]] = {nn.Linear: (0, "out_features"), nn.Embedding: (1, "embedding_dim")}
_UNITS |= dict.fromkeys(_CONVOLUTIONS, (0, "out_channels")) | dict.fromkeys(_TRANSPOSED, (1, "out_channels"))
_READS: dict[type[nn.Module], tuple[int, str]] = {nn.Linear: (1, "in_features")}
_READS |= dict.fromkeys(_CONVOLUTIONS, (1, "in_channels")) | dict.fromkeys(_TRANSPOSED, (0, "in_channels"))
_PART = re.compile(r"^(?P<name>[^\[\]]+)(\[(?P<start>\d+):(?P<stop>\d+)\])?$")


def declare(model: nn.Module, spaces: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> Graph:
    """Return the graph of a network whose ties you know and `torch.export` cannot find out.

    `spaces` gives, for each name of your choice, the layers that have these units (linear layers, convolutions,
    embeddings, batch and instance norms, switches, depthwise convolutions), and the layers that read them (linear
    layers and convolutions). A layer that reads them flattened, several inputs to a unit, is understood by its size;
    one that makes or reads several things one after the other is given with the range, as in "head[16:48]".

    What lies between them must act on each unit alone. As what dead units say is not known, `pared.remove` takes only
    entries that all readers meet with zero weights, or, with `living="cut"`, any.

    Raises:
        SurgeryError: an unknown layer or one of another kind, a range or size that does not fit, an axis that is
            declared twice.
    """
    graph = _Declared(plain_view(model))
    for name, (units, readers) in spaces.items():
        if not units or not readers:
            raise SurgeryError(f"space {name!r} needs at least one layer that has the units and one that reads them")
        leaf = Dim(graph.size_of(units[0]))
        for part in units:
            graph.units(part, leaf)
        for part in readers:
            graph.reader(part, leaf)
        graph.leaves[name] = leaf
    return graph.finish()


class _Declared:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        by_id: dict[int, str] = {}
        self.first = {name: by_id.setdefault(id(tensor), name) for name, tensor in tensors(model).items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors(model).items()}
        self.leaves: dict[str, Dim] = {}
        self.parts: dict[tuple[str, int], dict[tuple[int, int], Dim]] = {}  # what stands where along an axis
        self.counted: list[tuple[str, str, tuple[str, int]]] = []
        self.read: list[tuple[str, tuple[str, int]]] = []

    # --- reading the declaration ---

    def size_of(self, part: str) -> int:
        path, module, span = self._layer(part)
        keys = self._unit_axes(path, module)
        return span[1] - span[0] if span else self.shapes[keys[0][0]][keys[0][1]]

    def units(self, part: str, leaf: Dim) -> None:
        path, module, span = self._layer(part)
        for tensor, axis in self._unit_axes(path, module):
            self._place(tensor, axis, span, leaf, exact=True)

    def reader(self, part: str, leaf: Dim) -> None:
        path, module, span = self._layer(part)
        kind = next((kind for kind in _READS if type(module) is kind), None)
        if kind is None or getattr(module, "groups", 1) > 1:
            raise SurgeryError(
                f"layer {path!r} is a {type(module).__name__}, which is not understood as a reader; "
                "name linear layers and convolutions without groups"
            )
        axis, attribute = _READS[kind]
        self._place(f"{path}.weight", axis, span, leaf, exact=False)
        self.read.append((path, (f"{path}.weight", axis)))
        self.counted.append((path, attribute, (f"{path}.weight", axis)))

    def _layer(self, part: str) -> tuple[str, nn.Module, tuple[int, int] | None]:
        found = _PART.match(part)
        module = dict(self.model.named_modules()).get(found["name"]) if found else None
        if found is None or module is None:
            raise SurgeryError(
                f"there is no layer {part!r}; name one of model.named_modules(), or a range of it as 'a[0:8]'"
            )
        return found["name"], module, (int(found["start"]), int(found["stop"])) if found["start"] else None

    def _unit_axes(self, path: str, module: nn.Module) -> list[tuple[str, int]]:
        """The axes of the units of a layer, with the attributes that count them noted."""
        if isinstance(module, Switch) and module.sizes is None:
            keys = [(f"{path}.{name}", 0) for name in state_of(module)]
            attributes = ["channels"]
        elif isinstance(module, _NORMS) and type(module).__module__.startswith("torch."):
            own = {**module._parameters, **module._buffers}
            keys = [(f"{path}.{name}", 0) for name, tensor in own.items() if tensor is not None and tensor.ndim == 1]
            attributes = ["num_parameters" if isinstance(module, nn.PReLU) else "num_features"]
        else:
            kind = next((kind for kind in _UNITS if type(module) is kind), None)
            groups = getattr(module, "groups", 1)
            depthwise = groups > 1 and groups == getattr(module, "in_channels", 0) == getattr(module, "out_channels", 0)
            if kind is None or (groups > 1 and not (depthwise and isinstance(module, _CONVOLUTIONS))):
                raise SurgeryError(
                    f"layer {path!r} is a {type(module).__name__}, whose units are not understood here; name linear "
                    "layers, convolutions (without groups, or depthwise), embeddings, batch norms and switches"
                )
            axis, attribute = _UNITS[kind]
            keys, attributes = [(f"{path}.weight", axis)], [attribute]
            keys += [(f"{path}.bias", 0)] if module._parameters.get("bias") is not None else []
            attributes += ["in_channels", "groups"] if depthwise else []
        known = {(module, name) for module, name, _ in self.counted}
        self.counted += [(path, name, keys[0]) for name in attributes if keys and (path, name) not in known]
        if not keys:
            raise SurgeryError(f"layer {path!r} has no weights, so it has no units of its own; leave it out")
        return keys

    def _place(self, tensor: str, axis: int, span: tuple[int, int] | None, leaf: Dim, *, exact: bool) -> None:
        size = self.shapes[tensor][axis]
        start, stop = span or (0, size)
        times, rest = divmod(stop - start, leaf.size)
        if stop > size or rest or times < 1 or (exact and times > 1):
            raise SurgeryError(
                f"axis {axis} of {tensor!r} has {size} entries; {start}:{stop} of them are no "
                f"{'' if exact else 'multiple of '}{leaf.size} units"
            )
        taken = self.parts.setdefault((self.first[tensor], axis), {})
        made = leaf if times == 1 else product((leaf, Dim(times, fixed="they belong to one unit")))
        if taken.get((start, stop)) is leaf and times == 1:
            return  # a tied tensor, reached by its other name
        if any(start < end and begin < stop for begin, end in taken):
            raise SurgeryError(f"entries {start}:{stop} of axis {axis} of {tensor!r} are declared twice")
        taken[start, stop] = made

    def _dim(self, tensor: str, axis: int) -> Dim:
        size, at, parts = self.shapes[tensor][axis], 0, []
        for (start, stop), dim in sorted(self.parts.get((tensor, axis), {}).items(), key=lambda item: item[0]):
            parts += [Dim(start - at, fixed="it was not declared")] if start > at else []
            parts.append(dim)
            at = stop
        parts += [Dim(size - at, fixed="it was not declared")] if size > at or not size else []
        return total(parts)

    # --- making the graph ---

    def finish(self) -> Graph:
        program = Program()
        for name, first in self.first.items():
            if name == first:
                dims = tuple(self._dim(name, axis) for axis in range(len(self.shapes[name])))
                program.tensors[name] = Value(dims, name)
            else:
                program.tensors[name] = program.tensors[first]
        consumers = []
        for path, (tensor, axis) in self.read:
            weight = program.tensors[tensor]
            step = Step("declared", None, {"weight": weight}, path, ())
            step.out = Value((weight.dims[1 - axis],))
            consumers.append(Consumer(step, Value((weight.dims[axis],)), 0, weight, axis))
        spaces = []
        for name, leaf in self.leaves.items():
            slots = [
                Slot(tensor, axis)
                for (tensor, axis), parts in self.parts.items()
                if any(leaf is dim or leaf in dim.parts for dim in parts.values())
            ]
            slots = [Slot(other, s.axis) for s in slots for other, first in self.first.items() if first == s.tensor]
            spaces.append(Space(name, leaf, tuple(slots)))
        attributes = tuple(
            Attribute(module, name, program.tensors[tensor].dims[axis]) for module, name, (tensor, axis) in self.counted
        )
        return Graph(program, tuple(spaces), tuple(consumers), attributes)
