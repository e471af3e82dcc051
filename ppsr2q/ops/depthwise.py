"""The two places where MambaIRv2 mixes neighbours with a depth-wise convolution."""
from __future__ import annotations

from typing import Tuple

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppsr2q.ops import dispatch
from ppsr2q.ops.norm import layer_norm
from ppsr2q.ops.points import input_point, quantize, weight_of


def depthwise(x: paddle.Tensor, conv: nn.Layer, size: Tuple[int, int]) -> paddle.Tensor:
    """Depth-wise convolution of tokens (B, H W, C); quantizes first and pads with an exact 0 afterwards."""
    channels = x.shape[-1]
    image = quantize(x, input_point(conv)).transpose([0, 2, 1]).reshape([-1, channels, size[0], size[1]])
    weight = weight_of(conv)
    image = F.conv2d(image, weight, conv.bias, padding=weight.shape[-1] // 2, groups=channels)
    return image.flatten(2).transpose([0, 2, 1])


def gated_mixing_reference(x, norm, conv, size):
    """Pure-Paddle :func:`gated_mixing`."""
    value, gate = paddle.split(F.gelu(x), 2, axis=-1)
    return value * depthwise(layer_norm(gate, norm), conv, size)


def gated_mixing(x: paddle.Tensor, norm: nn.LayerNorm, conv: nn.Layer, size: Tuple[int, int]) -> paddle.Tensor:
    """Middle of the gated feed-forward network: p · DWConv(Q(LayerNorm(g))) with (p, g) = split(GELU(x)).

    Args:
        x: float32 (B, H W, 2 C), the output of fc1; GELU is the exact one (erf).
        norm: over C channels.
        conv: depth-wise k x k convolution of C channels, k odd, zero padding after the quantizer.
        size: (H, W).

    Returns:
        float32 (B, H W, C).
    """
    if dispatch.serves("gated_mixing", (x,), (input_point(conv),)):
        from ppsr2q.ops import kernels
        return kernels.gated_mixing(x, norm, conv, size)
    return gated_mixing_reference(x, norm, conv, size)


def positional_gate_reference(x, conv, size):
    """Pure-Paddle :func:`positional_gate`."""
    return x * F.sigmoid(depthwise(x, conv, size))


def positional_gate(x: paddle.Tensor, conv: nn.Layer, size: Tuple[int, int]) -> paddle.Tensor:
    """Convolutional position encoding of the ASSM: x · sigmoid(DWConv(Q(x))).

    Args:
        x: float32 (B, H W, C).
        conv: depth-wise k x k convolution of C channels, k odd, zero padding after the quantizer.
        size: (H, W).

    Returns:
        float32 (B, H W, C).
    """
    if dispatch.serves("positional_gate", (x,), (input_point(conv),)):
        from ppsr2q.ops import kernels
        return kernels.positional_gate(x, conv, size)
    return positional_gate_reference(x, conv, size)
