"""Where a model can be quantized, and how operators read a layer that may or may not be.

A model marks every tensor that can be quantized with a :class:`QuantPoint`, and hands the points to the operators
instead of calling them, because a fused operator quantizes inside. ``quant.convert`` replaces a point by a
``FakeQuantizer`` (a subclass), and ``Linear``/``Conv2D`` layers by their quantized forms; the functions below read
both kinds of layer, so that a model is written once.
"""
from __future__ import annotations

from typing import Optional, Tuple

import paddle
from paddle import nn


class QuantPoint(nn.Layer):
    """A named tensor that can be quantized; the identity until ``quant.convert`` replaces it.

    Attributes:
        bits: None here; 1 to 8 in a ``FakeQuantizer``.
        observing: True while a range search wants to see the tensor itself; no fused operator may hide it then.
    """

    bits: Optional[int] = None
    observing: bool = False

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x

    def effective_bounds(self) -> Optional[paddle.Tensor]:
        """float32 [2], the bounds (a, b) that Eq. 1 uses, differentiable; None when nothing is quantized here."""
        return None


class QuantPoints(nn.Layer):
    """A group of named points: ``QuantPoints("q", "k").q`` is a :class:`QuantPoint`."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_sublayer(name, QuantPoint())


def quantize(x: paddle.Tensor, point: Optional[QuantPoint]) -> paddle.Tensor:
    """``point(x)``, or ``x`` when there is no point."""
    return x if point is None else point(x)


def point_arguments(point: Optional[QuantPoint]) -> Tuple[Optional[paddle.Tensor], int]:
    """What a kernel needs of a point: (bounds float32 [2] or None, bits or 0)."""
    if point is None or point.bits is None:
        return None, 0
    return point.effective_bounds(), point.bits


def input_point(layer: nn.Layer) -> Optional[QuantPoint]:
    """The quantizer of a layer's input; None for a layer that is not quantized."""
    return getattr(layer, "input_quantizer", None)


def needs_token_mean(layer: nn.Layer) -> bool:
    """Whether the layer's weight depends on the mean of its input over tokens (a dynamic gate)."""
    return getattr(layer, "needs_token_mean", False)


def has_weight_per_sample(layer: nn.Layer) -> bool:
    """Whether each sample of a batch has a weight of its own (a dynamic gate that is not averaged): no kernel does."""
    return getattr(layer, "has_weight_per_sample", False)


def weight_of(layer: nn.Layer, token_mean: Optional[paddle.Tensor] = None) -> paddle.Tensor:
    """The weight a layer computes with, in the layer's own layout.

    Args:
        layer: ``nn.Linear``, ``nn.Conv2D`` or a quantized form.
        token_mean: float32 (B, d_in), needed when :func:`needs_token_mean` says so.
    """
    if hasattr(layer, "quantized_weight"):
        return layer.quantized_weight(token_mean)
    return layer.weight


def weight_matrix(layer: nn.Layer, token_mean: Optional[paddle.Tensor] = None) -> paddle.Tensor:
    """The weight of a Linear or of a 1x1 Conv2D as a [d_in, d_out] matrix ((B, d_in, d_out) with one weight a sample)."""
    weight = weight_of(layer, token_mean)
    if weight.ndim == 4:
        return weight.reshape(weight.shape[:2]).transpose([1, 0])
    return weight
