"""Convolution of tokens over all channels, as between the stages of both networks."""
from __future__ import annotations

from typing import Optional, Tuple

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppsr2q.ops import dispatch
from ppsr2q.ops.points import input_point, quantize, weight_of


def convolution_reference(x, conv, size, residual=None):
    """Pure-Paddle :func:`convolution`."""
    image = quantize(x, input_point(conv)).transpose([0, 2, 1]).reshape([-1, x.shape[-1], size[0], size[1]])
    weight = weight_of(conv)
    y = F.conv2d(image, weight, conv.bias, padding=weight.shape[-1] // 2).flatten(2).transpose([0, 2, 1])
    return y if residual is None else y + residual


def convolution(x: paddle.Tensor, conv: nn.Layer, size: Tuple[int, int],
                residual: Optional[paddle.Tensor] = None) -> paddle.Tensor:
    """Conv(Q(x)) + bias (+ residual) of an image whose pixels are tokens.

    Args:
        x: float32 (B, H W, C) in raster order.
        conv: k x k ``nn.Conv2D``, k odd, stride 1, one group, zero padding of k // 2 after the quantizer; or its
            quantized form.
        size: (H, W).
        residual: float32 (B, H W, C_out), added to the result.

    Returns:
        float32 (B, H W, C_out).
    """
    if dispatch.serves("convolution", (x, residual), (input_point(conv),)):
        from ppsr2q.ops import kernels
        return kernels.convolution(x, conv, size, residual)
    return convolution_reference(x, conv, size, residual)
