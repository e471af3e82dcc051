"""The uniform fake quantizer of SPR²Q: Eq. 1 forward, Eq. 8 backward (also 2DQuant's)."""
from __future__ import annotations

import numpy as np
import paddle

from ppsr2q.ops import dispatch


def levels(bits: int) -> int:
    """The largest code, 2^bits - 1."""
    return 2**bits - 1


# numpy, torch and Paddle 3 round half to even; Paddle 2.6 rounds it away from zero
_ROUNDS_HALF_TO_EVEN = float(paddle.round(paddle.full([], 2.5))) == 2.0


def round_half_even(x: paddle.Tensor) -> paddle.Tensor:
    """Nearest whole number, the even one of two that are equally near, on every version of Paddle."""
    if _ROUNDS_HALF_TO_EVEN:
        return paddle.round(x)
    half = x / paddle.full([], 2.0, x.dtype)
    return paddle.where(paddle.abs(x - paddle.trunc(x)) == 0.5, 2 * paddle.round(half), paddle.round(x))


def _step(bounds, bits):
    # a tensor as divisor: Paddle 2.6 multiplies by the rounded inverse of a number instead
    return (bounds[1] - bounds[0]) / paddle.full([], levels(bits), bounds.dtype)


def codes(x: paddle.Tensor, bounds: paddle.Tensor, bits: int) -> paddle.Tensor:
    """Integer codes round((clip(x, a, b) - a) / s) as float32, any shape; round half to even."""
    lower, upper = bounds[0], bounds[1]
    clipped = paddle.minimum(paddle.maximum(x, lower), upper)
    return round_half_even((clipped - lower) / _step(bounds, bits))


def quantize_dequantize(x: paddle.Tensor, bounds: paddle.Tensor, bits: int) -> paddle.Tensor:
    """Eq. 1 in plain Paddle operators, without a gradient for the bounds: x_q = r s + a."""
    return codes(x, bounds, bits) * _step(bounds, bits) + bounds[0]


def quantize_dequantize_constant(x: paddle.Tensor, lower: float, upper: float, bits: int) -> paddle.Tensor:
    """Eq. 1 with bounds that are numbers: the few operators an exported graph needs."""
    step = float((np.float32(upper) - np.float32(lower)) / np.float32(levels(bits)))
    position = round_half_even((paddle.clip(x, lower, upper) - lower) / step)
    return paddle.scale(position, step, lower)


class _FakeQuantizeReference(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, bounds, bits):
        ctx.save_for_backward(x, bounds)
        ctx.bits = bits
        ctx.needed = (not x.stop_gradient, not bounds.stop_gradient)  # Paddle insists on None for the others
        return quantize_dequantize(x, bounds, bits)

    @staticmethod
    def backward(ctx, grad):
        x, bounds = ctx.saved_tensor()
        lower, upper = bounds[0], bounds[1]
        below, above = (x <= lower).astype(x.dtype), (x >= upper).astype(x.dtype)
        inside = ((x >= lower) & (x <= upper)).astype(x.dtype)
        position = (paddle.minimum(paddle.maximum(x, lower), upper) - lower) / (upper - lower)
        rounding = codes(x, bounds, ctx.bits) / levels(ctx.bits) - position
        grad_bounds = paddle.stack([(grad * (below - rounding)).sum(), (grad * (above + rounding)).sum()])
        return tuple(g if needed else None for g, needed in zip((grad * inside, grad_bounds), ctx.needed))


def fake_quantize_reference(x: paddle.Tensor, bounds: paddle.Tensor, bits: int) -> paddle.Tensor:
    """Pure-Paddle :func:`fake_quantize`."""
    return _FakeQuantizeReference.apply(x, bounds, bits)


def fake_quantize(x: paddle.Tensor, bounds: paddle.Tensor, bits: int) -> paddle.Tensor:
    """Quantize and dequantize (Eq. 1): c = clip(x, a, b), s = (b - a)/(2^n - 1), x_q = round((c - a)/s) s + a.

    Args:
        x: float32, any shape.
        bounds: float32 [2], (a, b) with a < b.
        bits: n, 1 to 8.

    The gradient is Eq. 8 (straight through the rounding, ordinary differentiation elsewhere):
    dx_q/dx = 1[a <= x <= b]; dx_q/db = 1[x >= b] + r/L - (c - a)/(b - a); dx_q/da = 1[x <= a] - r/L + (c - a)/(b - a).
    """
    if not 1 <= bits <= 8 or list(bounds.shape) != [2]:
        raise ValueError(f"expected 1 to 8 bits and bounds of shape [2], got {bits} and {list(bounds.shape)}")
    if dispatch.serves("fake_quantize", (x, bounds)):
        from ppsr2q.ops import kernels
        return kernels.fake_quantize(x, bounds, bits)
    return fake_quantize_reference(x, bounds, bits)
