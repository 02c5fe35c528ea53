"""How many weights are large, how large they are together, and how long the vectors are that a prior samples."""

from functools import partial

import torch
from torch import Tensor, nn

from pared.errors import ConfigError
from pared.nn.sparse_layer import SparseLayer
from pared.penalties.base import Weights, weights_of
from pared.penalties.sampling import Sampling, pool_of


@torch.no_grad()
def weight_figures(weights: Weights, threshold: float = 1e-2, *, vectors: bool = False) -> dict[str, float]:
    """Return figures of a network's weights, cheap enough for every step, as a record of a metrics file holds them.

    "density" is the share of |w| > `threshold`, in [0, 1]; "density_printed" that of w > `threshold`, which counts no negative
    weight, and 1 minus it is the paper's sparsity; "magnitude" is ‖w‖₂ and "mean_magnitude" the mean of |w|. `weights` and
    `vectors` are as of `pared.penalties.Penalty`: a network or tensors, of two or more axes; of a network those that are
    frozen count too, and of sparse layers and behind masks of `torch.nn.utils.prune` the dead are 0.

    Raises:
        ConfigError: no weights, or a threshold below 0.

    Source: arXiv 1910.14241, section 2.5.3, whose T is that of the prior and has no number; it does not say which magnitude.
    """
    if not threshold >= 0.0:
        raise ConfigError(f"threshold must be at least 0, got {threshold}")
    held = [w.detach() for w in _all_of(weights, vectors).values()]
    n = sum(w.numel() for w in held) + _absent(weights)
    above = sum(torch.count_nonzero(w > threshold) for w in held)
    below = sum(torch.count_nonzero(w < -threshold) for w in held)
    norm, mean = (
        torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(w, p, dtype=torch.float64) for w in held]), p)
        for p in (2, 1)
    )
    return {
        "density": float(above + below) / n,
        "density_printed": float(above) / n,
        "magnitude": float(norm),
        "mean_magnitude": float(mean) / n,
    }


@torch.no_grad()
def sampled_norms(
    weights: Weights, draws: int, sampling: Sampling | None = None, *, vectors: bool = False, seed: int = 0
) -> Tensor:
    """Return ‖w ∘ I_s‖₂ of `draws` experiments on all weights as one vector, (draws,), each >= 0.

    `sampling` says how masks I_s select, one in a hundred by magnitude when None; there are no weights before, so its
    momentum does not matter. `weights` and `vectors` are as of `weight_figures`, but of sparse layers only the values count.

    Raises:
        ConfigError: no weights, or fewer than one draw.

    Source: arXiv 1910.14241, figure 1.
    """
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, got {draws}")
    held = list(_all_of(weights, vectors).values())
    generator = torch.Generator(held[0].device).manual_seed(seed)
    pool = pool_of(held, None, sampling or Sampling(), generator)
    norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
    return torch.stack([norm(pool.weight[pool.draw()]) for _ in range(draws)]).to(pool.weight.dtype)


def _all_of(weights: Weights, vectors: bool) -> dict[str, Tensor]:
    """Return weights by name; a penalty leaves out those that do not learn, but they are weights of the network."""
    return weights_of(weights, vectors=vectors, frozen=True)


def _absent(weights: Weights) -> int:
    """Return how many weights the sparse layers of a network do without."""
    layers = [m for m in weights.modules() if isinstance(m, SparseLayer)] if isinstance(weights, nn.Module) else []
    return sum(layer.shape.numel() - layer.values.numel() for layer in layers)
