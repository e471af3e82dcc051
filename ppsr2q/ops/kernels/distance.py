"""Paddle binding of ``csrc/distance.h``."""
from __future__ import annotations

import math

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.native import INT, POINTER, SIZE, pointer


def _forward(student, teacher, unit):
    batch = student.shape[0]
    inverses, distance = native.empty([2, batch]), native.empty([batch])
    run = native.function("feature_distance_forward", POINTER, POINTER, SIZE, SIZE, INT, POINTER, POINTER)
    status = run(pointer(student), pointer(teacher), batch, math.prod(student.shape[1:]), unit, pointer(inverses),
                 pointer(distance))
    native.check(status, "feature_distance", {"student": student, "teacher": teacher})
    return distance, inverses


class _FeatureDistance(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, student, teacher, unit):
        distance, inverses = _forward(student, teacher, unit)
        ctx.save_for_backward(student, teacher, inverses)
        return distance

    @staticmethod
    def backward(ctx, grad):
        student, teacher, inverses = ctx.saved_tensor()
        grad, grad_student, batch = native.contiguous(grad), native.empty_like(student), student.shape[0]
        run = native.function("feature_distance_backward", POINTER, POINTER, SIZE, SIZE, *(POINTER,) * 3)
        status = run(pointer(student), pointer(teacher), batch, math.prod(student.shape[1:]), pointer(inverses),
                     pointer(grad), pointer(grad_student))
        native.check(status, "feature_distance", {})
        return grad_student, None


def feature_distance(student, teacher, unit):
    """Kernel form of :func:`ppsr2q.ops.feature_distance`."""
    student, teacher = native.contiguous(student), native.contiguous(teacher.detach())
    if native.needs_gradient(student):
        return _FeatureDistance.apply(student, teacher, unit)
    return _forward(student, teacher, unit)[0]
