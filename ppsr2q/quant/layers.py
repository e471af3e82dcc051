"""Linear and Conv2D layers whose weight and input pass through quantizers."""
from __future__ import annotations

from typing import Optional

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppsr2q import ops


class _QuantLayer(nn.Layer):
    """State that both kinds share: the float weight, two quantizers and, where a rectifier got in, its increment.

    Attributes:
        weight, bias: those of the float layer.
        weight_quantizer, input_quantizer: :class:`FakeQuantizer`, or a plain QuantPoint where nothing is quantized.
        weight_delta: None, or a Layer that gives the increment ΔW in the weight's layout, where it ``needs_token_mean``
            from that of the layer's input (B, d_in), and then, if it is ``per_sample``, one for each of the batch.
    """

    def __init__(self, layer: nn.Layer, weight_quantizer: ops.QuantPoint, input_quantizer: ops.QuantPoint) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer
        self.weight_delta: Optional[nn.Layer] = None

    @property
    def needs_token_mean(self) -> bool:
        return self.weight_delta is not None and self.weight_delta.needs_token_mean

    @property
    def has_weight_per_sample(self) -> bool:
        return self.needs_token_mean and self.weight_delta.per_sample

    def quantized_weight(self, token_mean: Optional[paddle.Tensor] = None) -> paddle.Tensor:
        """Q(W + ΔW) in the layer's layout."""
        weight = self.weight
        if self.weight_delta is not None:
            weight = weight + self.weight_delta(token_mean)
        return self.weight_quantizer(weight)


class QuantLinear(_QuantLayer):
    """y = Q(x) Q(W + ΔW) + bias; weight [d_in, d_out] as in ``nn.Linear``."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return ops.linear(x, self)


class QuantConv2D(_QuantLayer):
    """Convolution of a quantized image with a quantized weight; the padding is an exact 0, added after the quantizer.

    Only zero padding, NCHW.
    """

    def __init__(self, layer: nn.Conv2D, weight_quantizer: ops.QuantPoint, input_quantizer: ops.QuantPoint) -> None:
        super().__init__(layer, weight_quantizer, input_quantizer)
        if layer._padding_mode != "zeros" or layer._data_format != "NCHW":
            raise ValueError("QuantConv2D supports NCHW convolutions with zero padding, got "
                             f"{layer._data_format} with {layer._padding_mode} padding")
        self._arguments = dict(stride=layer._stride, padding=layer._padding, dilation=layer._dilation,
                               groups=layer._groups)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.conv2d(self.input_quantizer(x), self.quantized_weight(), self.bias, **self._arguments)
