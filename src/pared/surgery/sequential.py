"""Plain `nn.Sequential`s of linear layers: what Shrink finds its places in, and `fold` takes apart."""

from torch import nn

from pared.errors import SurgeryError
from pared.nn import Select, Switch, Switched

#: Modules that act on every channel alone, so that removing a channel changes nothing for its neighbours.
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Identity, nn.Dropout, nn.AlphaDropout),
)


def leaves(model: nn.Sequential, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Return the modules of nested `nn.Sequential`s in the order they run, with their qualified names."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model._modules.items():  # named_children would skip the second use of a module
        if module is None:
            continue
        path = f"{prefix}{name}"
        found += leaves(module, f"{path}.") if isinstance(module, nn.Sequential) else [(path, module)]
    return found


def check_sequential(model: nn.Module) -> None:
    """Make sure that `model` is an `nn.Sequential` of modules that compute what their class says.

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
    for place, (name, module) in enumerate(modules):
        if isinstance(module, Select) and any(isinstance(before, nn.Linear) for _, before in modules[:place]):
            raise SurgeryError(
                f"layer {name!r} is a Select, which is understood as the first layer only; move it there"
            )
        if not isinstance(module, (nn.Linear, Select, Switch, nn.BatchNorm1d, *ELEMENTWISE)):
            raise SurgeryError(
                f"layer {name!r} is a {type(module).__name__}, which is not understood here; "
                "use Linear, BatchNorm1d, Dropout and elementwise activations, or leave this network alone"
            )
    if not any(isinstance(module, nn.Linear) for _, module in modules):
        raise SurgeryError("the nn.Sequential holds no Linear layer, so there is nothing to remove")


def _refuse_overridden(model: nn.Sequential, modules: list[tuple[str, nn.Module]]) -> None:
    """A subclass that computes something else, or a weight that is computed, is not what its base class says."""
    nested = [(name or "the network", m) for name, m in model.named_modules() if isinstance(m, nn.Sequential)]
    known = (Switched, nn.Sequential, nn.Linear, nn.BatchNorm1d, *ELEMENTWISE)
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
