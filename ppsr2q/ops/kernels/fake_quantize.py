"""Paddle binding of ``csrc/quantize.h``."""
from __future__ import annotations

import math

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.native import INT, POINTER, SIZE, pointer


def _forward(x, bounds, bits):
    y = native.empty_like(x)
    run = native.function("fake_quantize_forward", POINTER, POINTER, INT, SIZE, POINTER)
    status = run(pointer(x), pointer(bounds), bits, math.prod(x.shape), pointer(y))
    native.check(status, "fake_quantize", {"x": x}, {"bounds": bounds})
    return y


class _FakeQuantize(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, bounds, bits):
        ctx.save_for_backward(x, bounds)
        ctx.bits, ctx.needs_x, ctx.needs_bounds = bits, not x.stop_gradient, not bounds.stop_gradient
        return _forward(x, bounds, bits)

    @staticmethod
    def backward(ctx, grad):
        x, bounds = ctx.saved_tensor()
        grad = native.contiguous(grad)
        grad_x = native.empty_like(x) if ctx.needs_x else None
        grad_bounds = native.empty_like(bounds)
        run = native.function("fake_quantize_backward", POINTER, POINTER, INT, POINTER, SIZE, POINTER,
                              POINTER)
        status = run(pointer(x), pointer(bounds), ctx.bits, pointer(grad), math.prod(x.shape), pointer(grad_x),
                     pointer(grad_bounds))
        native.check(status, "fake_quantize", {})
        return grad_x, grad_bounds if ctx.needs_bounds else None


def fake_quantize(x: paddle.Tensor, bounds: paddle.Tensor, bits: int) -> paddle.Tensor:
    """Kernel form of :func:`ppsr2q.ops.fake_quantize`."""
    x, bounds = native.contiguous(x), native.contiguous(bounds)
    if native.needs_gradient(x, bounds):
        return _FakeQuantize.apply(x, bounds, bits)
    return _forward(x, bounds, bits)
