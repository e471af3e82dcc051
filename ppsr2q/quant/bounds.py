"""Range searches: pure functions from values to the clipping bounds (a, b) of the quantizer, and what it rounds to."""
from __future__ import annotations

from typing import Tuple

import numpy as np


def subsample(values: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most ``limit`` of the values, drawn with ``seed``, always with their minimum and maximum among them."""
    flat = np.asarray(values).reshape(-1)
    if flat.size <= limit:
        return flat
    drawn = flat[np.random.default_rng(seed).integers(0, flat.size, limit - 2)]
    return np.concatenate([drawn, [flat.min(), flat.max()]]).astype(flat.dtype)


def round_to_levels(values: np.ndarray, bounds: Tuple[float, float], bits: int) -> np.ndarray:
    """Eq. 1 in float64, for errors of a choice of bounds: values of any shape -> their levels."""
    a, b = bounds
    step = (b - a) / (2**bits - 1)
    return np.round((np.clip(values, a, b) - a) / step) * step + a


def candidate_bounds(low: float, high: float, candidates: int, one_sided: bool) -> np.ndarray:
    """float64 (candidates, 2): both bounds move inwards by equal steps of R/(2K), or the upper one alone by R/K."""
    steps = np.arange(candidates) * (high - low) / candidates
    if one_sided:
        return np.stack([np.full(candidates, low), high - steps], axis=1)
    return np.stack([low + steps / 2, high - steps / 2], axis=1)


def squared_errors(values: np.ndarray, bounds: np.ndarray, bits: int) -> np.ndarray:
    """Σ (v - Q_{a,b}(v))² for every candidate, float64 (K,).

    Between two thresholds every value goes to one level, so the sum over the sorted values follows from their prefix
    sums: K (2^bits) look-ups instead of K passes over the values. A value on a threshold is equally far from both
    levels, so the rounding rule does not matter.
    """
    ordered = np.sort(np.asarray(values, np.float64).reshape(-1))
    centre = ordered.mean()  # around the mean the prefix sums of squares lose fewest digits
    ordered = ordered - centre
    first = np.concatenate([[0.0], np.cumsum(ordered)])
    second = np.concatenate([[0.0], np.cumsum(ordered**2)])
    steps = 2**bits - 1
    lower, upper = bounds[:, :1] - centre, bounds[:, 1:] - centre
    levels = lower + (upper - lower) * np.arange(steps + 1) / steps
    thresholds = (levels[:, 1:] + levels[:, :-1]) / 2
    cuts = np.searchsorted(ordered, thresholds)
    edge = np.full((len(bounds), 1), 0)
    cuts = np.concatenate([edge, cuts, edge + ordered.size], axis=1)
    count, sums, squares = np.diff(cuts, axis=1), np.diff(first[cuts], axis=1), np.diff(second[cuts], axis=1)
    return (squares - 2 * levels * sums + levels**2 * count).sum(axis=1)


def search_bounds(values: np.ndarray, bits: int, one_sided: bool = False, candidates: int = 100) -> Tuple[float, float]:
    """DOBI, the range search of 2DQuant (stage 1): the candidate with the least squared quantization error, the widest
    of equals.

    Args:
        values: float, any shape, finite.
        bits: 1 to 8.
        one_sided: keep the lower bound at the minimum (for tensors with a hard lower edge, such as a softmax).
        candidates: K.

    Returns:
        (a, b), a < b; a constant tensor gets bounds that hold it and have a width.
    """
    low, high = float(np.min(values)), float(np.max(values))
    if not np.isfinite([low, high]).all():
        raise ValueError("values to search bounds for must be finite")
    if low == high:
        width = max(abs(low), 1.0) * 1e-3
        return low, low + width
    bounds = candidate_bounds(low, high, candidates, one_sided)
    best = int(np.argmin(squared_errors(values, bounds, bits)))  # argmin takes the first of equals
    return float(bounds[best, 0]), float(bounds[best, 1])


