"""Which axes of which tensors are tied: the channels that live and die together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from pared.errors import SurgeryError
from pared.nn import Gate, Switch
from pared.surgery import image_rules as _image_rules  # noqa: F401  (registers its rules)
from pared.surgery import layer_rules as _layer_rules  # noqa: F401
from pared.surgery.axes import Dim, find, freeze, leaves, unify
from pared.surgery.rules import RULES, refuse
from pared.surgery.trace import Example, Program, Step, Value, flat, named, steps, tensors, trace


@dataclass(frozen=True)
class Slot:
    """One axis of one parameter or buffer, by its name in the state dict; `leaf` is the place of a part of that axis."""

    tensor: str
    axis: int
    leaf: int | None = None


@dataclass(eq=False)
class Space:
    """Entries that many tensors share: channels, neurons, heads, whatever lives and dies together.

    `slots` are the axes in which they occur; `fixed` says why none of them can be removed, if so; `kept` are those that
    are left, by their numbers when the graph was made.
    """

    name: str
    dim: Dim
    slots: tuple[Slot, ...]
    layers: tuple[str, ...] = ()
    kept: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.kept = self.kept or tuple(range(self.dim.size))

    @property
    def size(self) -> int:
        """How many entries there are now."""
        return self.dim.size

    @property
    def fixed(self) -> str | None:
        """Why no entry can be removed, None where they can."""
        return self.dim.fixed or ("it has a single entry" if self.size < 2 else None)


@dataclass(frozen=True, eq=False)
class Consumer:
    """A sum over an axis of `operand`, each entry times entries of `weight` along `weight_axis`."""

    step: Step
    operand: Value
    axis: int
    weight: Value | None
    weight_axis: int


@dataclass(frozen=True, eq=False)
class Attribute:
    """An integer attribute of a module that has to follow the size of a dim."""

    module: str
    name: str
    dim: Dim


@dataclass(eq=False)
class Graph:
    """The tied axes of a network, made once and kept true through removals.

    `spaces` lists what can be removed, in the order of the network, and `program` the operators, by which the
    constants of dead channels are found. `find` looks a space up by its name or by the name of a layer.
    """

    program: Program
    spaces: tuple[Space, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    made_by: Mapping[str, Dim] = field(default_factory=dict)  # what each layer with weights gives, by its name

    def __str__(self) -> str:
        told = [space for space in self.spaces if space.layers or space.fixed is None]
        width = max((len(space.name) for space in told), default=0)
        return "\n".join(
            f"{space.name:<{width}}  {space.size:>5}  {space.fixed or 'in ' + ', '.join(self._tensors(space))}"
            for space in told
        )

    def _tensors(self, space: Space) -> list[str]:
        return list(dict.fromkeys(slot.tensor for slot in space.slots))

    def removable(self) -> tuple[Space, ...]:
        """Return the spaces that can lose entries."""
        return tuple(space for space in self.spaces if space.fixed is None)

    def find(self, name: str) -> Space:
        """Return the space of that name, or the one of the units that the layer of that name makes.

        Raises:
            SurgeryError: there is none, or the layer's units are made of several spaces, which are named.
        """
        for space in self.spaces:
            if space.name == name:
                return space
        dim = self.made_by.get(name)
        if dim is None:
            raise SurgeryError(
                f"no space or layer with units is named {name!r}; there are "
                f"{', '.join(space.name for space in self.removable()) or 'none'}"
            )
        found = [space for space in self.spaces if any(space.dim is leaf for leaf in leaves(dim))]
        if len(found) == 1:
            return found[0]
        raise SurgeryError(
            f"the units of layer {name!r} are made of {len(found)} spaces; choose one of "
            f"{', '.join(space.name for space in found)}"
        )

    def at(self, tensor: str, axis: int = 0, leaf: int | None = None) -> Space:
        """Return the space of that axis of a parameter or buffer: its only one, or that of its `leaf`-th part.

        Raises:
            SurgeryError: the tensor is unknown, or the axis is made of several spaces.
        """
        value = self.program.tensors.get(tensor)
        dim = None if value is None else find(value.dims[axis])
        if dim is not None and leaf is not None:
            dim = list(dict.fromkeys(leaves(dim)))[leaf]
        found = [space for space in self.spaces if space.dim is dim]
        if not found:
            raise SurgeryError(f"axis {axis} of {tensor!r} is no space of its own; see graph.spaces")
        return found[0]

    def follow(self, keep: Mapping[str, Sequence[int]], created: Iterable[tuple[str, str]] = ()) -> None:
        """Stay true after a removal: only the entries `keep` of each named space are left.

        `created` are biases that folding made, each with the weight it stands beside.
        """
        for name, entries in keep.items():
            space = self.find(name)
            space.dim.shrink(entries)
            space.kept = tuple(space.kept[entry] for entry in entries)
        for bias, weight in created:
            if bias in self.program.tensors:
                continue
            for consumer in self.consumers:
                if consumer.weight is not None and consumer.weight.tensor == weight:
                    step = consumer.step
                    axis = -1 if step.op == "linear" else 1 - len(consumer.weight.dims)
                    value = self.program.tensors.setdefault(bias, Value((step.out.dims[axis],), bias))
                    step.put("bias", value)

    def forget(self, module: str, steps: set[int], swaps: Sequence[tuple[Value, Value]]) -> None:
        """Stay true after a module and the steps with these ids are gone, and values read in the place of others."""

        def inside(name: str) -> bool:
            return name == module or name.startswith(f"{module}.")

        named = self.program.tensors
        for name in [name for name in named if inside(name)]:
            value = named.pop(name)
            if value.tensor == name:  # a tied tensor goes by its other name from now on
                value.tensor = next((other for other, same in named.items() if same is value), name)
        for old, new in swaps:
            self.consumers = tuple(replace(c, operand=new) if c.operand is old else c for c in self.consumers)
        self.consumers = tuple(c for c in self.consumers if id(c.step) not in steps)
        self.attributes = tuple(a for a in self.attributes if not inside(a.module))
        self.made_by = {layer: dim for layer, dim in self.made_by.items() if not inside(layer)}
        for space in self.spaces:
            space.slots = tuple(slot for slot in space.slots if not inside(slot.tensor))
            space.layers = tuple(layer for layer in space.layers if not inside(layer))
        self.spaces = tuple(space for space in self.spaces if space.slots)


class Builder:
    """Run the rules over a program."""

    def __init__(self, model: nn.Module, *, inputs: bool = False) -> None:
        self.model, self.inputs = model, inputs
        self.program = Program()
        self.consumers: list[Consumer] = []
        self.attributes: list[Attribute] = []
        self.made_by: dict[str, Dim] = {}
        self.tied: set[str] = set()

    def attribute(self, step: Step, name: str, dim: Dim) -> None:
        """Let `name` of the step's module follow the size of `dim`, if it has it now."""
        value = getattr(self.model.get_submodule(step.layer), name, None)
        if isinstance(value, int) and value == dim.size:
            self.attributes.append(Attribute(step.layer, name, dim))

    def shares(self, step: Step) -> bool:
        """Tell whether the step is a gate's own: what is killed there leaves all sums as they are."""
        return isinstance(self.model.get_submodule(step.layer), Gate)

    def consume(self, step: Step, operand: Value, axis: int, weight: Any = None, weight_axis: int = 1) -> None:
        """Note a sum over `axis` of `operand`."""
        axis = axis % len(operand.dims)
        weight_axis = weight_axis % len(weight.dims) if weight is not None else weight_axis
        self.consumers.append(Consumer(step, operand, axis, weight, weight_axis))

    def run(self, example: Example) -> None:
        """Trace the model and tie its axes."""
        graph, names, exported = trace(self.model, example)
        known: dict[Any, Any] = {}
        first = {id(module): name for name, module in self.model.named_modules()}
        aliases = {name: first[id(m)] for name, m in self.model.named_modules(remove_duplicate=False)}
        self._placeholders(graph, names, known)
        for node, step in steps(graph, known, exported.graph_module):
            step.layer = named(self.model, step.layer)
            step.layer = aliases.get(step.layer, step.layer)
            out = self._apply(step)
            if isinstance(step.shapes, list):
                step.out = [Value(dims) for dims in out]
            elif step.shapes is not None:
                step.out = step["0"][step["1"]] if step.op == "getitem" else Value(tuple(out))
            known[node] = step.out
            self.program.steps.append(step)
        self._tie_state()
        self._freeze_unused()
        result = next(node for node in graph.nodes if node.op == "output")
        self.program.outputs = list(flat(_known(result.args, known)))
        for value in self.program.outputs:
            for dim in value.dims:
                freeze(dim, "it is an output of the network")

    def _tie_state(self) -> None:
        """What a switch remembers of each factor is not part of the forward pass, and follows it all the same."""
        for path, module in self.model.named_modules():
            if isinstance(module, Switch):
                theta = self.program.tensors[f"{path}.theta"]
                for key, tensor in state_of(module).items():
                    unify(self.program.tensors[f"{path}.{key}"].dims[0], theta.dims[0])
                    self.tied.add(f"{path}.{key}")
                    del tensor

    def _freeze_unused(self) -> None:
        used = {id(value) for step in self.program.steps for value in step.values()}
        named = dict(self.model.named_parameters(remove_duplicate=False))
        weights = {leaf for name in named for dim in self.program.tensors[name].dims for leaf in leaves(dim)}
        for name, value in self.program.tensors.items():
            for dim in value.dims:
                if id(value) not in used and name not in self.tied:
                    freeze(dim, f"the forward pass does not use {name!r} with this example")
                for leaf in leaves(dim):
                    leaf.fixed = leaf.fixed or (None if leaf in weights else "no parameter has it")

    def _placeholders(self, graph: Any, names: Mapping[str, str], known: dict[Any, Any]) -> None:
        held = tensors(self.model)
        by_id: dict[int, Value] = {}
        for name, tensor in held.items():
            value = by_id.setdefault(id(tensor), Value(tuple(Dim(size) for size in tensor.shape), name))
            self.program.tensors[name] = value
        for node in graph.nodes:
            if node.op != "placeholder":
                continue
            example = node.meta.get("val")
            if node.target in names and names[node.target] in self.program.tensors:
                known[node] = self.program.tensors[names[node.target]]
            elif isinstance(example, Tensor):
                reason = None if self.inputs else "it is an input of the network"
                known[node] = Value(tuple(Dim(int(size), fixed=reason) for size in example.shape))
                self.program.inputs.append(known[node])
            else:
                known[node] = example

    def _apply(self, step: Step) -> Any:
        rule = RULES.get(step.op)
        if rule is None or step.shapes is None:
            return refuse(step)
        if step.op == "repeat_interleave" and not isinstance(step["repeats"], int):
            step.put("blocks", self._blocks(step["repeats"]))
        out = rule(self, step)
        if isinstance(out, tuple):
            self._note_made(step, out)
        return out

    def _note_made(self, step: Step, out: tuple[Dim, ...]) -> None:
        """Remember what a layer makes, by its name."""
        module = self.model.get_submodule(step.layer)
        if step.op == "mul" and isinstance(module, Switch):
            self.attribute(step, "channels", out[module.dim])
        weight = step.get("weight")
        places = {"linear": -1, "addmm": -1}
        if step.op.startswith("conv") and isinstance(weight, Value):
            places[step.op] = 1 - len(weight.dims)
        if step.op in places and step.layer:
            self.made_by.setdefault(step.layer, out[places[step.op]])

    def _blocks(self, repeats: Value) -> list[int] | None:
        if repeats.tensor is None:
            return None
        return [int(count) for count in tensors(self.model)[repeats.tensor].tolist()]


