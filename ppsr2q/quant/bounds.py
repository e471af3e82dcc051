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


class SortedValues:
    """Sorted values with prefix sums: what falls between two thresholds is counted and summed without a pass over it.

    Everything is around the mean, where the prefix sums of squares lose fewest digits.
    """

    def __init__(self, values: np.ndarray) -> None:
        ordered = np.sort(np.asarray(values, np.float64).reshape(-1))
        self.centre = ordered.mean()
        self._ordered = ordered - self.centre
        self._first = np.concatenate([[0.0], np.cumsum(self._ordered)])
        self._second = np.concatenate([[0.0], np.cumsum(self._ordered**2)])

    def cells(self, bounds: np.ndarray, bits: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What is rounded to each level of each pair of bounds (K, 2), float64 or int (K, 2^bits): (levels, how many
        values, their sum, the sum of their squares), levels and values around the mean.

        A value on a threshold is equally far from both levels, so the rounding rule does not matter for the error.
        """
        steps = 2**bits - 1
        lower, upper = bounds[:, :1] - self.centre, bounds[:, 1:] - self.centre
        levels = lower + (upper - lower) * np.arange(steps + 1) / steps
        cuts = np.searchsorted(self._ordered, (levels[:, 1:] + levels[:, :-1]) / 2)
        edge = np.full((len(bounds), 1), 0)
        cuts = np.concatenate([edge, cuts, edge + self._ordered.size], axis=1)
        return levels, np.diff(cuts, axis=1), np.diff(self._first[cuts], axis=1), np.diff(self._second[cuts], axis=1)


def squared_errors(values: SortedValues, bounds: np.ndarray, bits: int) -> np.ndarray:
    """Σ (v - Q_{a,b}(v))² for every pair of bounds (K, 2), float64 (K,): K (2^bits) look-ups instead of K passes over the
    values."""
    levels, count, sums, squares = values.cells(bounds, bits)
    return (squares - 2 * levels * sums + levels**2 * count).sum(axis=1)


def winsorize(values: np.ndarray, share: float) -> np.ndarray:
    """Values with this share of them, at either end, moved to the rest's minimum or maximum; as they are where nothing
    but a constant would be left."""
    low, high = np.quantile(values, [share, 1 - share])
    return np.clip(values, low, high) if low < high else values


def search_bounds(values: np.ndarray, bits: int, one_sided: bool = False, candidates: int = 100,
                  fit: bool = False, outliers: float = 0.0) -> Tuple[float, float]:
    """DOBI, the range search of 2DQuant (stage 1): the candidate with the least squared quantization error, the widest
    of equals.

    Args:
        values: float, any shape, finite.
        bits: 1 to 8.
        one_sided: keep the lower bound at the minimum (for tensors with a hard lower edge, such as a softmax).
        candidates: K.
        fit: go on from there, and from pairs of quantiles, by :func:`fit_bounds`. DOBI's candidates all have the middle
            of the values' range for their middle; with few levels a skewed tensor needs another one.
        outliers: share of the values at either end that :func:`winsorize` moves inwards first. With two levels the least
            squared error gives one of them to a heavy tail alone, and all other values the same code.

    Returns:
        (a, b), a < b; a constant tensor gets bounds that hold it and have a width.
    """
    if not np.isfinite(values).all():
        raise ValueError("values to search bounds for must be finite")
    if outliers:
        values = winsorize(values, outliers)
    low, high = float(np.min(values)), float(np.max(values))
    if low == high:
        width = max(abs(low), 1.0) * 1e-3
        return low, low + width
    ordered = SortedValues(values)
    bounds = candidate_bounds(low, high, candidates, one_sided)
    best = bounds[np.argmin(squared_errors(ordered, bounds, bits))]  # argmin takes the first of equals
    if fit:
        pairs = np.quantile(values, [_TAILS, 1 - _TAILS]).T
        starts = np.concatenate([best[None], pairs[pairs[:, 0] < pairs[:, 1]]])
        bounds = fit_bounds(ordered, starts, bits)
        best = bounds[np.argmin(squared_errors(ordered, bounds, bits))]
    return float(best[0]), float(best[1])


_TAILS = np.array([0.0, 0.001, 0.01, 0.05, 0.15, 0.3])  # shares of the values outside the bounds that a fit begins with
_MAX_ROUNDS = 200


def fit_bounds(values: SortedValues, bounds: np.ndarray, bits: int) -> np.ndarray:
    """The bounds nearby at which the squared quantization error has a minimum, for every pair (K, 2), float64 (K, 2).

    Lloyd's algorithm for equidistant levels a + s k, alternating until no value changes its level: every value is
    rounded to its level k, then a and s are the least-squares line through the pairs (k, v). No round raises the error.
    """
    codes, bounds = np.arange(2**bits), np.array(bounds, np.float64)
    before = None
    for _ in range(_MAX_ROUNDS):
        _, count, sums, _ = values.cells(bounds, bits)
        if before is not None and (count == before).all():
            break
        before, total = count, count.sum(axis=1)
        mean = (count * codes).sum(axis=1) / total
        spread = (count * (codes - mean[:, None])**2).sum(axis=1)
        fitted = spread > 0  # not where one level takes all values
        step = ((codes - mean[:, None]) * sums).sum(axis=1)[fitted] / spread[fitted]
        lower = values.centre + sums.sum(axis=1)[fitted] / total[fitted] - step * mean[fitted]
        bounds[fitted] = np.stack([lower, lower + step * (2**bits - 1)], axis=1)
    return bounds
