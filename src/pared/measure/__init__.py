"""Size, latency, metrics, statistics: what a network costs and what it is worth."""
