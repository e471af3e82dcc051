"""Paddle binding of ``csrc/scan.h``."""
from __future__ import annotations

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.native import INT, POINTER, SIZE, pointer
from ppsr2q.ops.points import point_arguments

_NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
_CHUNK, _ALIGN = 32, 16  # SCAN_CHUNK and SCAN_ALIGN of csrc/scan.h
_COMMON = (POINTER,) * 8 + (INT, SIZE, SIZE, INT, INT)


def empty_checkpoints(u, states):
    """Memory for the states of every _CHUNK tokens, as both scans lay them out."""
    batch, length, channels = u.shape
    return native.empty([batch, -(-length // _CHUNK), -(-channels // _ALIGN) * _ALIGN, states])


def _common_arguments(tensors, bounds, bits):
    batch, length, channels = tensors[0].shape
    return [*map(pointer, tensors), pointer(bounds), bits, batch, length, channels, tensors[2].shape[-1]]


def _forward(tensors, bounds, bits, keep_checkpoints=False, return_states=False):
    batch, length, channels = tensors[0].shape
    count = tensors[2].shape[-1]
    y = native.empty_like(tensors[0])
    checkpoints = empty_checkpoints(tensors[0], count) if keep_checkpoints else None
    states = native.empty([batch, length, channels, count]) if return_states else None
    run = native.function("selective_scan_forward", *_COMMON, POINTER, POINTER, POINTER)
    status = run(*_common_arguments(tensors, bounds, bits), pointer(y), pointer(checkpoints), pointer(states))
    native.check(status, "selective_scan", dict(zip(_NAMES, tensors)), {"states": bounds})
    return y, checkpoints, states


class _SelectiveScan(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, bounds, bits):
        tensors = (u, delta, A, B, C, D, delta_bias)
        y, checkpoints, _ = _forward(tensors, bounds, bits, keep_checkpoints=True)
        ctx.save_for_backward(*tensors, checkpoints, *([] if bounds is None else [bounds]))
        ctx.bits = bits
        ctx.needs = [not t.stop_gradient for t in (*tensors, *([] if bounds is None else [bounds]))]
        return y

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensor()
        tensors, checkpoints, bounds = saved[:7], saved[7], saved[8] if len(saved) > 8 else None
        grad = native.contiguous(grad)
        gradients = [native.empty_like(t) for t in (*tensors, *saved[8:])]
        run = native.function("selective_scan_backward", *_COMMON, *(POINTER,) * 10)
        status = run(*_common_arguments(tensors, bounds, ctx.bits), pointer(checkpoints), pointer(grad),
                     *map(pointer, gradients), *([None] if bounds is None else []))
        native.check(status, "selective_scan", {})
        return tuple(g if needed else None for g, needed in zip(gradients, ctx.needs))


def selective_scan(u, delta, A, B, C, D, delta_bias, state_point=None, return_states=False):
    """Kernel form of :func:`ppsr2q.ops.selective_scan`."""
    bounds, bits = point_arguments(state_point)
    given = (u, delta, A, B, C, D, delta_bias)
    tensors = tuple(map(native.contiguous, given))
    _check_shapes(tensors)
    if native.needs_gradient(*tensors, bounds):
        return _SelectiveScan.apply(*tensors, bounds, bits)
    y, _, states = _forward(tensors, bounds, bits, return_states=return_states)
    return (y, states) if return_states else y


def _check_shapes(tensors):
    batch, length, channels = tensors[0].shape
    states = tensors[2].shape[-1]
    expected = ([batch, length, channels],) * 2 + ([channels, states],) + ([batch, length, states],) * 2 + \
        ([channels],) * 2
    for name, tensor, shape in zip(_NAMES, tensors, expected):
        if list(tensor.shape) != shape:
            raise ValueError(f"selective_scan: {name} must have shape {shape}, got {list(tensor.shape)}")
