"""Paddle bindings of ``csrc/depthwise.h``."""
from __future__ import annotations

from typing import NamedTuple, Tuple

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.native import FLOAT, INT, POINTER, SIZE, pointer
from ppsr2q.ops.norm import check_norm
from ppsr2q.ops.points import input_point, point_arguments, weight_of


class _Operator(NamedTuple):
    """A C function pair; every tensor but x may be None.

    Attributes:
        tensors: names of the tensors before the bounds, x first, as errors show them.
        x_channels: how many channels x has for each of the convolution's.
    """

    name: str
    tensors: Tuple[str, ...]
    x_channels: int


_GATED_MIXING = _Operator("gated_mixing", ("x", "norm weight", "norm bias", "weight", "bias"), 2)
_POSITIONAL_GATE = _Operator("positional_gate", ("x", "weight", "bias"), 1)


class _Call(NamedTuple):
    """What a call is apart from its tensors."""

    operator: _Operator
    size: Tuple[int, int]
    channels: int
    kernel: int
    epsilon: float  # of the normalization; unused without one
    bits: int


def _function(operator, direction, outputs):
    norm = (POINTER, POINTER, FLOAT) if operator.x_channels == 2 else ()
    common = (POINTER, *norm, POINTER, POINTER, POINTER, INT, SIZE, INT, INT, INT, INT)
    return native.function(f"{operator.name}_{direction}", *common, *(POINTER,) * outputs)


def _arguments(tensors, bounds, call):
    *first, weight, bias = map(pointer, tensors)
    epsilon = [call.epsilon] if call.operator.x_channels == 2 else []
    return [*first, *epsilon, weight, bias, pointer(bounds), call.bits, tensors[0].shape[0], *call.size,
            call.channels, call.kernel]


def _forward(tensors, bounds, call):
    batch, tokens, _ = tensors[0].shape
    y = native.empty([batch, tokens, call.channels])
    status = _function(call.operator, "forward", 1)(*_arguments(tensors, bounds, call), pointer(y))
    native.check(status, call.operator.name, dict(zip(call.operator.tensors, tensors)), {"input": bounds})
    return y


class _Depthwise(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, call, bounds, *tensors):
        ctx.call = call
        ctx.present = [t is not None for t in (bounds, *tensors)]
        ctx.needs = [t is not None and not t.stop_gradient for t in (bounds, *tensors)]
        ctx.save_for_backward(*(t for t in (bounds, *tensors) if t is not None))
        return _forward(tensors, bounds, call)

    @staticmethod
    def backward(ctx, grad):
        call, saved = ctx.call, iter(ctx.saved_tensor())
        bounds, *tensors = (next(saved) if present else None for present in ctx.present)
        grad = native.contiguous(grad)
        grad_bounds = native.empty([2])
        grads = [native.empty_like(tensors[0])]
        grads += [native.empty_like(t) if needed else None for t, needed in zip(tensors[1:], ctx.needs[2:])]
        run = _function(call.operator, "backward", 2 + len(tensors))
        outputs = map(pointer, (*grads, grad_bounds))
        status = run(*_arguments(tensors, bounds, call), pointer(grad), *outputs)
        native.check(status, call.operator.name, {})
        return tuple(g if needed else None
                     for g, needed, present in zip((grad_bounds, *grads), ctx.needs, ctx.present) if present)


def _run(operator, x, norm, conv, size):
    bounds, bits = point_arguments(input_point(conv))
    weight = weight_of(conv)
    tensors = (x,) + ((norm.weight, norm.bias) if norm is not None else ()) + (weight, conv.bias)
    epsilon = getattr(norm, "_epsilon", 0.0)
    call = _Call(operator, tuple(size), weight.shape[0], weight.shape[-1], epsilon, bits)
    _check(call, x, weight)
    if norm is not None:
        check_norm(operator.name, norm, call.channels)
    bounds, tensors = native.contiguous(bounds), tuple(map(native.contiguous, tensors))
    if native.needs_gradient(bounds, *tensors):
        return _Depthwise.apply(call, bounds, *tensors)
    return _forward(tensors, bounds, call)


def _check(call, x, weight):
    if list(weight.shape) != [call.channels, 1, call.kernel, call.kernel] or call.kernel % 2 == 0:
        raise ValueError(f"{call.operator.name}: the convolution must be depth-wise with an odd square "
                         f"kernel, got a weight of shape {list(weight.shape)}")
    expected = [call.size[0] * call.size[1], call.operator.x_channels * call.channels]
    if x.ndim != 3 or list(x.shape[1:]) != expected:
        raise ValueError(f"{call.operator.name}: x must have shape [B, {expected[0]}, {expected[1]}], "
                         f"got {list(x.shape)}")


def gated_mixing(x, norm, conv, size):
    """Kernel form of :func:`ppsr2q.ops.gated_mixing`."""
    return _run(_GATED_MIXING, x, norm, conv, size)


def positional_gate(x, conv, size):
    """Kernel form of :func:`ppsr2q.ops.positional_gate`."""
    return _run(_POSITIONAL_GATE, x, None, conv, size)
