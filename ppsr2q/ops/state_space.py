"""The state space model of MambaIRv2 around the selective scan: projections, prompt, quantizers."""
from __future__ import annotations

from typing import Optional

import paddle

from ppsr2q.ops import dispatch
from ppsr2q.ops.points import QuantPoints, quantize
from ppsr2q.ops.scan import selective_scan

POINTS = ("u", "dt", "delta", "B", "C", "states")


def _state_space(u, prompt, x_proj_weight, dt_proj_weight, A, D, dt_bias, points):
    point = {name: getattr(points, name, None) for name in POINTS}
    u = quantize(u, point["u"])
    projected = paddle.matmul(u, x_proj_weight, transpose_y=True)
    rank, states = dt_proj_weight.shape[1], A.shape[1]
    dt, B, C = paddle.split(projected, [rank, states, states], axis=-1)
    delta = paddle.matmul(quantize(dt, point["dt"]), dt_proj_weight, transpose_y=True)
    return selective_scan(u, quantize(delta, point["delta"]), A, quantize(B, point["B"]),
                          quantize(C + prompt, point["C"]), D, dt_bias, point["states"])


def state_space(u: paddle.Tensor, prompt: paddle.Tensor, x_proj_weight: paddle.Tensor,
                dt_proj_weight: paddle.Tensor, A: paddle.Tensor, D: paddle.Tensor, dt_bias: paddle.Tensor,
                points: Optional[QuantPoints] = None) -> paddle.Tensor:
    """Selective scan of Q(u), Q(delta), A, Q(B), Q(C + prompt); [dt, B, C] = Q(u) x_projᵀ,
    delta = Q(dt) dt_projᵀ.

    Args:
        u: float32 (B, L, D), in scan order.
        prompt: float32 (B, L, N), added to C.
        x_proj_weight: float32 (R + 2 N, D), R the rank of delta; quantized already, like all that follow.
        dt_proj_weight: float32 (D, R).
        A: float32 (D, N), negative.
        D, dt_bias: float32 (D,).
        points: quantizers ``u``, ``dt``, ``delta``, ``B``, ``C`` (behind the sum) and ``states``.

    Returns:
        float32 (B, L, D), as :func:`ppsr2q.ops.selective_scan`.
    """
    tensors = (u, prompt, x_proj_weight, dt_proj_weight, A, D, dt_bias)
    used = () if points is None else tuple(getattr(points, name, None) for name in POINTS)
    if dispatch.serves("state_space", tensors, used):
        from ppsr2q.ops import kernels
        return kernels.state_space(*tensors, points=points)
    return _state_space(*tensors, points)
