"""Paddle binding of ``csrc/attention.h``."""
from __future__ import annotations

import ctypes
from typing import NamedTuple, Tuple

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.native import FLOAT, INT, POINTER, SIZE, pointer
from ppsr2q.ops.points import point_arguments

_NAMES = ("q", "k", "v", "table")
_POINTS = ("q", "k", "v", "map")
_COMMON = (POINTER,) * 4 + (FLOAT, POINTER, POINTER, SIZE) + (INT,) * 6


class _Call(NamedTuple):
    """What a call is apart from its tensors."""

    size: Tuple[int, int]
    heads: int
    window: int
    shift: int
    bits: Tuple[int, int, int, int]


def _arguments(tensors, bounds, call):
    batch, _, channels = tensors[0].shape
    head_dim = channels // call.heads
    return [*map(pointer, tensors), head_dim**-0.5, (ctypes.c_void_p * 4)(*map(pointer, bounds)),
            (ctypes.c_int * 4)(*call.bits), batch, *call.size, call.heads, head_dim, call.window, call.shift]


def _forward(tensors, bounds, call, keep_statistics=False):
    out = native.empty_like(tensors[0])
    statistics = None
    if keep_statistics:
        tokens = call.window**2
        statistics = native.empty([out.shape[0] * out.shape[1] // tokens, call.heads, 2, tokens])
    run = native.function("window_attention_forward", *_COMMON, POINTER, POINTER)
    status = run(*_arguments(tensors, bounds, call), pointer(out), pointer(statistics))
    native.check(status, "window_attention", dict(zip(_NAMES, tensors)), dict(zip(_POINTS, bounds)))
    return out, statistics


class _WindowAttention(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, q, k, v, table, q_bounds, k_bounds, v_bounds, map_bounds, call):
        tensors, bounds = (q, k, v, table), (q_bounds, k_bounds, v_bounds, map_bounds)
        out, statistics = _forward(tensors, bounds, call, keep_statistics=True)
        ctx.save_for_backward(*tensors, statistics, *(b for b in bounds if b is not None))
        ctx.call = call
        ctx.needs = [t is not None and not t.stop_gradient for t in (*tensors, *bounds)]
        return out

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensor()
        tensors, statistics, given = saved[:4], saved[4], iter(saved[5:])
        bounds = [next(given) if bits else None for bits in ctx.call.bits]
        grad = native.contiguous(grad)
        grads = [native.empty_like(t) for t in tensors]
        grad_bounds = native.empty([4, 2])
        run = native.function("window_attention_backward", *_COMMON, *(POINTER,) * 7)
        status = run(*_arguments(tensors, bounds, ctx.call), pointer(statistics), pointer(grad),
                     *map(pointer, grads[:3]), pointer(grads[3] if ctx.needs[3] else None),
                     pointer(grad_bounds))
        native.check(status, "window_attention", {})
        grads += list(grad_bounds)
        present = [True] * 4 + [b is not None for b in bounds]
        return tuple(g if needed else None for g, needed, there in zip(grads, ctx.needs, present) if there)


def window_attention(q, k, v, table, size, heads, window, shift=0, points=None):
    """Kernel form of :func:`ppsr2q.ops.window_attention`."""
    bounds, bits = zip(*(point_arguments(getattr(points, name, None)) for name in _POINTS))
    tensors = tuple(map(native.contiguous, (q, k, v, table)))
    _check(tensors, size, heads, window, shift)
    call = _Call(tuple(size), heads, window, shift, bits)
    bounds = tuple(map(native.contiguous, bounds))
    if native.needs_gradient(*tensors, *bounds):
        return _WindowAttention.apply(*tensors, *bounds, call)
    return _forward(tensors, bounds, call)[0]


def _check(tensors, size, heads, window, shift):
    batch, _, channels = tensors[0].shape
    tokens = size[0] * size[1]
    if channels % heads:
        raise ValueError(f"window_attention: {channels} channels cannot be divided into {heads} heads")
    if size[0] % window or size[1] % window:
        raise ValueError(f"window_attention: size {tuple(size)} must be multiples of the window, {window}")
    if not 0 <= shift < window:
        raise ValueError(f"window_attention: shift must be in [0, {window}), got {shift}")
    expected = ([batch, tokens, channels],) * 3 + ([(2 * window - 1)**2, heads],)
    for name, tensor, shape in zip(_NAMES, tensors, expected):
        if list(tensor.shape) != shape:
            raise ValueError(f"window_attention: {name} must have shape {shape}, got {list(tensor.shape)}")
