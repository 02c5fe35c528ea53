"""How much of the plane of size and score a front covers."""

from collections.abc import Iterable


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that `points` dominate, down to `reference`.

    A point is (cost, score): smaller cost and larger score are better; those beyond the reference in either count for
    nothing. Where sizes differ by orders of magnitude, give their logarithm.

    Source: Zitzler and Thiele (1999), in two dimensions.
    """
    most, least = reference
    area, reached = 0.0, least
    for cost, score in sorted((point for point in points if point[0] < most), key=lambda p: (p[0], -p[1])):
        if score > reached:
            area += (most - cost) * (score - reached)
            reached = score
    return area
