"""What a network computes, as a list of steps: `torch.export`'s program, read once."""

import ast
import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pared.errors import SurgeryError
from pared.process import Shared, forked_random, in_evaluation, silent
from pared.surgery.axes import Dim
from pared.surgery.computed import made_by_forward

#: What `example` may be: one tensor, positional arguments, or keyword arguments.
Example = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(eq=False)
class Value:
    """A tensor of the program: what its axes are made of, and its name where it is a parameter or buffer."""

    dims: tuple[Dim, ...]
    tensor: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as of now."""
        return tuple(dim.size for dim in self.dims)


@dataclass(frozen=True)
class _Operator:
    """What an operator is called, as it can be written to a file."""

    namespace: str
    name: str
    overload: str


@dataclass(eq=False)
class Step:
    """One operator of the program: its name ("conv2d"), its arguments by the names of its schema, its module."""

    op: str
    target: Any
    args: dict[str, Any]
    layer: str
    shapes: Any  # of what it returns, as traced: a shape, or a list of them
    inplace: bool = False
    out: Any = None  # a Value or a list of them, once the rules have run
    _values: list[Value] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if isinstance(self.target, torch._ops.OpOverload):  # which is known by its name alone
            namespace, _, name = self.target._schema.name.partition("::")
            state["target"] = _Operator(namespace, name, self.target._overloadname)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        target = state["target"]
        if isinstance(target, _Operator):
            packet = getattr(getattr(torch.ops, target.namespace), target.name)
            state = {**state, "target": getattr(packet, target.overload)}
        vars(self).update(state)

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or `default` where the operator has none of that name."""
        return self.args.get(name, default)

    def values(self) -> list[Value]:
        """Return the tensors among the arguments."""
        if self._values is None:
            self._values = list(flat(self.args.values()))
        return self._values

    def put(self, name: str, value: Any) -> None:
        """Set an argument."""
        self.args[name], self._values = value, None

    def outs(self) -> list[Value]:
        """Return the tensors that come out."""
        return [self.out] if isinstance(self.out, Value) else list(flat(self.out))

    def where(self) -> str:
        """Return a name for messages: the layer's, or the network's."""
        return f"layer {self.layer!r}" if self.layer else "the network"


def flat(item: Any) -> Iterator[Value]:
    """Yield the values within nested arguments."""
    if isinstance(item, Value):
        yield item
    elif isinstance(item, Mapping):
        yield from flat(list(item.values()))
    elif not isinstance(item, str | Tensor) and isinstance(item, Sequence | type({}.values())):
        for part in item:
            yield from flat(part)


@dataclass
class Program:
    """The steps of a network in order, its tensors by name, what goes in and what comes out."""

    steps: list[Step] = field(default_factory=list)
    tensors: dict[str, Value] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return `example` as positional and keyword arguments."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example), {}


def trace(model: nn.Module, example: Example) -> tuple[fx.Graph, dict[str, str], Any]:
    """Export `model` in evaluation mode; return the graph, the tensor names by placeholder, and the program itself.

    Training flags, random state and gradients are left as they are. `torch.export` is not reentrant: threads take turns.

    Raises:
        SurgeryError: `torch.export` cannot follow the forward pass, with its reason.
    """
    args, kwargs = arguments(example)
    try:
        with forked_random(), evaluating(model), _quiet(), torch.enable_grad():
            program = torch.export.export(model, args, kwargs, strict=False)
    except Exception as error:
        first = str(error).strip().split("\n")[0][:300]
        raise SurgeryError(
            f"torch.export cannot follow {type(model).__name__} with this example ({type(error).__name__}: {first}); "
            "give an example that its forward pass accepts, or say with pared.declare which axes are tied"
        ) from error
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return program.graph, names, program


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode for a while, every module's own flag coming back.

    Several threads may do so at once, with one network or many.
    """
    with in_evaluation(model), _no_fastpath():
        yield


@contextmanager
def _fastpath_off() -> Iterator[None]:
    """One fused operator would hide what attention is made of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


_no_fastpath = Shared(_fastpath_off)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging what will be raised anyway, and from warning of what export does to caches."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        with silent():
            yield
    finally:
        logger.disabled = before


