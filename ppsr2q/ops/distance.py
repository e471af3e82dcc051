"""How far a student's features are from its teacher's (the feature term of SPR²Q's loss, Eq. 5)."""
from __future__ import annotations

import paddle

from ppsr2q.ops import dispatch

SMALLEST_NORM = 1e-12


def feature_distance_reference(student, teacher, unit=True):
    """Pure-Paddle :func:`feature_distance`."""
    axes = list(range(1, student.ndim))

    def scaled(x):
        if not unit:
            return x
        constant = x.detach()
        norm = paddle.sqrt((constant * constant).sum(axis=axes, keepdim=True))
        return x / paddle.clip(norm, min=SMALLEST_NORM)

    difference = scaled(student) - scaled(teacher.detach())
    return (difference * difference).sum(axis=axes)


def feature_distance(student: paddle.Tensor, teacher: paddle.Tensor, unit: bool = True) -> paddle.Tensor:
    """Σ (s / ‖s‖ - t / ‖t‖)² of every sample.

    Args:
        student: float32 (B, ...).
        teacher: float32, shaped like the student's; a constant, it gets no gradient.
        unit: divide both by their L2 norms (at least 1e-12), which count as constants in the gradient, as 2DQuant does;
            otherwise Σ (s - t)².

    Returns:
        float32 (B,).
    """
    if student.shape != teacher.shape:
        raise ValueError(f"feature_distance: student {list(student.shape)} and teacher {list(teacher.shape)} must have "
                         f"one shape")
    if dispatch.serves("feature_distance", (student, teacher)):
        from ppsr2q.ops import kernels
        return kernels.feature_distance(student, teacher, unit)
    return feature_distance_reference(student, teacher, unit)
