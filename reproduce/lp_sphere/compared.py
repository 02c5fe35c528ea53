"""The methods that the scripts of the L_p sphere compare, by the names they have there."""

from collections.abc import Callable

from pared.methods import SDR, SET, SNFS, SNIP, DeepR, GradualMagnitude, LpSS, RigL, SNIPDynamic, Static, WeightMethod
from pared.topology import Cosine

SPARSITIES = (0.5, 0.8, 0.9)
#: The columns of table 4, in its order. What it calls SNIP drops and grows by gradients.
PAPER: dict[str, Callable[[float, int], WeightMethod]] = {
    "SET": lambda s, total: SET(s, every=often(total, 60), begin=0.2, end=0.8, fraction=Cosine(0.2)),
    "Static": lambda s, total: Static(s),
    "RigL": lambda s, total: RigL(s, every=often(total, 60), begin=0.2, end=0.8, fraction=Cosine(0.2)),
    "SNIP": lambda s, total: SNIPDynamic(s, every=often(total, 60)),
    "LpSS": lambda s, total: LpSS(s, every=often(total, 200), threshold=Cosine(0.2)),
}
#: And those that table 1 speaks of only, and SNIP as it was published.
MORE: dict[str, Callable[[float, int], WeightMethod]] = {
    "SNIP once": lambda s, total: SNIP(s),
    "DeepR": lambda s, total: DeepR(s),
    "soft DeepR": lambda s, total: DeepR(s, soft=True),
    "SNFS": lambda s, total: SNFS(s, every=often(total, 60), end=0.8, fraction=Cosine(0.2)),
    "SDR": lambda s, total: SDR(s, every=often(total, 60), begin=0.2, end=0.8),
    "gradual": lambda s, total: GradualMagnitude(s, every=often(total, 60), begin=0.2, end=0.8),
}
METHODS = PAPER | MORE


def often(total: int, times: int) -> int:
    """Return the steps between two changes: the paper's 40, or fewer where that would be fewer than `times` in a run."""
    return min(40, max(1, total // times))