def state_of(switch: Switch) -> dict[str, Tensor]:
    """Return what a switch keeps for each factor, by name: `theta`, `alive`, and what a rule of death remembers."""
    return {key: value for key, value in switch.state_dict(keep_vars=True).items() if value.shape == switch.theta.shape}


def _known(item: Any, known: Mapping[Any, Any]) -> Any:
    if isinstance(item, list | tuple):
        return [_known(part, known) for part in item]
    if isinstance(item, dict):
        return [_known(part, known) for part in item.values()]
    return known.get(item) if not isinstance(item, int | float | str | type(None)) else None


def name_spaces(builder: Builder) -> tuple[Space, ...]:
    """Return every leaf that a parameter or buffer has, named after the first layer that makes its units."""
    slots: dict[Dim, list[Slot]] = {}
    for name, value in builder.program.tensors.items():
        for axis, dim in enumerate(value.dims):
            for leaf in dict.fromkeys(leaves(dim)):
                slots.setdefault(leaf, []).append(Slot(name, axis))
    names: dict[Dim, str] = {}
    layers: dict[Dim, list[str]] = {}
    for layer, dim in builder.made_by.items():
        within = list(dict.fromkeys(leaf for leaf in leaves(dim) if leaf.size > 1))
        for place, leaf in enumerate(within):
            layers.setdefault(leaf, []).append(layer)
            suffix = "" if len(within) == 1 else f":{leaf.label or place}"
            names.setdefault(leaf, f"{layer}{suffix}")
    for place, value in enumerate(builder.program.inputs):
        for axis, leaf in enumerate(map(find, value.dims)):
            if leaf in slots and leaf not in names:
                names[leaf] = f"input[{axis}]" if len(builder.program.inputs) == 1 else f"input {place}[{axis}]"
    for leaf, found in slots.items():
        names.setdefault(leaf, f"{found[0].tensor}[{found[0].axis}]")
    taken: set[str] = set()
    spaces = []
    for leaf in sorted(slots, key=list(names).index):
        if leaf.size < 2 and not any(slot.tensor in builder.tied for slot in slots[leaf]):
            continue
        name = names[leaf]
        while name in taken:
            name += "'"
        taken.add(name)
        spaces.append(Space(name, leaf, tuple(slots[leaf]), tuple(layers.get(leaf, ()))))
    return tuple(spaces)


def build(model: nn.Module, example: Example, *, inputs: bool = False) -> Builder:
    """Trace `model` once and tie its axes by the rules; with `inputs`, those of its inputs can lose entries, too."""
    builder = Builder(model, inputs=inputs)
    builder.run(example)
    return builder


def finish(builder: Builder) -> Graph:
    """Return the graph of a built program."""
    attributes = {(a.module, a.name): a for a in builder.attributes}
    return Graph(
        builder.program,
        name_spaces(builder),
        tuple(builder.consumers),
        tuple(attributes.values()),
        builder.made_by,
    )
