"""Choosing the folds (``quant.folds``) that make a network easier to quantize, edge by edge.

Each edge has a few candidates, the identity among them. The one is taken with which the layers behind the edge, with
their inputs and weights quantized in searched bounds, come closest to what they compute in full precision on a
calibration batch.
"""
from __future__ import annotations

import copy
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import paddle
from paddle import nn

from ppsr2q.quant.bounds import round_to_levels, search_bounds, subsample
from ppsr2q.quant.calibrate import observe, pass_through
from ppsr2q.quant.convert import get_sublayer, named_quantizers
from ppsr2q.quant.folds import (EDGES, GateEdge, NormEdge, QueryKeyEdge, StateEdge, ValueEdge, blocks_of,
                                weight_matrix)

_STRENGTHS = (0.25, 0.5, 0.75, 1.0)
_SHIFTS = (0.0, 0.5, 1.0)  # parts of the way to the middle of a channel's range
_ROTATIONS = 2  # random ones tried per kind of matrix
_TOKENS = 1024  # rows of an activation that errors are measured on
_WINDOWS = 2
_SAMPLE = 2**12  # values that a trial search of bounds looks at


def _quantized(values: np.ndarray, bits: Optional[int], seed: int = 0) -> np.ndarray:
    """Eq. 1 with searched bounds; as they are without bits."""
    if bits is None:
        return values
    return round_to_levels(values, search_bounds(subsample(values, _SAMPLE, seed), bits), bits)


def _unit(scale: np.ndarray) -> np.ndarray:
    """Scales with geometric mean 1."""
    return scale / np.exp(np.log(scale).mean())


def balancing_scales(left: np.ndarray, right: np.ndarray) -> Iterator[np.ndarray]:
    """Scales (C,) to divide ``left`` (…, C) by and multiply ``right`` (C, …) with: SmoothQuant's, between no change of
    the right and equal channels of the left side, with the largest absolute value and with the root mean square as a
    channel's size."""
    channels = left.shape[-1]
    left, right = np.abs(left).reshape(-1, channels), np.abs(right).reshape(channels, -1)
    yield np.ones(channels)
    for size in (lambda x, axis: x.max(axis), lambda x, axis: np.sqrt((x**2).mean(axis))):
        a, b = np.maximum(size(left, 0), 1e-6), np.maximum(size(right, 1), 1e-6)
        for strength in _STRENGTHS:
            yield _unit(a**strength / b**(1 - strength))


def _bits(layer: nn.Layer) -> Tuple[Optional[int], Optional[int]]:
    return layer.weight_quantizer.bits, layer.input_quantizer.bits


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(((found - exact)**2).mean() / (exact**2).mean())


def _linear_error(inputs: np.ndarray, matrix: np.ndarray, bits: Tuple[Optional[int], Optional[int]], scale: np.ndarray,
                  shift: float = 0.0) -> float:
    """Relative squared error of x W when both factors are folded and quantized and the bias takes up the shift."""
    weight_bits, input_bits = bits
    found = _quantized((inputs - shift) / scale, input_bits) @ _quantized(matrix * scale[:, None], weight_bits)
    return _relative(found + np.broadcast_to(shift, len(matrix)) @ matrix, inputs @ matrix)


class _Seen:
    """What the quantizers of one block see of a calibration batch in full precision, by name within the block."""

    def __init__(self, block: str, tensors: Mapping[str, np.ndarray]) -> None:
        self._prefix, self._tensors = f"{block}.", tensors

    def has(self, *names: str) -> bool:
        return all(self._prefix + name in self._tensors for name in names)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._prefix + name].astype(np.float64)


def _choose_norm(edge: NormEdge, block: nn.Layer, seen: _Seen, rng) -> Optional[Dict[str, np.ndarray]]:
    if not seen.has(*(f"{name}.input" for name in edge.layers)):
        return None
    layers = [get_sublayer(block, name) for name in edge.layers]
    matrices, inputs = [weight_matrix(layer) for layer in layers], seen[f"{edge.layers[0]}.input"]
    together = np.concatenate(matrices, axis=1)
    middle = (inputs.max(axis=0) + inputs.min(axis=0)) / 2
    candidates = [{"scale": scale, "shift": part * middle} for part in _SHIFTS
                  for scale in balancing_scales(inputs - part * middle, together)]
    return min(candidates, key=lambda values: sum(
        _linear_error(inputs, matrix, _bits(layer), values["scale"], values["shift"])
        for layer, matrix in zip(layers, matrices)))


