"""Paddle binding of ``csrc/state_space.h``."""
from __future__ import annotations

import ctypes

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.kernels.scan import empty_checkpoints
from ppsr2q.ops.native import INT, POINTER, SIZE, pointer
from ppsr2q.ops.points import point_arguments
from ppsr2q.ops.state_space import POINTS

_NAMES = ("u", "prompt", "x_proj_weight", "dt_proj_weight", "A", "D", "dt_bias")
_COMMON = (POINTER, SIZE, SIZE, INT, INT)


class _Inputs(ctypes.Structure):
    """StateSpaceInputs of csrc/state_space.h."""

    _fields_ = [*((name, POINTER) for name in _NAMES), ("bounds", POINTER * len(POINTS)),
                ("bits", INT * len(POINTS)), ("rank", INT)]


class _Gradients(ctypes.Structure):
    """StateSpaceGradients of csrc/state_space.h."""

    _fields_ = [(name, POINTER) for name in (*_NAMES, "bounds")]


def _inputs(tensors, bounds, bits):
    count = len(POINTS)
    return _Inputs(*map(pointer, tensors), (POINTER * count)(*map(pointer, bounds)), (INT * count)(*bits),
                   tensors[3].shape[1])


def _forward(tensors, bounds, bits, keep_checkpoints):
    u, states = tensors[0], tensors[4].shape[1]
    y, checkpoints = native.empty_like(u), empty_checkpoints(u, states) if keep_checkpoints else None
    inputs = _inputs(tensors, bounds, bits)
    run = native.function("state_space_forward", *_COMMON, POINTER, POINTER)
    status = run(ctypes.addressof(inputs), *u.shape, states, pointer(y), pointer(checkpoints))
    native.check(status, "state_space", dict(zip(_NAMES, tensors)), dict(zip(POINTS, bounds)))
    return y, checkpoints


class _StateSpace(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, bits, *given):
        tensors, bounds = given[:len(_NAMES)], given[len(_NAMES):]
        y, checkpoints = _forward(tensors, bounds, bits, keep_checkpoints=True)
        ctx.save_for_backward(checkpoints, *(t for t in given if t is not None))
        ctx.bits = bits
        ctx.needs = [None if t is None else not t.stop_gradient for t in given]
        return y

    @staticmethod
    def backward(ctx, grad):
        checkpoints, *saved = ctx.saved_tensor()
        saved = iter(saved)
        given = [None if need is None else next(saved) for need in ctx.needs]
        tensors, bounds = given[:len(_NAMES)], given[len(_NAMES):]
        u, states = tensors[0], tensors[4].shape[1]
        grad = native.contiguous(grad)
        grads = [native.empty_like(t) for t in tensors]
        grad_bounds = native.empty([len(POINTS), 2])
        inputs = _inputs(tensors, bounds, ctx.bits)
        outputs = _Gradients(*map(pointer, grads), pointer(grad_bounds))
        run = native.function("state_space_backward", *_COMMON, POINTER, POINTER, POINTER)
        status = run(ctypes.addressof(inputs), *u.shape, states, pointer(checkpoints), pointer(grad),
                     ctypes.addressof(outputs))
        native.check(status, "state_space", {})
        grads += list(grad_bounds)
        return tuple(g if need else None for g, need in zip(grads, ctx.needs) if need is not None)


def state_space(u, prompt, x_proj_weight, dt_proj_weight, A, D, dt_bias, points=None):
    """Kernel form of :func:`ppsr2q.ops.state_space`."""
    bounds, bits = zip(*(point_arguments(getattr(points, name, None)) for name in POINTS))
    tensors = tuple(map(native.contiguous, (u, prompt, x_proj_weight, dt_proj_weight, A, D, dt_bias)))
    bounds = tuple(map(native.contiguous, bounds))
    _check_shapes(tensors)
    if native.needs_gradient(*tensors, *bounds):
        return _StateSpace.apply(bits, *tensors, *bounds)
    return _forward(tensors, bounds, bits, keep_checkpoints=False)[0]


def _check_shapes(tensors):
    batch, length, channels = tensors[0].shape
    rank, states = tensors[3].shape[-1], tensors[4].shape[-1]
    expected = ([batch, length, channels], [batch, length, states], [rank + 2 * states, channels],
                [channels, rank], [channels, states], [channels], [channels])
    for name, tensor, shape in zip(_NAMES, tensors, expected):
        if list(tensor.shape) != shape:
            raise ValueError(f"state_space: {name} must have shape {shape}, got {list(tensor.shape)}")