def hollow(model: nn.Module, sizes: Mapping[str, Sequence[int]], device: str | None = None) -> nn.Module:
    """Return a copy of `model` whose named tensors have other shapes and no content, all else as it is.

    Whole numbers of the old shape stay.

    No weight is copied: fresh, untouched memory takes their place.
    """
    memo = made_by_forward(model)
    for name, old in tensors(model).items():
        new = torch.empty(tuple(sizes.get(name, old.shape)), dtype=old.dtype, device=device or old.device)
        if not old.is_floating_point():
            # An index must point somewhere, and a count that keeps its place say how many.
            new.copy_(old) if new.shape == old.shape and not new.is_meta else new.zero_()
        memo[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    return copy.deepcopy(model, memo)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by all their names."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for table, named in ((module._parameters, parameters), (module._buffers, buffers)):
            named.update({prefix + key: tensor for key, tensor in table.items() if tensor is not None})
    return parameters | buffers


def steps(graph: fx.Graph, known: dict[fx.Node, Any], owner: Any) -> Iterator[tuple[fx.Node, Step]]:
    """Yield the operators of `graph` in order, their arguments looked up in `known`, which the caller fills.

    Sub-programs (`torch.no_grad()` or autocast inside a forward pass) are read through.
    """
    for node in graph.nodes:
        if node.op == "get_attr":
            known[node] = _attribute(owner, str(node.target))
        elif node.op == "call_function" and "_assert" not in str(node.target):
            inner = _inner(node, owner)
            if inner is None:
                yield node, _step(node, known)
                continue
            module, given = inner
            places = [n for n in module.graph.nodes if n.op == "placeholder"]
            known.update({place: _look(arg, known) for place, arg in zip(places, given, strict=True)})
            yield from steps(module.graph, known, module)
            result = next(n for n in module.graph.nodes if n.op == "output").args[0]
            known[node] = _look(result, known)


def _attribute(owner: Any, path: str) -> Any:
    for part in path.split("."):
        owner = getattr(owner, part)
    return owner


def _inner(node: fx.Node, owner: Any) -> tuple[fx.GraphModule, Sequence[Any]] | None:
    modules = [
        (place, _attribute(owner, str(arg.target)))
        for place, arg in enumerate(node.args)
        if isinstance(arg, fx.Node) and arg.op == "get_attr"
    ]
    for place, module in modules:
        if isinstance(module, fx.GraphModule) and len(modules) == 1:
            return module, node.args[place + 1 :]
    return None


def _look(item: Any, known: Mapping[fx.Node, Any]) -> Any:
    if isinstance(item, fx.Node):
        return known[item]
    if isinstance(item, dict):
        return {key: _look(value, known) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_look(value, known) for value in item]
    return item


def _step(node: fx.Node, known: Mapping[fx.Node, Any]) -> Step:
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is None:
        args = {str(i): _look(arg, known) for i, arg in enumerate(node.args)}
        name = getattr(target, "__name__", str(target))
    else:
        args = {arg.name: arg.default_value for arg in schema.arguments if arg.has_default_value()}
        args |= {arg.name: _look(value, known) for arg, value in zip(schema.arguments, node.args, strict=False)}
        args |= {key: _look(value, known) for key, value in node.kwargs.items()}
        name = schema.name.removeprefix("aten::")
    stack = node.meta.get("nn_module_stack") or {}
    layer = [path for path, _ in stack.values()][-1] if stack else ""
    inplace = name.endswith("_") and not name.endswith("__") and schema is not None
    return Step(
        name.removesuffix("_") if inplace else name, target, args, layer, _shapes(node.meta.get("val")), inplace
    )


def named(model: nn.Module, path: str) -> str:
    """Return the name of the module that `path` leads to, where that goes through slices of lists of modules.

    A slice has no name of its own: what it does itself is its list's.
    """
    if "slice(" not in path:
        return path
    names, module, found = {id(module): name for name, module in model.named_modules()}, model, ""
    for part in path.split("."):
        if part.startswith("slice(") and isinstance(module, nn.ModuleList | nn.Sequential):
            module = module[slice(*ast.literal_eval(part.removeprefix("slice")))]
        else:
            module = module.get_submodule(part)
        found = names.get(id(module), found)
    return found


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(int(size) for size in value.shape)
    if isinstance(value, list | tuple):
        return [_shapes(part) for part in value]
    return None
