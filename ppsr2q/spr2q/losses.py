"""The hybrid distillation loss (SPR²Q Eq. 4-6): pixels and block features of the full-precision network."""
from __future__ import annotations

from typing import Dict, List, Sequence

import numpy as np
import paddle

from ppsr2q import ops
from ppsr2q.core.config import LossConfig
from ppsr2q.ops.distance import SMALLEST_NORM


def pixel_loss(student: paddle.Tensor, teacher: paddle.Tensor) -> paddle.Tensor:
    """Mean absolute difference of the outputs, scalar (Eq. 4)."""
    return (student - teacher).abs().mean()


def feature_loss(student: paddle.Tensor, teacher: paddle.Tensor, settings: LossConfig) -> paddle.Tensor:
    """Squared difference of one block's features (B, tokens, C), scalar; the teacher's are constant.

    Args:
        settings: ``feature_norm``: ``l2``: both features are divided by their own detached L2 norm per sample over tokens
            and channels (2DQuant); ``none``: as they are (Eq. 5); ``teacher``: both by the teacher's norm, so that the
            student's length counts (with its own norm detached, the gradient always shortens the student's features).
            ``feature_reduction``: over tokens and channels, ``sum`` or ``mean``; always the mean over samples.
    """
    distance = ops.feature_distance(student, teacher, unit=settings.feature_norm == "l2")
    if settings.feature_norm == "teacher":
        distance = distance / paddle.clip((teacher * teacher).sum(list(range(1, teacher.ndim))), min=SMALLEST_NORM**2)
    distance = distance.mean()
    return distance / np.prod(student.shape[1:]) if settings.feature_reduction == "mean" else distance


def hybrid_loss(student: paddle.Tensor, teacher: paddle.Tensor, student_features: Sequence[paddle.Tensor],
                teacher_features: Sequence[paddle.Tensor], settings: LossConfig) -> Dict[str, paddle.Tensor]:
    """L = L_pixel + λ L_feature (Eq. 6), λ = ``feature_weight``, the mean over blocks.

    Returns:
        ``loss`` and its terms: ``pixel``, ``feature``, and ``feature/NN`` of every block (all scalars).
    """
    blocks: List[paddle.Tensor] = [feature_loss(s, t, settings) for s, t in zip(student_features, teacher_features)]
    pixel, feature = pixel_loss(student, teacher), paddle.stack(blocks).mean()
    terms = {"loss": pixel + settings.feature_weight * feature, "pixel": pixel, "feature": feature}
    terms.update({f"feature/{i:02d}": block.detach() for i, block in enumerate(blocks)})
    return terms
