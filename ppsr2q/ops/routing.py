"""Semantic guided neighbouring (MambaIRv2): tokens are sorted by class so that the scan meets similar ones together."""
from __future__ import annotations

from typing import NamedTuple, Optional

import paddle
from paddle.nn import functional as F

from ppsr2q.ops import dispatch
from ppsr2q.ops.points import QuantPoint, quantize


class Routing(NamedTuple):
    """index (B, L): class of every token; order (B, L): tokens sorted by class, ties in raster order; inverse of order.

    All int64 from the reference, int32 from the kernel.
    """

    index: paddle.Tensor
    order: paddle.Tensor
    inverse: paddle.Tensor


def route_reference(logits):
    """Pure-Paddle :func:`route`."""
    index = paddle.argmax(logits, axis=-1)
    # unique keys make any sort stable (Paddle 2.6 has no stable one); int64, for float32 is exact to 2^24 only
    order = paddle.argsort(index * index.shape[1] + paddle.arange(index.shape[1]), axis=-1)
    return Routing(index, order, paddle.argsort(order, axis=-1))


def route(logits: paddle.Tensor) -> Routing:
    """The class of every token (first maximum of float32 (B, L, T) logits) and the stable sort by class. No gradient."""
    logits = logits.detach()
    if dispatch.serves("route", (logits,)):
        from ppsr2q.ops import kernels
        return kernels.route(logits)
    return route_reference(logits)


def gather_rows_reference(x, order, inverse, residual=None):
    """Pure-Paddle :func:`gather_rows`."""
    y = paddle.take_along_axis(x, order.unsqueeze(-1).astype("int64"), axis=1)
    return y if residual is None else y + residual


def gather_rows(x: paddle.Tensor, order: paddle.Tensor, inverse: paddle.Tensor,
                residual: Optional[paddle.Tensor] = None) -> paddle.Tensor:
    """y[b, l] = x[b, order[b, l]] (+ residual[b, l]); all float32 (B, L, C). ``inverse``, the inverse permutation, is
    the gradient's order."""
    if dispatch.serves("gather_rows", (x, residual)):
        from ppsr2q.ops import kernels
        return kernels.gather_rows(x, order, inverse, residual)
    return gather_rows_reference(x, order, inverse, residual)


def routed_prompt_reference(logits, index, table, one_hot_point=None):
    """Pure-Paddle :func:`routed_prompt`."""
    classes = logits.shape[-1]
    if not paddle.in_dynamic_mode() or (logits.stop_gradient and table.stop_gradient and not _observing(one_hot_point)):
        flat = paddle.gather(table, index.reshape([-1]).astype("int64"))
        return flat.reshape([-1, logits.shape[1], table.shape[-1]])
    soft = F.softmax(logits, axis=-1)
    hard = F.one_hot(index.astype("int64"), classes)
    return paddle.matmul(quantize(hard + (soft - soft.detach()), one_hot_point), table)


def _observing(point):
    return point is not None and point.observing


def routed_prompt(logits: paddle.Tensor, index: paddle.Tensor, table: paddle.Tensor,
                  one_hot_point: Optional[QuantPoint] = None) -> paddle.Tensor:
    """Row ``index`` of the prompt table for every token, with the straight-through softmax gradient to the logits.

    Args:
        logits: float32 (B, L, T), Gumbel noise included when the routing uses it.
        index: (B, L), the argmax of the logits.
        table: float32 (T, N), the (quantized) product of the two embeddings.
        one_hot_point: quantizer of the one-hot matrix; its bounds are (0, 1), exact at any bit width.

    Returns:
        float32 (B, L, N).
    """
    if dispatch.serves("routed_prompt", (logits, table), (one_hot_point,)):
        from ppsr2q.ops import kernels
        return kernels.routed_prompt(logits, index, table)
    return routed_prompt_reference(logits, index, table, one_hot_point)
