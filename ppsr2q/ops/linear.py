"""Linear layers on tokens, alone or fed by a LayerNorm, with whatever quantizers they carry."""
from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppsr2q.ops import dispatch
from ppsr2q.ops.norm import layer_norm
from ppsr2q.ops.points import has_weight_per_sample, input_point, needs_token_mean, quantize, weight_matrix


def _apply(x, layer, weight, residual=None, skip=None):
    if weight.ndim == 3:  # one weight a sample: no library kernel adds the bias of a batched product
        y = paddle.matmul(x, weight)
        y = y if layer.bias is None else y + layer.bias
    else:
        y = F.linear(x, weight, layer.bias)
    if residual is not None:
        y = y + residual
    return y if skip is None else y + skip[0] * skip[1]


def _token_mean(x: paddle.Tensor, layers: Sequence[nn.Layer]) -> Optional[paddle.Tensor]:
    if not any(needs_token_mean(layer) for layer in layers):
        return None
    x = x.detach()
    return x.mean(axis=list(range(1, x.ndim - 1))) if x.ndim > 2 else x


def _beyond(layers: Sequence[nn.Layer]) -> Optional[str]:
    return "there is one weight a sample" if any(map(has_weight_per_sample, layers)) else None


def linear_reference(x, layer, residual=None, skip=None):
    """Pure-Paddle :func:`linear`."""
    quantized = quantize(x, input_point(layer))  # before the weight: a pass that observes inputs may change it
    return _apply(quantized, layer, weight_matrix(layer, _token_mean(x, [layer])), residual, skip)


def linear(x: paddle.Tensor, layer: nn.Layer, residual: Optional[paddle.Tensor] = None,
           skip: Optional[Tuple[paddle.Tensor, paddle.Tensor]] = None) -> paddle.Tensor:
    """Q(x) W_q + bias (+ residual) (+ skip · scale).

    Args:
        x: float32 (..., d_in).
        layer: ``nn.Linear``, a 1x1 ``nn.Conv2D`` (applied to the last axis), or a quantized form of either. With one
            weight a sample there is no kernel.
        residual: float32 (..., d_out), added to the result.
        skip: a second addend float32 (..., d_out) and the learned scale of its channels, float32 (d_out,).

    Returns:
        float32 (..., d_out).
    """
    tensors = (x, residual, None if skip is None else skip[0])
    if dispatch.serves("linear", tensors, (input_point(layer),), _beyond([layer])):
        from ppsr2q.ops import kernels
        return kernels.linear(x, layer, residual, skip)
    return linear_reference(x, layer, residual, skip)


def norm_linear_reference(x, norm, layers):
    """Pure-Paddle :func:`norm_linear`."""
    normed = layer_norm(x, norm)
    mean = _token_mean(normed, layers)
    return [_apply(quantize(normed, input_point(layer)), layer, weight_matrix(layer, mean))
            for layer in layers]


def norm_linear(x: paddle.Tensor, norm: nn.LayerNorm, layers: Sequence[nn.Layer]) -> List[paddle.Tensor]:
    """[Q_i(LayerNorm(x)) W_i + bias_i for every layer i]: one normalization feeds several (quantized) linear layers.

    Args:
        x: float32 (B, tokens, d_in).
        norm: normalization over the last axis; there is no kernel for one without scale or shift.
        layers: as in :func:`linear`; each has its own input quantizer.

    Returns:
        A list of float32 (B, tokens, d_out_i).
    """
    points = tuple(input_point(layer) for layer in layers)
    bare = "the norm has no scale or no shift" if norm.weight is None or norm.bias is None else None
    if dispatch.serves("norm_linear", (x,), points, bare or _beyond(layers)):
        from ppsr2q.ops import kernels
        return kernels.norm_linear(x, norm, layers)
    return norm_linear_reference(x, norm, layers)
