"""How far a map is from the reference."""

import numpy as np


def agreement(a, b):
    """NMSE and Spearman's rank correlation of a map with the reference."""
    a, b = (np.asarray(v, np.float64).ravel() for v in (a, b))
    if a.shape != b.shape or not np.isfinite(a).all():
        return {"nmse": None, "spearman": None}
    ranks = [average_ranks(v) for v in (a, b)]
    flat = any(np.ptp(r) == 0 for r in ranks)
    return {
        "nmse": float(((a - b) ** 2).sum() / (b**2).sum()),
        "spearman": None if flat else float(np.corrcoef(*ranks)[0, 1]),
    }


def average_ranks(v):
    _, inverse, count = np.unique(v, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[inverse]
