"""How a network's sparsity is spread over its layers."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

from pared.errors import ConfigError

#: Equal for every layer; by the Erdős-Rényi rule of (in + out) / (in · out), or that with kernel sizes.
Distribution = Literal["uniform", "er", "erk"]


def spread(
    shapes: Mapping[str, Sequence[int]],
    sparsity: float,
    distribution: Distribution = "uniform",
    dense: Collection[str] = (),
) -> dict[str, int]:
    """Return how many weights of each named tensor are zero, so that `sparsity` of all of them are.

    Args:
        shapes: (out, in) or (out, in, *kernel) by name.
        sparsity: the share of zeros among the weights of the tensors that are not `dense`, in [0, 1).
        distribution: "uniform", ceil(sparsity · numbers) of each; "er" or "erk", the sparser the larger a layer is. A
            layer that would need more weights than it has stays dense, and the rest makes up for it.
        dense: names that have no zeros, whatever the rule.

    Raises:
        ConfigError: `sparsity` is out of range, or `distribution` is unknown.

    Source: uniform as in the L_p sphere's experiments; ER: Mocanu et al. (2018); ERK: Evci et al. (2020), section 3.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ConfigError(f"sparsity must be in [0, 1), got {sparsity}")
    if distribution not in get_args(Distribution):
        raise ConfigError(f"distribution must be one of {', '.join(get_args(Distribution))}; got {distribution!r}")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    sparse = [name for name in shapes if name not in dense]
    zeros = dict.fromkeys(shapes, 0)
    if distribution == "uniform":
        # The clamp keeps a weight in every layer; the rounding keeps 0.1 · 30 from being 3.0000000000000004.
        return zeros | {name: min(math.ceil(round(sparsity * sizes[name], 6)), sizes[name] - 1) for name in sparse}
    raw = {name: _raw(shapes[name], kernel=distribution == "erk") for name in sparse}
    left = (1.0 - sparsity) * sum(sizes[name] for name in sparse)
    while sparse:
        scale = left / sum(raw[name] * sizes[name] for name in sparse)
        full = [name for name in sparse if scale * raw[name] >= 1.0]
        if not full:
            return zeros | {
                name: min(sizes[name] - round(scale * raw[name] * sizes[name]), sizes[name] - 1) for name in sparse
            }
        left -= sum(sizes[name] for name in full)
        sparse = [name for name in sparse if name not in full]
    return zeros


def _raw(shape: Sequence[int], *, kernel: bool) -> float:
    counted = shape if kernel else shape[:2]
    return sum(counted) / math.prod(counted)
