"""Which axes of which tensors are tied: the channels that live and die together.

So far the graph of an `nn.Sequential` of linear layers, batch norms, switches and elementwise activations.
"""

from dataclasses import dataclass, field

from torch import nn

from pared.errors import SurgeryError
from pared.nn import Select, Switch

#: Modules that act on every channel alone, so that removing a channel changes nothing for its neighbours.
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Identity, nn.Dropout, nn.AlphaDropout),
)


@dataclass(frozen=True)
class Slot:
    """One axis of one parameter or buffer, by its name in the state dict."""

    tensor: str
    axis: int


@dataclass
class Space:
    """Channels that many tensors share: the producer's rows, the followers' entries, the consumer's columns.

    `chain` names the modules between producer and consumer in order; `switch` the one that decides, if any.
    `followers` of a grouped switch are indexed by factor instead of channel and are listed in `factors`.
    """

    name: str
    size: int
    slots: list[Slot] = field(default_factory=list)
    factors: list[Slot] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    chain: list[str] = field(default_factory=list)
    switch: str | None = None
    consumer: str | None = None
    removable: bool = True


@dataclass(frozen=True)
class Graph:
    """The spaces of a network, from its inputs to its outputs."""

    spaces: tuple[Space, ...]

    def switched(self) -> dict[str, Space]:
        """Return the spaces that a switch decides over, by the switch's name."""
        return {space.switch: space for space in self.spaces if space.switch is not None}


def leaves(model: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Return the modules of nested `nn.Sequential`s in the order they run, with their qualified names."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model._modules.items():  # named_children would skip the second use of a module
        if module is None:
            continue
        path = f"{prefix}{name}"
        found += leaves(module, f"{path}.") if isinstance(module, nn.Sequential) else [(path, module)]
    return found


def sequential_graph(model: nn.Module) -> Graph:
    """Return the graph of an `nn.Sequential`.

    Raises:
        SurgeryError: the model is no `nn.Sequential`, or holds a module that is not understood (named).
    """
    if not isinstance(model, nn.Sequential):
        raise SurgeryError(
            f"expected an nn.Sequential, got {type(model).__name__}; wrap the layers in nn.Sequential or leave this "
            "network alone"
        )
    modules = leaves(model)
    _refuse_overridden(model, modules)
    _refuse_ties(model)
    _refuse_twice(modules)
    spaces: list[Space] = []
    current: Space | None = None
    linears = 0
    for name, module in modules:
        if isinstance(module, nn.Linear):
            current = current or _input_space(module.in_features)
            _consume(current, name)
            spaces.append(current)
            linears += 1
            current = _produce(name, module, f"hidden {linears}")
        elif isinstance(module, Select) and current is not None:
            raise SurgeryError(
                f"layer {name!r} is a Select, which is understood as the first layer only; move it there"
            )
        elif isinstance(module, (Select, Switch, nn.BatchNorm1d, *ELEMENTWISE)):
            current = current or _input_space(_width(module, name))
            _follow(current, name, module)
        else:
            raise SurgeryError(
                f"layer {name!r} is a {type(module).__name__}, which is not understood here; "
                "use Linear, BatchNorm1d, Dropout and elementwise activations, or leave this network alone"
            )
    if current is None or not linears:
        raise SurgeryError("the nn.Sequential holds no Linear layer, so there is nothing to remove")
    current.name, current.removable = "outputs", False
    return Graph((*spaces, current))


def _refuse_overridden(model: nn.Sequential, modules: list[tuple[str, nn.Module]]) -> None:
    """A subclass that computes something else, or a weight that is computed, is not what its base class says."""
    nested = [(name or "the network", m) for name, m in model.named_modules() if isinstance(m, nn.Sequential)]
    known = (nn.Sequential, nn.Linear, nn.BatchNorm1d, *ELEMENTWISE)
    for name, module in nested + modules:
        base = next((kind for kind in known if isinstance(module, kind)), None)
        if base is not None and type(module).forward is not base.forward:
            raise SurgeryError(
                f"layer {name!r} is a {type(module).__name__} with a forward of its own, which is not understood here; "
                f"use a plain {base.__name__}, or leave this network alone"
            )
        if isinstance(module, nn.Linear) and "weight" not in module._parameters:
            raise SurgeryError(
                f"layer {name!r} computes its weight from other tensors (a parametrization or a mask), which is not "
                "understood here; make the weight a plain parameter first"
            )


def _refuse_twice(modules: list[tuple[str, nn.Module]]) -> None:
    stateful = [id(module) for _, module in modules if not isinstance(module, ELEMENTWISE)]
    if len(set(stateful)) < len(stateful):
        raise SurgeryError(
            "a layer with weights appears twice in the nn.Sequential; removing its channels is not understood, give each place "
            "its own"
        )


def _refuse_ties(model: nn.Module) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = names[id(parameter)]
        modules = [model.get_submodule(path.rpartition(".")[0]) for path in (first, name)]
        if modules[0] is not modules[1]:
            raise SurgeryError(
                f"{name!r} is tied to {first!r}, so the two layers cannot lose different channels; untie them"
            )


def _width(module: nn.Module, name: str) -> int:
    if isinstance(module, Select):
        return module.index.shape[0]
    if isinstance(module, Switch):
        return module.channels
    if isinstance(module, nn.BatchNorm1d):
        return module.num_features
    raise SurgeryError(
        f"layer {name!r} comes before any Linear, so the number of inputs is not known; start with a Linear"
    )


def _input_space(size: int) -> Space:
    return Space("inputs", size)


def _produce(name: str, module: nn.Linear, space: str) -> Space:
    made = Space(space, module.out_features, [Slot(f"{name}.weight", 0)], attributes=[(name, "out_features")])
    if module.bias is not None:
        made.slots.append(Slot(f"{name}.bias", 0))
    return made


def _consume(space: Space, name: str) -> None:
    space.slots.append(Slot(f"{name}.weight", 1))
    space.attributes.append((name, "in_features"))
    space.consumer = name


def _follow(space: Space, name: str, module: nn.Module) -> None:
    space.chain.append(name)
    if isinstance(module, Select):
        space.slots.append(Slot(f"{name}.index", 0))
    elif isinstance(module, Switch):
        space.switch = name
        space.attributes.append((name, "channels"))
        space.factors += [Slot(f"{name}.{key}", 0) for key in module.state_dict()]
    elif isinstance(module, nn.BatchNorm1d):
        space.attributes.append((name, "num_features"))
        per_channel = [key for key, value in module.state_dict().items() if value.ndim == 1]
        space.slots += [Slot(f"{name}.{key}", 0) for key in per_channel]
