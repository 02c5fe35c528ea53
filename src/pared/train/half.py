"""The best epoch of the second half of a run whose end is not known beforehand."""

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class SecondHalf(Generic[Item]):
    """Keeps as few epochs as can still turn out to be the best of the second half, the earlier one of equals.

    Source: ShrinkNets (arXiv 1806.03723), section 4.1, chooses epochs so.
    """

    def __init__(self) -> None:
        self.count = 0
        self._kept: deque[tuple[int, float, Item]] = deque()

    def add(self, rank: float, item: Item) -> None:
        """Add the next epoch, the larger `rank` the better."""
        while self._kept and not self._kept[-1][1] >= rank:
            self._kept.pop()
        self._kept.append((self.count, rank, item))
        self.count += 1
        while self._kept[0][0] < self.count // 2:
            self._kept.popleft()

    def best(self) -> Item:
        """Return the best of the epochs from number `count // 2` on."""
        return self._kept[0][2]
