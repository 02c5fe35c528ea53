"""Parameter groups: which weights go on a sphere, and on which."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from pared.errors import ConfigError
from pared.measure.matrices import Matrices, matrices, warn_unknown
from pared.nn.sparse_layer import SparseLayer
from pared.optim.kernels import Number
from pared.surgery.prune_masks import refuse_masks
from pared.surgery.trace import Example

#: Which weights are held on a sphere.
Constrain = Literal["hidden", "all"] | Callable[[str, nn.Parameter], bool]
#: One exponent for all, by the name of a parameter or module, or one weight after the other.
Exponents = float | Mapping[str, float | None] | Sequence[float]


def lp_groups(
    model: nn.Module,
    p: Exponents,
    *,
    constrain: Constrain = "hidden",
    example: Example = (),
    lr: Number | None = None,
    euclidean_lr: Number | None = None,
) -> list[dict[str, Any]]:
    """Return the groups of `model`'s parameters, with names: one for each exponent, then the Euclidean rest.

    A group with values of sparse layers has their rows in `crow`, an entry for each parameter: None, or a layer's `crow`.
    Who makes groups by hand writes `{"params": [layer.values], "p": 1.3, "crow": [layer.crow]}`.

    Args:
        model: the network.
        p: the exponent; or exponents by the name of a parameter or of a module that holds it, of which the longest that
            fits counts ("" fits all), None or none at all being Euclidean; or a sequence that is consumed in the order
            of the weights, of which the last goes for all that are left.
        constrain: "hidden", the weights that the network multiplies by with more than one input, without the output layer's,
            which is taken to be the last one that a forward pass on `example` multiplies by, or without one the last in the
            order of modules; "all", all of these weights, but for those that are an embedding's too; or a predicate of name
            and parameter.
        example: what the forward pass takes, as for `pared.graph`. Without one the weights are those of torch's linear,
            bilinear, convolutional, recurrent and attention layers and of sparse ones; with one also those of other
            libraries' layers and plain parameters (`x @ self.w`), whose neurons may be along another axis: a group's `axis`.
        lr: the rate on the sphere; the optimizer's if left out.
        euclidean_lr: the rate of the rest; the optimizer's if left out.

    Raises:
        ConfigError: nothing is constrained, an exponent is for nothing that is, or the forward pass takes no such example.
        SurgeryError: a weight has a mask of torch.nn.utils.prune.

    Warns:
        UserWarning: without an example it is not known of some parameters whether the network multiplies by them.

    Source: L_p sphere (arXiv 2103.16013); "hidden" is what the authors' code constrains, but for its 1x1 convolutions of
    shortcuts, "all" what the paper describes.
    """
    refuse_masks(model, "a sphere of whole rows")
    known = matrices(model, example)
    chosen = _chosen(known, model, constrain)
    if not callable(constrain):
        warn_unknown(known, stacklevel=2)
    exponents = _exponents(list(chosen), p)
    made: dict[float, list[tuple[str, nn.Parameter]]] = {}
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        exponent = exponents.get(name)
        (rest if exponent is None else made.setdefault(float(exponent), [])).append((name, parameter))
    if not made:
        raise ConfigError("no weight would be held on a sphere; name some with constrain, or use torch.optim.SGD")
    groups: list[dict[str, Any]] = [{"params": params, "p": exponent} for exponent, params in made.items()]
    axis = {id(one.weight): one.axis for one in known.found if one.weight is not None}
    crow = {id(layer.values): layer.crow for layer in model.modules() if isinstance(layer, SparseLayer)}
    for group in groups:
        rows = [crow.get(id(parameter)) for _, parameter in group["params"]]
        if any(one is not None for one in rows):
            group["crow"] = rows
        if any(axes := [axis.get(id(parameter), 0) for _, parameter in group["params"]]):
            group["axis"] = axes
    for group in groups if lr is not None else []:
        group["lr"] = lr
    if rest:
        groups.append({"params": rest, "p": None} | ({} if euclidean_lr is None else {"lr": euclidean_lr}))
    return groups


def _chosen(known: Matrices, model: nn.Module, constrain: Constrain) -> dict[str, Tensor]:
    """Return the weights to be constrained, by name, in order."""
    if callable(constrain):
        return {name: parameter for name, parameter in model.named_parameters() if constrain(name, parameter)}
    if constrain not in ("hidden", "all"):
        raise ConfigError(f"constrain must be 'hidden', 'all' or a predicate, got {constrain!r}")
    layers = {id(layer.values): layer.shape[1] for layer in model.modules() if isinstance(layer, SparseLayer)}
    inputs = {
        id(one.weight): layers.get(id(one.weight)) or one.weight.movedim(one.axis, 0).shape[1]
        for one in known.found
        if one.weight is not None and id(one.weight) not in known.tables
    }
    last = known.ends[1]
    output = None if last is None or last.weight is None else id(last.weight)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in inputs and (constrain == "all" or (id(parameter) != output and inputs[id(parameter)] > 1))
    }


def _exponents(names: Sequence[str], p: Exponents) -> dict[str, float | None]:
    """Return the exponent of each of the weights `names`."""
    if isinstance(p, Mapping):
        return _by_name(names, p)
    if isinstance(p, Sequence):
        if not 0 < len(p) <= len(names):
            raise ConfigError(f"got {len(p)} exponents for {len(names)} weights: {', '.join(names)}")
        return {name: p[min(place, len(p) - 1)] for place, name in enumerate(names)}
    return dict.fromkeys(names, p)


def _by_name(names: Sequence[str], p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the exponent of the longest key that fits each name."""
    fits = {name: [key for key in p if key in ("", name) or name.startswith(f"{key}.")] for name in names}
    unused = p.keys() - {key for keys in fits.values() for key in keys}
    if unused:
        raise ConfigError(
            f"no constrained weight is called, or is in, {sorted(unused)}; constrained are {', '.join(names)}"
        )
    return {name: p[max(keys, key=len)] if keys else None for name, keys in fits.items()}
