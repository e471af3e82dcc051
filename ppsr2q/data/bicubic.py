"""Bicubic resizing by a whole factor, equal to MATLAB's ``imresize`` bit for bit.

Super-resolution benchmarks make their inputs with MATLAB, and no image library reproduces it: they differ in
the anti-aliasing, in the border, or in the 8-bit rounding between the two passes. The recipe: Keys' cubic
kernel with a = -0.5 (Keys 1981, eq. 4 and 15), widened by the factor when shrinking; border mirrored with the
edge pixel repeated; rows first, rounded half up and clipped to uint8, then columns, likewise.
"""
from __future__ import annotations

import math
from typing import List, Tuple

import numpy as np


def cubic_kernel(x: np.ndarray) -> np.ndarray:
    """Keys' piecewise cubic with a = -0.5 at the float64 positions ``x`` (support [-2, 2])."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1.0
    outer = -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    return np.where(x <= 1.0, inner, np.where(x <= 2.0, outer, 0.0))


def crop_to_multiple(image: np.ndarray, multiple: int) -> np.ndarray:
    """The top left part of an (H, W, ...) image whose sides are multiples of ``multiple`` (a view)."""
    height, width = image.shape[:2]
    return image[: height - height % multiple, : width - width % multiple]


def downsample(image: np.ndarray, scale: int) -> np.ndarray:
    """Shrink ``image`` as MATLAB's ``imresize(image, 1 / scale)`` does.

    Args:
        image: uint8 (H, W) or (H, W, C); H and W multiples of ``scale`` (see :func:`crop_to_multiple`).
        scale: whole factor, at least 1.

    Returns:
        uint8 (H / scale, W / scale[, C]).

    Raises:
        ValueError: wrong dtype or rank, or a side that is no multiple of ``scale``.
    """
    _check(image, scale)
    if image.shape[0] % scale or image.shape[1] % scale:
        raise ValueError(f"image of shape {image.shape}: both sides must be multiples of {scale}")
    offset = 0.5 * (scale - 1)
    phases = [_taps(offset, float(scale))]
    return _two_passes(image, phases, step=scale)


def upsample(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge as MATLAB's ``imresize(image, scale)``: uint8 (H, W[, C]) -> (H*scale, W*scale[, C])."""
    _check(image, scale)
    phases = [_taps((phase + 0.5) / scale - 0.5, 1.0) for phase in range(scale)]
    return _two_passes(image, phases, step=1)


def _check(image: np.ndarray, scale: int) -> None:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"expected a uint8 image (H, W) or (H, W, C), got {image.dtype} {image.shape}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")


def _taps(centre: float, widening: float) -> Tuple[int, np.ndarray]:
    """First source index and the normalized weights of the output pixel whose centre lies at ``centre``."""
    first = math.floor(centre - 2.0 * widening) + 1
    last = math.ceil(centre + 2.0 * widening) - 1
    weights = cubic_kernel((centre - np.arange(first, last + 1)) / widening) / widening
    return first, weights / weights.sum()


def _two_passes(image: np.ndarray, phases: List[Tuple[int, np.ndarray]], step: int) -> np.ndarray:
    rows_done = _resize_rows(image, phases, step)
    columns_first = np.ascontiguousarray(rows_done.swapaxes(0, 1))
    return np.ascontiguousarray(_resize_rows(columns_first, phases, step).swapaxes(0, 1))


def _resize_rows(image: np.ndarray, phases: List[Tuple[int, np.ndarray]], step: int) -> np.ndarray:
    """One pass along axis 0: output row ``j * len(phases) + p`` reads sources from ``j * step + first_p``."""
    count = image.shape[0] // step
    before = max(0, -min(first for first, _ in phases))
    after = max(0, max(first + len(weights) for first, weights in phases) - step)
    padded = np.pad(image, [(before, after)] + [(0, 0)] * (image.ndim - 1), mode="symmetric")
    result = np.empty((count * len(phases),) + image.shape[1:], np.uint8)
    # The weights of factors 2 and 4 are multiples of 2**-12: products and sums are exact in float32 too.
    dtype = np.float32 if max(step, len(phases)) in (2, 4) else np.float64
    product = np.empty((count,) + image.shape[1:], dtype)
    for phase, (first, weights) in enumerate(phases):
        total = np.full(product.shape, 0.5, dtype)
        for tap, weight in enumerate(weights):
            start = before + first + tap
            source = padded[start : start + (count - 1) * step + 1 : step]
            total += np.multiply(source, weight, out=product, dtype=dtype)
        result[phase :: len(phases)] = np.clip(np.floor(total, out=total), 0, 255, out=total)
    return result