def _choose_gate(edge: GateEdge, block: nn.Layer, seen: _Seen, rng) -> Optional[Dict[str, np.ndarray]]:
    """The scale behind the convolution by the error of the layer, then the one before it by that of the convolution
    (its taps as they act on a constant neighbourhood), counted as it reaches the layer."""
    if not seen.has(f"{edge.conv}.input", f"{edge.layer}.input"):
        return None
    conv, layer = get_sublayer(block, edge.conv), get_sublayer(block, edge.layer)
    matrix, gated, normed = weight_matrix(layer), seen[f"{edge.layer}.input"], seen[f"{edge.conv}.input"]
    after = min(balancing_scales(gated, matrix), key=lambda scale: _linear_error(gated, matrix, _bits(layer), scale))
    taps = conv.weight.numpy().astype(np.float64).reshape(len(after), -1) / after[:, None]
    reach = ((matrix * after[:, None])**2).sum(axis=1)
    weight_bits, input_bits = _bits(conv)
    normed = normed[::4]  # times taps and channels
    exact = normed[:, :, None] * taps

    def error(before):
        found = _quantized(normed / before, input_bits)[:, :, None] * _quantized(taps * before[:, None], weight_bits)
        return float((((found - exact)**2).mean(axis=(0, 2)) * reach).sum())
    return {"before": min(balancing_scales(normed, taps), key=error), "after": after}


def _moments(x: np.ndarray) -> np.ndarray:
    """(N, heads, tokens, d) -> (heads, d, d), second moments, regularised."""
    moments = np.einsum("nhti,nhtj->hij", x, x) / (x.shape[0] * x.shape[2])
    return moments + 1e-4 * np.trace(moments, axis1=1, axis2=2)[:, None, None] * np.eye(x.shape[3]) / x.shape[3]


def matrix_power(matrices: np.ndarray, exponent: float) -> np.ndarray:
    """Power of symmetric positive definite matrices (heads, d, d)."""
    values, vectors = np.linalg.eigh(matrices)
    return np.einsum("hij,hj,hkj->hik", vectors, np.maximum(values, 1e-12)**exponent, vectors)


