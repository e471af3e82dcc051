"""Layer normalization whose gradient holds while its parameters are frozen."""
from __future__ import annotations

import paddle
from paddle import nn
from paddle.nn import functional as F


def check_norm(operator: str, norm: nn.LayerNorm, channels: int) -> None:
    """Kernels read ``channels`` values of scale and shift.

    Raises:
        ValueError: the norm is over another number of channels.
    """
    if list(norm._normalized_shape) != [channels]:
        raise ValueError(f"{operator}: the norm is over {list(norm._normalized_shape)}, x has {channels} channels")


def layer_norm(x: paddle.Tensor, norm: nn.LayerNorm) -> paddle.Tensor:
    """``norm(x)`` in plain Paddle, with the right gradient of x.

    On the CPU, Paddle 3.3.1 leaves the scale out of the gradient of x when the scale is frozen, as all norms are while
    rectifiers train; so a frozen scale is applied by operators of its own.

    Args:
        x: float32 (..., C).
        norm: over the last axis.

    Returns:
        float32 (..., C).
    """
    if not paddle.in_dynamic_mode() or norm.weight is None or not norm.weight.stop_gradient or x.stop_gradient:
        return nn.LayerNorm.forward(norm, x)
    y = F.layer_norm(x, norm._normalized_shape, epsilon=norm._epsilon) * norm.weight
    return y if norm.bias is None else y + norm.bias


class FrozenLayerNorm(nn.LayerNorm):
    """A LayerNorm that computes by :func:`layer_norm`, for networks that call their norms themselves."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return layer_norm(x, self)
