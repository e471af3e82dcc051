"""Attention inside (shifted) windows with a relative position bias (Swin; MambaIRv2 and SwinIR use it alike)."""
from __future__ import annotations

from typing import Optional, Tuple

import paddle
from paddle.nn import functional as F

from ppsr2q.ops import dispatch
from ppsr2q.ops.points import QuantPoints, quantize

MASKED = -100.0  # what the official networks add to scores across the border of a shifted image


def relative_position_index(window: int) -> paddle.Tensor:
    """int64 (window⁴,): row of the bias table for every (query, key), (dy + w - 1)(2w - 1) + dx + w - 1.

    Computed, not stored: an exported graph would hold a constant of window⁴ numbers for every layer.
    """
    position = paddle.arange(window * window)
    row, column = position // window, position % window
    dy = row.unsqueeze(1) - row.unsqueeze(0) + window - 1
    dx = column.unsqueeze(1) - column.unsqueeze(0) + window - 1
    return (dy * (2 * window - 1) + dx).reshape([-1])


def partition_windows(x: paddle.Tensor, window: int) -> paddle.Tensor:
    """(B, H, W, C) -> (B windows, window², C), windows in raster order."""
    _, height, width, channels = x.shape
    x = x.reshape([-1, height // window, window, width // window, window, channels])
    return x.transpose([0, 1, 3, 2, 4, 5]).reshape([-1, window * window, channels])


def merge_windows(x: paddle.Tensor, window: int, height: int, width: int) -> paddle.Tensor:
    """Inverse of :func:`partition_windows`: (B windows, window², C) -> (B, H, W, C)."""
    channels = x.shape[-1]
    x = x.reshape([-1, height // window, width // window, window, window, channels])
    return x.transpose([0, 1, 3, 2, 4, 5]).reshape([-1, height, width, channels])


def shift_mask(height: int, width: int, window: int, shift: int) -> paddle.Tensor:
    """float32 (windows, window², window²): 0 within a region of the rolled image, -100 across regions."""
    rows, columns = paddle.arange(height), paddle.arange(width)
    row_region = (rows >= height - window).astype("float32") + (rows >= height - shift).astype("float32")
    column_region = (columns >= width - window).astype("float32") + (columns >= width - shift).astype("float32")
    regions = row_region.unsqueeze(1) * 3 + column_region.unsqueeze(0)
    labels = partition_windows(regions.reshape([1, height, width, 1]), window).squeeze(-1)
    return (labels.unsqueeze(1) != labels.unsqueeze(2)).astype("float32") * MASKED


def window_attention_reference(q, k, v, table, size, heads, window, shift=0, points=None):
    """Pure-Paddle :func:`window_attention`."""
    height, width = size
    head_dim = q.shape[-1] // heads
    tokens = window * window

    def split(x):
        x = x.reshape([-1, height, width, heads * head_dim])
        if shift:
            x = paddle.roll(x, [-shift, -shift], [1, 2])
        return partition_windows(x, window).reshape([-1, tokens, heads, head_dim]).transpose([0, 2, 1, 3])

    q, k, v = (quantize(x, getattr(points, name, None))
               for x, name in ((split(q) * head_dim**-0.5, "q"), (split(k), "k"), (split(v), "v")))
    bias = paddle.index_select(table, relative_position_index(window), axis=0).transpose([1, 0]).reshape([1, heads, tokens, tokens])
    scores = paddle.matmul(q, k, transpose_y=True) + bias
    if shift:
        mask = shift_mask(height, width, window, shift).unsqueeze(1)
        windows = (height // window) * (width // window)
        scores = scores.reshape([-1, windows, heads, tokens, tokens]) + mask
        scores = scores.reshape([-1, heads, tokens, tokens])
    weights = quantize(F.softmax(scores, axis=-1), getattr(points, "map", None))
    mixed = paddle.matmul(weights, v).transpose([0, 2, 1, 3]).reshape([-1, tokens, heads * head_dim])
    mixed = merge_windows(mixed, window, height, width)
    if shift:
        mixed = paddle.roll(mixed, [shift, shift], [1, 2])
    return mixed.reshape([-1, height * width, heads * head_dim])


def window_attention(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, table: paddle.Tensor,
                     size: Tuple[int, int], heads: int, window: int, shift: int = 0,
                     points: Optional[QuantPoints] = None) -> paddle.Tensor:
    """Softmax(Q(q d^-0.5) Q(k)ᵀ + bias [+ mask]) quantized, times Q(v), inside windows of the (rolled) image.

    Args:
        q, k, v: float32 (B, H W, C) tokens in raster order; head h owns channels h d to (h + 1) d - 1, d = C / heads.
        table: float32 ((2 window - 1)², heads), the relative position biases.
        size: (H, W), multiples of ``window``.
        shift: 0, or by how many pixels windows are shifted; scores between regions that only the roll made
            neighbours get -100.
        points: quantizers ``q`` (after the scaling), ``k``, ``v`` and ``map`` (the softmax output).

    Returns:
        float32 (B, H W, C).
    """
    used = () if points is None else (points.q, points.k, points.v, points.map)
    if dispatch.serves("window_attention", (q, k, v, table), used):
        from ppsr2q.ops import kernels
        return kernels.window_attention(q, k, v, table, size, heads, window, shift, points)
    return window_attention_reference(q, k, v, table, size, heads, window, shift, points)
