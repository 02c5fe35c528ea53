"""The graph convolutional network of Kipf and Welling."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pared.errors import ConfigError
from pared.models.drawing import linear
from pared.nn.graph import Adjacency


class GCN(nn.Module):
    """Two layers A H W + b, a relu between them: classes of the nodes of a graph.

    Shapes: (..., nodes, features) -> (..., nodes, classes); or (nodes, features) as a sparse COO tensor. A is one module
    for both layers, and is made once in a pass. In training parts of the inputs and of the hidden features are dropped.
    """

    adjacency: Adjacency

    def __init__(self, adjacency: Adjacency, first: nn.Linear, last: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.adjacency, self.first, self.last, self.dropout = adjacency, first, last, dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classes of each node."""
        values = self.adjacency.values()
        h = self.adjacency(self._first(x), values) + self.first.bias
        h = F.dropout(h.relu(), self.dropout, self.training)
        return self.adjacency(F.linear(h, self.last.weight), values) + self.last.bias

    def _first(self, x: Tensor) -> Tensor:
        """What the nodes themselves give to the hidden features."""
        if not x.is_sparse:
            return F.linear(F.dropout(x, self.dropout, self.training), self.first.weight)
        x = x.coalesce()  # features that are 0 stay so when dropped: the others are enough
        kept = F.dropout(x.values(), self.dropout, self.training)
        x = torch.sparse_coo_tensor(x.indices(), kept, x.shape, is_coalesced=True, check_invariants=False)
        return torch.sparse.mm(x, self.first.weight.t())


def gcn(
    inputs: int,
    classes: int,
    adjacency: Adjacency,
    *,
    hidden: int = 16,
    dropout: float = 0.5,
    generator: torch.Generator | None = None,
) -> GCN:
    """Return a network of two graph convolutions over `adjacency`, fixed or learned.

    Weights are drawn as by Glorot and Bengio, uniform on ±sqrt(6 / (fan in + fan out)), from `generator`; biases are 0.

    Raises:
        ConfigError: a width below 1, or a share to drop that is not in [0, 1).

    Source: Kipf and Welling, semi-supervised classification with graph convolutional networks (arXiv 1609.02907),
    equation 9 and section 5.2. Deviation: biases, as in later implementations.
    """
    if min(inputs, classes, hidden) < 1 or not 0.0 <= dropout < 1.0:
        raise ConfigError(
            f"every width must be at least 1 and dropout in [0, 1), got inputs={inputs}, hidden={hidden}, "
            f"classes={classes}, dropout={dropout}"
        )
    layers = linear(inputs, hidden, generator), linear(hidden, classes, generator)
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return GCN(adjacency, *layers, dropout)
