"""The weights that mix a rectifier group: from the layer's input (paper), or static."""
from __future__ import annotations

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from ppsr2q.core import distributed

SPACES = ("softmax", "free")


class DynamicGate(nn.Layer):
    """softmax(Linear(mean over tokens of the layer input)): (B, d_in) -> mixing weights.

    Starts uniform (zero weight and bias). The weights are averaged over the batch, so that one quantized weight
    serves it; in a data-parallel run over the batches of all ranks, so that every rank mixes alike (micro-batches of
    ``train.accumulate`` mix each for themselves).

    Args:
        d_in: channels of the layer's input.
        number: N, rectifiers in the group.
        per_sample: give (B, N) weights instead of their mean (N,).
    """

    needs_token_mean = True

    def __init__(self, d_in: int, number: int, per_sample: bool = False) -> None:
        super().__init__()
        zero = nn.initializer.Constant(0.0)
        self.linear = nn.Linear(d_in, number, weight_attr=paddle.ParamAttr(initializer=zero),
                                bias_attr=paddle.ParamAttr(initializer=zero))
        self.per_sample = per_sample

    def forward(self, token_mean: paddle.Tensor) -> paddle.Tensor:
        if not self.per_sample:
            token_mean = distributed.all_gather(token_mean)
        weights = F.softmax(self.linear(token_mean), axis=-1)
        return weights if self.per_sample else weights.mean(axis=0)


class StaticGate(nn.Layer):
    """Mixing weights that no input changes, (N,).

    Args:
        start: float (N,), the first weights.
        space: ``softmax``: non-negative weights that sum to one; ``free``: any real weights.
    """

    needs_token_mean = False

    def __init__(self, start: np.ndarray, space: str = "softmax") -> None:
        super().__init__()
        if space not in SPACES:
            raise ValueError(f"expected a space in {SPACES}, got {space!r}")
        self.space = space
        start = np.asarray(start, np.float32)
        values = np.log(np.maximum(start, 1e-30)) if space == "softmax" else start  # a gate may have underflown
        self.logits = self.create_parameter(list(start.shape), default_initializer=nn.initializer.Assign(values))

    def forward(self, token_mean=None) -> paddle.Tensor:
        return F.softmax(self.logits, axis=-1) if self.space == "softmax" else self.logits


def uniform_gate(number: int) -> StaticGate:
    """The static gate of the authors' released code: one trainable logit vector a layer, uniform at the start."""
    return StaticGate(np.full(number, 1 / number))
