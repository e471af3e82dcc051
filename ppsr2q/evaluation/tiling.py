"""Upscaling an image in tiles, so that memory is bounded by the tile and not by the image."""
from __future__ import annotations

from typing import Callable, List, Sequence, Tuple

import numpy as np

from ppsr2q.core.errors import UserError

Upscaler = Callable[[np.ndarray], np.ndarray]

OFFICIAL_TILE = 200  # LR pixels; basicsr/models/mambairv2_model.py of MambaIR


def check_tiling(tile: int, overlap: int) -> None:
    """Raise a UserError when :func:`run_tiled` cannot work with these."""
    if tile < 1 or not 0 <= overlap <= tile // 2:
        raise UserError(f"tile {tile}, overlap {overlap}: expected tile >= 1 and 0 <= overlap <= tile / 2")


def run_tiled(upscale: Upscaler, image: np.ndarray, tile: int, overlap: int, scale: int) -> np.ndarray:
    """Upscale in overlapping square tiles whose common part is cross-faded linearly, so that no seam shows.

    All tiles have one size: the last one of a row or column is moved inwards, not cut. At most two tiles are
    blended in each direction, as ``old + w * (new - old)`` with w rising linearly over the middle half of the
    overlap; its outer quarters, where a tile sees too little around it, come from the other tile alone. So a
    filter that reaches no further than ``overlap // 4`` pixels gives exactly what it gives on the whole
    image. Besides input and output, one band of tiles is held in memory.

    Args:
        upscale: float32 (h, w, 3) -> float32 (h * scale, w * scale, 3).
        image: float32 (H, W, 3).
        tile: side of the tiles in LR pixels; smaller images are one tile.
        overlap: common LR pixels of neighbours, at most half a tile.
        scale: factor of ``upscale``.

    Returns:
        float32 (H * scale, W * scale, 3).

    Raises:
        UserError: ``tile`` below 1, or ``overlap`` negative or more than half of it.
        ValueError: ``upscale`` returned another shape.
    """
    check_tiling(tile, overlap)
    height, width = image.shape[:2]
    result = np.empty((height * scale, width * scale, image.shape[2]), np.float32)
    for top, bottom, *fade_rows in _spans(height, tile, overlap):
        band = np.empty(((bottom - top) * scale, width * scale, image.shape[2]), np.float32)
        for left, right, *fade_columns in _spans(width, tile, overlap):
            piece = _checked(upscale, image[top:bottom, left:right], scale)
            _merge(band, piece, left * scale, [at * scale for at in fade_columns], axis=1)
        _merge(result, band, top * scale, [at * scale for at in fade_rows], axis=0)
    return result


def _spans(length: int, tile: int, overlap: int) -> List[Tuple[int, int, int, int]]:
    """(start, stop, start and stop of the cross-fade with the tile before) of the tiles along one side."""
    margin = overlap // 4
    spans = [(0, min(tile, length), 0, 0)]
    while spans[-1][1] < length:
        reached = spans[-1][1]
        stop = min(reached - overlap + tile, length)
        spans.append((stop - tile, stop, reached - overlap + margin, reached - margin))
    return spans


def _merge(target: np.ndarray, piece: np.ndarray, start: int, fade: Sequence[int], axis: int) -> None:
    """Lay ``piece`` at ``start`` over ``target``: blended from ``fade[0]`` to ``fade[1]``, then copied."""
    target, piece = np.moveaxis(target, axis, 0), np.moveaxis(piece, axis, 0)
    first, last = fade
    target[last : start + len(piece)] = piece[last - start :]
    weight = ((np.arange(last - first, dtype=np.float32) + 0.5) / max(last - first, 1)).reshape(-1, 1, 1)
    old = target[first:last]
    target[first:last] = old + weight * (piece[first - start : last - start] - old)


def run_official_tiles(upscale: Upscaler, image: np.ndarray, scale: int) -> np.ndarray:
    """Upscale by the procedure that MambaIR's published numbers were made with.

    The image is cut into (h // 200 + 1) x (w // 200 + 1) equal tiles, after mirroring at the bottom and right
    to make them divide; each tile is read with a margin of a tenth of its size on its inner sides, which is
    cut off again.

    Args:
        upscale: float32 (h, w, 3) -> float32 (h * scale, w * scale, 3).
        image: float32 (H, W, 3).
        scale: factor of ``upscale``.

    Returns:
        float32 (H * scale, W * scale, 3).
    """
    height, width = image.shape[:2]
    rows, columns = height // OFFICIAL_TILE + 1, width // OFFICIAL_TILE + 1
    padded = np.pad(image, [(0, -height % rows), (0, -width % columns), (0, 0)], mode="reflect")
    result = np.empty((padded.shape[0] * scale, padded.shape[1] * scale, image.shape[2]), np.float32)
    for top, bottom, read_top, read_bottom in _official_spans(padded.shape[0], rows):
        for left, right, read_left, read_right in _official_spans(padded.shape[1], columns):
            piece = _checked(upscale, padded[read_top:read_bottom, read_left:read_right], scale)
            inner = piece[(top - read_top) * scale :, (left - read_left) * scale :]
            inner = inner[: (bottom - top) * scale, : (right - left) * scale]
            result[top * scale : bottom * scale, left * scale : right * scale] = inner
    return result[: height * scale, : width * scale]


def _official_spans(length: int, count: int) -> List[Tuple[int, int, int, int]]:
    """(start, stop, start with margin, stop with margin) of ``count`` equal tiles."""
    size = length // count
    margin = size // 10
    starts = range(0, length, size)
    return [(at, at + size, max(0, at - margin), min(length, at + size + margin)) for at in starts]


def _checked(upscale: Upscaler, piece: np.ndarray, scale: int) -> np.ndarray:
    output = upscale(np.ascontiguousarray(piece))
    expected = (piece.shape[0] * scale, piece.shape[1] * scale, piece.shape[2])
    if output.shape != expected:
        raise ValueError(
            f"the upscaler returned shape {output.shape} for a tile {piece.shape}, expected {expected}"
        )
    return output
