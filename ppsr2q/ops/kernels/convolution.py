"""Paddle binding of ``csrc/dense_convolution.h``."""
from __future__ import annotations

from typing import NamedTuple, Tuple

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.native import INT, POINTER, SIZE, pointer
from ppsr2q.ops.points import input_point, point_arguments, weight_of

_NAMES = ("x", "weight", "bias", "residual")
_COMMON = (POINTER,) * 5 + (INT, SIZE, INT, INT, INT, INT, INT)


class _Call(NamedTuple):
    """What a call is apart from its tensors."""

    size: Tuple[int, int]
    inputs: int
    outputs: int
    kernel: int
    bits: int


def _arguments(tensors, bounds, call):
    return [*map(pointer, tensors), pointer(bounds), call.bits, tensors[0].shape[0], *call.size, call.inputs,
            call.outputs, call.kernel]


def _forward(tensors, bounds, call):
    y = native.empty([*tensors[0].shape[:2], call.outputs])
    run = native.function("convolution_forward", *_COMMON, POINTER)
    status = run(*_arguments(tensors, bounds, call), pointer(y))
    native.check(status, "convolution", dict(zip(_NAMES, tensors)), {"input": bounds})
    return y


class _Convolution(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, bounds, call):
        given = (x, weight, bias, residual, bounds)
        ctx.call = call
        ctx.needs = [None if t is None else not t.stop_gradient for t in given]
        ctx.save_for_backward(x, weight, *([] if bounds is None else [bounds]))
        return _forward(given[:4], bounds, call)

    @staticmethod
    def backward(ctx, grad):
        x, weight, *bounds = ctx.saved_tensor()
        _, needs_weight, needs_bias, needs_residual, _ = ctx.needs
        grad = native.contiguous(grad)
        grads = [native.empty_like(x), native.empty_like(weight) if needs_weight else None,
                 native.empty([ctx.call.outputs]) if needs_bias else None]
        grad_bounds = native.empty([2])
        run = native.function("convolution_backward", *_COMMON, *(POINTER,) * 5)
        status = run(*_arguments((x, weight, None, None), bounds[0] if bounds else None, ctx.call), pointer(grad),
                     *map(pointer, grads), pointer(grad_bounds))
        native.check(status, "convolution", {})
        grads.append(grad.clone() if needs_residual else None)  # Paddle adds other gradients of it in place
        return tuple(g if needed else None for g, needed in zip((*grads, grad_bounds), ctx.needs)
                     if needed is not None)


def convolution(x, conv, size, residual=None):
    """Kernel form of :func:`ppsr2q.ops.convolution`."""
    bounds, bits = point_arguments(input_point(conv))
    tensors = tuple(map(native.contiguous, (x, weight_of(conv), conv.bias, residual)))
    weight = tensors[1]
    call = _Call(tuple(size), weight.shape[1], weight.shape[0], weight.shape[-1], bits)
    _check(call, *tensors)
    if native.needs_gradient(*tensors, bounds):
        return _Convolution.apply(*tensors, native.contiguous(bounds), call)
    return _forward(tensors, native.contiguous(bounds), call)


def _check(call, x, weight, bias, residual):
    if weight.shape[2] != weight.shape[3] or call.kernel % 2 == 0:
        raise ValueError(f"convolution: the kernel must be square and odd, got a weight of shape {list(weight.shape)}")
    tokens = call.size[0] * call.size[1]
    if x.ndim != 3 or list(x.shape[1:]) != [tokens, call.inputs]:
        raise ValueError(f"convolution: x must have shape [B, {tokens}, {call.inputs}], got {list(x.shape)}")
    expected = [x.shape[0], tokens, call.outputs]
    if residual is not None and list(residual.shape) != expected:
        raise ValueError(f"convolution: residual must have shape {expected}, got {list(residual.shape)}")