def head_matrices(left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> List[np.ndarray]:
    """Matrices (heads, d, d) to multiply ``left`` with, the inverse transposes going to ``right``, both
    (N, heads, tokens, d): the identity, diagonal ones and symmetric ones that give both sides equal second moments (on
    the diagonal, or all of them), rotations of these; all once more with a factor per head that makes both sides
    equally large."""
    heads, size = left.shape[1], left.shape[3]
    a, b = _moments(left), _moments(right)
    diagonal = np.stack([np.diag((np.diag(y) / np.diag(x))**0.25) for x, y in zip(a, b)])
    root, inverse = matrix_power(a, 0.5), matrix_power(a, -0.5)
    symmetric = matrix_power(inverse @ matrix_power(root @ b @ root, 0.5) @ inverse, 0.5)
    bases = [np.tile(np.eye(size), (heads, 1, 1)), diagonal, symmetric]
    for base in list(bases):
        bases += [base @ np.linalg.qr(rng.normal(size=(heads, size, size)))[0] for _ in range(_ROTATIONS)]

    def energy(moments, matrices):
        return np.einsum("hij,hik,hkj->h", matrices, moments, matrices)
    factors = [(energy(b, np.linalg.inv(m).transpose(0, 2, 1)) / energy(a, m))**0.25 for m in bases]
    return bases + [m * factor[:, None, None] for m, factor in zip(bases, factors)]


def _choose_query_key(edge: QueryKeyEdge, block: nn.Layer, seen: _Seen, rng) -> Optional[Dict[str, np.ndarray]]:
    """By the error of the scores."""
    points = get_sublayer(block, edge.points)
    if not seen.has(f"{edge.points}.q", f"{edge.points}.k"):
        return None
    q, k = seen[f"{edge.points}.q"], seen[f"{edge.points}.k"]
    exact = q @ k.swapaxes(2, 3)

    def error(matrices):
        x, y = _quantized(q @ matrices, points.q.bits), _quantized(
            k @ np.linalg.inv(matrices).transpose(0, 2, 1), points.k.bits)
        return _relative(x @ y.swapaxes(2, 3), exact)
    return {"matrices": min(head_matrices(q, k, rng), key=error)}


def _choose_value(edge: ValueEdge, block: nn.Layer, seen: _Seen, rng) -> Optional[Dict[str, np.ndarray]]:
    """By the error of the projection's output."""
    points, layer = get_sublayer(block, edge.points), get_sublayer(block, edge.second)
    if not seen.has(f"{edge.points}.v", f"{edge.points}.map", f"{edge.second}.input"):
        return None
    v, weights = seen[f"{edge.points}.v"], seen[f"{edge.points}.map"]
    rows = weight_matrix(layer).reshape(v.shape[1], v.shape[3], -1)
    weight_bits, input_bits = _bits(layer)
    exact = ((weights @ v) @ rows).sum(axis=1)

    def error(matrices):
        mixed = _quantized(weights @ _quantized(v @ matrices, points.v.bits), input_bits)
        return _relative((mixed @ _quantized(np.linalg.inv(matrices) @ rows, weight_bits)).sum(axis=1), exact)
    return {"matrices": min(head_matrices(v, rows.swapaxes(1, 2)[None], rng), key=error)}


def _choose_states(edge: StateEdge, block: nn.Layer, seen: _Seen, rng) -> Optional[Dict[str, np.ndarray]]:
    """By the error of the scan's output: of Q(states) Q(C), and of B as it reaches the output through C."""
    names = {key: f"{edge.scan}.points.{key}" for key in ("states", "B", "C")}
    if not seen.has(*names.values()):
        return None
    states, B, C = (seen[name] for name in names.values())
    bits = {key: get_sublayer(block, name).bits for key, name in names.items()}
    exact, exact_B = np.einsum("tdn,tn->td", states, C), B * C

    def error(scale):
        products = np.einsum("tdn,tn->td", _quantized(states / scale, bits["states"]),
                             _quantized(C * scale, bits["C"]))
        return _relative(products, exact) + _relative(_quantized(B / scale, bits["B"]) * C * scale, exact_B)
    return {"scale": 1 / min(balancing_scales(states, C.T), key=error)}


_CHOOSE = {NormEdge: _choose_norm, GateEdge: _choose_gate, QueryKeyEdge: _choose_query_key, ValueEdge: _choose_value,
           StateEdge: _choose_states}


def _observe(student: nn.Layer, batch: paddle.Tensor, seed: int) -> Dict[str, np.ndarray]:
    """Plan name -> float32 (_TOKENS, …) rows of an activation, the same tokens everywhere, or (_WINDOWS, heads, tokens,
    …) of the attention's, the same windows everywhere."""
    seen = {}

    def observer_of(name):
        def keep_rows(quantizer, x):
            if ".win_mhsa.points." in name:
                tensor, count = x, x.shape[0]
                rows = np.linspace(0, count - 1, min(_WINDOWS, count)).astype("int64")
            else:
                tensor, count = x.reshape([-1, *x.shape[2:]]), x.shape[0] * x.shape[1]
                rows = np.random.default_rng(seed).integers(0, count, min(_TOKENS, count))
            seen[name] = paddle.index_select(tensor, paddle.to_tensor(rows)).numpy()
            return x
        return keep_rows

    wanted = (".input", ".q", ".k", ".v", ".map", ".B", ".C", ".states")
    observe(student, batch, {name: observer_of(name) if name.endswith(wanted) else pass_through
                             for name in named_quantizers(student)})
    return seen


def choose_folds(student: nn.Layer, architecture: str, batch: paddle.Tensor, seed: int,
                 on_block: Callable[[], None] = lambda: None) -> Dict[str, np.ndarray]:
    """Choose the folds of all edges; the student itself stays as it is.

    Edges at which an activation stays in floating point are left alone.

    Args:
        student: from ``quantize``; its bounds are neither needed nor changed.
        architecture: key of ``folds.EDGES``.
        batch: the network's input, float32 (B, 3, h, w).
        seed: of the tokens that errors are measured on and of the rotations tried.
        on_block: called after each block (progress).

    Returns:
        The folds, as ``apply_folds`` takes them.
    """
    student = copy.deepcopy(student)  # folds of a block build on those before
    seen, rng, folds = _observe(student, batch, seed), np.random.default_rng(seed), {}
    for name, block in blocks_of(student, architecture):
        for edge_name, edge in EDGES[architecture][1].items():
            values = _CHOOSE[type(edge)](edge, block, _Seen(name, seen), rng)
            if values is None:
                continue
            values = {key: value.astype(np.float32) for key, value in values.items()}
            edge.fold(block, values)
            folds.update({f"{name}.{edge_name}.{key}": value for key, value in values.items()})
        on_block()
    return folds
