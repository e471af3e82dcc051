"""Operators of quantized super-resolution networks in ONNX terms, each in the form that engines run fastest.

Every function takes a :class:`GraphBuilder` first and returns value names. Tokens are float32 (L, C).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
from onnx import TensorProto

from ppsr2q.deploy.onnx_graph import DOMAIN, GraphBuilder, Value, body
from ppsr2q.deploy.packed import TensorQuantizer

NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Form:
    """How operators are written that engines run in different ways.

    Attributes:
        integer: QuantizeLinear/DequantizeLinear pairs around the product, which engines turn into int8 kernels;
            otherwise the quantizer's arithmetic in float32, which any engine computes as it stands.
        activation: dtype of activation codes. ONNX Runtime and OpenVINO take ``uint8``; TensorRT accepts symmetric
            ``int8`` only.
        scan_operator: scans are operators of our own domain, which an extension of the engine computes.
    """

    integer: bool
    activation: type = np.uint8
    scan_operator: bool = False


def fake_quantize(g: GraphBuilder, x: Value, quantizer: Optional[TensorQuantizer]) -> Value:
    """Eq. 1 in float32; x itself where there is no quantizer."""
    if quantizer is None:
        return x
    lower, step = np.float32(quantizer.lower), quantizer.step
    clipped = g.add("Clip", x, lower, np.float32(quantizer.upper))
    code = g.add("Round", g.add("Div", g.add("Sub", clipped, lower), step))  # ONNX rounds halves to even, as we do
    return g.add("Add", g.add("Mul", code, step), lower)


def linear(g: GraphBuilder, x: Value, weight: np.ndarray, bias: np.ndarray, input_quantizer: Optional[TensorQuantizer],
           weight_quantizer: Optional[TensorQuantizer], form: Form) -> Value:
    """Q(x) W + bias for tokens (L, d_in).

    Args:
        weight: float32 (d_in, d_out), fused: already quantized where ``weight_quantizer`` is given.
    """
    if form.integer and input_quantizer is not None and weight_quantizer is not None:
        return _integer_linear(g, x, weight, bias, input_quantizer, weight_quantizer, form.activation)
    return g.add("Add", g.add("MatMul", fake_quantize(g, x, input_quantizer), weight), bias)


def _integer_linear(g, x, weight, bias, input_quantizer, weight_quantizer, activation):
    """With x = s_x c_x + a_x and W = s_w k + e, k = c_w - z whole and signed, and e the rest of the lower bound:

        x W = (s_x c_x)(s_w k) + a_x Σ W + e Σ (s_x c_x),

    the first term is the integer product, the second a constant of each column, the third one number a token (absent
    where the lower bound of the weight is a whole multiple of its step).
    """
    step, weight_step = input_quantizer.step, weight_quantizer.step
    codes = np.rint((weight - np.float32(weight_quantizer.lower)) / weight_step).astype(np.int64)
    top = 2**weight_quantizer.bits - 1
    zero = int(np.clip(np.rint(-weight_quantizer.lower / weight_step), top - 127, 128))
    rest = np.float32(np.float64(weight_quantizer.lower) + zero * np.float64(weight_step))
    weights = g.add("DequantizeLinear", (codes - zero).astype(np.int8), weight_step, np.int8(0))
    shift = 128 if input_quantizer.bits == 8 and activation is np.int8 else 0  # int8 holds 8-bit codes only when centred
    origin = np.float32(input_quantizer.lower + shift * np.float64(step))
    span = (np.float32(input_quantizer.lower) - origin, np.float32(input_quantizer.upper) - origin)
    shifted = g.add("Clip", g.add("Sub", x, origin), *span)
    quantized = g.add("QuantizeLinear", shifted, step, activation(0))
    scaled = g.add("DequantizeLinear", quantized, step, activation(0))
    constant = bias + np.float64(origin) * weight.astype(np.float64).sum(axis=0)
    y = g.add("Add", g.add("MatMul", scaled, weights), constant.astype(np.float32))
    if abs(rest) > 1e-6 * weight_step:
        y = g.add("Add", y, g.add("Mul", _row_sums(g, scaled), rest))
    return y


def _row_sums(g: GraphBuilder, x: Value) -> Value:
    return g.add("ReduceSum", x, np.array([-1], np.int64), keepdims=1)


def layer_norm(g: GraphBuilder, x: Value, weight: np.ndarray, bias: np.ndarray) -> Value:
    """Over the last axis."""
    return g.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=NORM_EPSILON)


def gelu(g: GraphBuilder, x: Value) -> Value:
    """Exact GELU in the form that engines recognize."""
    cdf = g.add("Add", g.add("Erf", g.add("Div", x, float(2**0.5))), 1.0)
    return g.add("Mul", g.add("Mul", x, cdf), 0.5)


def counting_sort(g: GraphBuilder, index: Value, classes: int, length: Value):
    """Stable sort of tokens by class without a sorting operator (TopK is not stable, and limited in some engines).

    Args:
        index: int64 (L,), class of every token.
        length: int64 scalar L.

    Returns:
        (order, position), int64 (L,): token at a sorted place, and sorted place of a token.
    """
    one_hot = g.add("Equal", _unsqueeze(g, index, 1), np.arange(classes, dtype=np.int64)[None])
    one_hot = g.add("Cast", one_hot, to=TensorProto.INT32)
    running = g.add("CumSum", one_hot, np.int64(0))  # of tokens of a class up to this one
    counts = g.add("ReduceSum", one_hot, np.array([0], np.int64), keepdims=1)
    first = g.add("CumSum", counts, np.int64(1), exclusive=1)
    place = g.add("ReduceSum", g.add("Mul", one_hot, g.add("Add", running, first)), np.array([1], np.int64), keepdims=0)
    position = g.add("Cast", g.add("Sub", place, np.int32(1)), to=TensorProto.INT64)
    tokens = g.add("Range", 0, length, 1)
    return g.add("ScatterElements", position, position, tokens, axis=0), position


def scan_operator(g: GraphBuilder, delta: Value, u: Value, B: Value, C: Value, A: np.ndarray, D: np.ndarray,
                  delta_bias: np.ndarray, state_quantizer: Optional[TensorQuantizer]) -> Value:
    """:func:`selective_scan` as one operator of our domain; ``delta`` is given before bias (D,) and softplus."""
    quantizer = state_quantizer
    bounds = {} if quantizer is None else {"lower": quantizer.lower, "upper": quantizer.upper}
    return g.add("SelectiveScan", u, delta, A, B, C, D, delta_bias, domain=DOMAIN,
                 **{"bits": 0 if quantizer is None else quantizer.bits, "lower": 0.0, "upper": 0.0, **bounds})


def selective_scan(g: GraphBuilder, delta: Value, u: Value, B: Value, C: Value, A: np.ndarray, D: np.ndarray,
                   state_quantizer: Optional[TensorQuantizer], chunk: int) -> Value:
    """y_t = Q(h_t) C_t + D u_t with h_t = exp(δ_t A) h_{t-1} + δ_t u_t B_tᵀ, over L tokens, L a multiple of ``chunk``.

    Chunks run side by side, one token of each at a time: once for the state that every chunk adds, then over the ends
    of the chunks, then once more from the right state with the output. L / chunk + 2 chunk steps instead of L.

    Args:
        delta, u: float32 (L, D), δ after softplus; B, C: float32 (L, N); A: float32 (D, N); D: float32 (D,).
    """
    channels, states = A.shape

    def chunked(x, width):
        return g.transpose(g.reshape(x, [-1, chunk, width]), [1, 0, 2])  # (chunk, chunks, width)

    steps, added = chunked(delta, channels), chunked(g.add("Mul", delta, u), channels)
    b, c = chunked(B, states), chunked(C, states)
    total = g.add("ReduceSum", steps, np.array([0], np.int64), keepdims=0)
    decay = g.add("Exp", g.add("Mul", _unsqueeze(g, total, -1), A))  # of a whole chunk: (chunks, D, N)
    zeros = g.add("Mul", decay, 0.0)
    own, = _scan(g, "add", _step_of_states(A), [zeros], [steps, added, b], outputs=0)
    first = g.add("Squeeze", g.slice(zeros, 0, 1, 0), np.array([0], np.int64))
    _, start = _scan(g, "carry", _carry, [first], [decay, own], outputs=1)

    def step_with_output(s, state, inputs):
        state = _step_of_states(A)(s, state, inputs[:3])[0]
        product = s.add("Mul", fake_quantize(s, state, state_quantizer), _unsqueeze(s, inputs[3], 1))
        return state, s.add("ReduceSum", product, np.array([-1], np.int64), keepdims=0)

    _, y = _scan(g, "run", step_with_output, [start], [steps, added, b, c], outputs=1)
    y = g.reshape(g.transpose(y, [1, 0, 2]), [-1, channels])
    return g.add("Add", y, g.add("Mul", u, D))


def _unsqueeze(g: GraphBuilder, x: Value, axis: int) -> Value:
    return g.add("Unsqueeze", x, np.array([axis], np.int64))


def _step_of_states(A: np.ndarray):
    def step(s, state, inputs):
        delta, added, b = inputs
        decay = s.add("Exp", s.add("Mul", _unsqueeze(s, delta, -1), A))
        increment = s.add("Mul", _unsqueeze(s, added, -1), _unsqueeze(s, b, 1))
        return (s.add("Add", s.add("Mul", decay, state), increment),)
    return step


def _carry(s, state, inputs):
    decay, own = inputs
    return s.add("Add", s.add("Mul", decay, state), own), s.add("Identity", state)


def _scan(g: GraphBuilder, name: str, step, states, inputs, outputs: int):
    """An ONNX Scan along axis 0: ``step(builder, state, inputs) -> (state, output...)``; returns the final state and
    the stacked outputs."""
    g._root._count += 1
    s = g.subgraph(f"{name}_{g._root._count}")
    names = [f"{s._prefix}in{i}" for i in range(1 + len(inputs))]
    results = step(s, names[0], names[1:])
    made = g.add("Scan", *states, *inputs, outputs=1 + outputs, num_scan_inputs=len(inputs),
                 body=body(s, names, results))
    return [made] if outputs == 0 else made
