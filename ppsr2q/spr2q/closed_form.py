"""Increments and biases that training begins with: those that best correct each layer's output, in closed form.

Layer by layer, from the student's quantized inputs X and the full-precision network's outputs Y of the same tokens,

    min over ΔW and b of |X (W + ΔW) + b - Y|² / tokens + λ |ΔW|²,

so that a layer makes up for what the quantizers before it have done. λ is chosen, and whether to correct at all, by the
error of the layer, its weight quantized, on tokens that the fit has not seen.
"""
from __future__ import annotations

from typing import Callable, Dict, List, NamedTuple, Tuple

import numpy as np
import paddle
from paddle import nn

from ppsr2q import ops
from ppsr2q.quant.bounds import round_to_levels
from ppsr2q.quant.calibrate import CalibrationSettings, observe, pass_through
from ppsr2q.quant.convert import get_sublayer, named_quantizers
from ppsr2q.quant.fake_quantizer import FakeQuantizer
from ppsr2q.quant.layers import QuantLinear
from ppsr2q.spr2q.rectifier import rectifier_groups

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # λ, relative to the mean variance of the inputs
_TOKENS = 8192
_HELD_OUT = 4  # every fourth token is not fitted


def ridge(inputs: np.ndarray, outputs: np.ndarray, weight: np.ndarray, strength: float) -> np.ndarray:
    """ΔW of the module's equation, the bias solved for as well.

    Args:
        inputs: float (tokens, d_in).
        outputs: float (tokens, d_out).
        weight: W, float (d_in, d_out).
        strength: λ, relative to the mean variance of the inputs.

    Returns:
        float64 (d_in, d_out).
    """
    X, Y = inputs - inputs.mean(axis=0), outputs - outputs.mean(axis=0)
    covariance = X.T @ X / len(X)
    regular = covariance + strength * max(np.trace(covariance) / len(covariance), 1e-12) * np.eye(len(covariance))
    return np.linalg.solve(regular, X.T @ (Y - X @ weight) / len(X))


class _Candidate(NamedTuple):
    error: float
    increment: np.ndarray
    bounds: Tuple[float, float]
    bias: np.ndarray


def _bias(layer: QuantLinear) -> np.ndarray:
    return np.zeros(layer.weight.shape[1]) if layer.bias is None else layer.bias.numpy().astype(np.float64)


def _correct(layer: QuantLinear, inputs: np.ndarray, outputs: np.ndarray, settings: CalibrationSettings) -> None:
    """Set the increment, the bias and the weight's bounds of one layer; nothing where no correction helps."""
    weight, quantizer = layer.weight.numpy().astype(np.float64), layer.weight_quantizer
    held = np.arange(len(inputs)) % _HELD_OUT == _HELD_OUT - 1
    mean_in, mean_out = inputs[~held].mean(axis=0), outputs[~held].mean(axis=0)
    own_bias = _bias(layer)

    def candidate(increment, bounds, keep_bias=layer.bias is None):
        rounded = round_to_levels(weight + increment, quantizer.bounds_after(*bounds), quantizer.bits)
        bias = own_bias if keep_bias else mean_out - mean_in @ rounded
        error = ((inputs[held] @ rounded + bias - outputs[held])**2).mean()
        return _Candidate(float(error), increment, bounds, bias)
    zero = np.zeros_like(weight)
    bounds = tuple(quantizer.effective_bounds().numpy().astype(np.float64))
    candidates = [candidate(zero, bounds, keep_bias=True), candidate(zero, bounds)]
    for strength in RIDGES:
        increment = layer.weight_delta.nearest(ridge(inputs[~held], outputs[~held], weight, strength))
        candidates.append(candidate(increment, settings.search(weight + increment, quantizer.bits)))
    best = min(candidates, key=lambda c: c.error)
    if best.increment.any():
        layer.weight_delta.start_at(best.increment)
    if layer.bias is not None:
        layer.bias.set_value(best.bias.astype(np.float32))
    if best.bounds != bounds:
        quantizer.set_bounds(*best.bounds)


class _SameRouting:
    """A router (``ops.route``) that answers in its second pass as in its first: rows of both passes are then the same
    tokens, also in the order of the scan."""

    def __init__(self) -> None:
        self._first = None

    def __call__(self, logits: paddle.Tensor) -> "ops.Routing":
        self._first = ops.route(logits) if self._first is None else self._first
        return self._first


def closed_form_start(student: nn.Layer, batch: paddle.Tensor, settings: CalibrationSettings = CalibrationSettings(),
                      on_layer: Callable[[], None] = lambda: None) -> None:
    """Give every rectified layer, in the order of the network, its increment, bias and bounds of the weight.

    A layer sees what the corrected layers before it make of the batch. Layers whose input stays in floating point are
    left at zero.

    Args:
        student: with bounds, and rectifiers at zero whose gates are uniform.
        batch: the network's input, float32 (B, 3, h, w).
        settings: how bounds of corrected weights are searched; the seed is that of the tokens that are looked at.
        on_layer: called after each layer (progress).
    """
    layers: Dict[str, QuantLinear] = {name: get_sublayer(student, name) for name in rectifier_groups(student)}
    routed = [layer for layer in student.sublayers() if hasattr(layer, "router")]
    exact: Dict[str, np.ndarray] = {}

    def sample(x):
        x = x.reshape([-1, x.shape[-1]])
        rows = np.random.default_rng(settings.seed).permutation(x.shape[0])[:_TOKENS]  # no token twice, fitted and held out
        return paddle.index_select(x, paddle.to_tensor(rows)).numpy().astype(np.float64)

    def see(name):
        def keep_output(quantizer, x):
            exact[name] = sample(x) @ layers[name].weight.numpy() + _bias(layers[name])
            return x
        return keep_output

    def correct(name):
        def correct_layer(quantizer, x):
            quantized = quantizer.act(x)
            _correct(layers[name], sample(quantized), exact.pop(name), settings)
            on_layer()
            return quantized
        return correct_layer
    rectified = {f"{name}.input": name for name in layers if isinstance(layers[name].input_quantizer, FakeQuantizer)}
    routers: List = [layer.router for layer in routed]
    for layer in routed:
        layer.router = _SameRouting()
    try:
        observe(student, batch, {name: see(rectified[name]) if name in rectified else pass_through
                                 for name in named_quantizers(student)})
        observe(student, batch, {name: correct(layer) for name, layer in rectified.items()})
    finally:
        for layer, router in zip(routed, routers):
            layer.router = router
