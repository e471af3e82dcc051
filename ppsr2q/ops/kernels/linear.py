"""Paddle binding of ``csrc/token_linear.h``."""
from __future__ import annotations

import ctypes
from typing import NamedTuple, Optional

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.linear import linear_reference, norm_linear_reference
from ppsr2q.ops.native import FLOAT, INT, POINTER, SIZE, pointer
from ppsr2q.ops.points import input_point, needs_token_mean, point_arguments, weight_matrix

_COMMON = (POINTER, SIZE, INT, POINTER, POINTER, FLOAT, POINTER, INT)


class _Layer(ctypes.Structure):
    """LinearLayer of csrc/token_linear.h."""

    _fields_ = [("weight", POINTER), ("bias", POINTER), ("bounds", POINTER), ("residual", POINTER),
                ("y", POINTER), ("bits", INT), ("outputs", INT)]


class _Gradient(ctypes.Structure):
    """LinearGradient of csrc/token_linear.h."""

    _fields_ = [("y", POINTER), ("weight", POINTER), ("bias", POINTER), ("bounds", POINTER)]


class _Arguments(NamedTuple):
    """One layer's weight [d_in, d_out], bias [d_out], bounds of its input quantizer [2] and residual."""

    weight: paddle.Tensor
    bias: Optional[paddle.Tensor]
    bounds: Optional[paddle.Tensor]
    residual: Optional[paddle.Tensor]


class _Call(NamedTuple):
    """Everything of one call that is not a layer: scale and shift are None without a norm."""

    operator: str
    x: paddle.Tensor
    scale: Optional[paddle.Tensor]
    shift: Optional[paddle.Tensor]
    epsilon: float
    bits: tuple

    def arguments(self, layers, outputs):
        """The leading C arguments; ``outputs`` are the tensors y, or None in the backward pass."""
        structures = (_Layer * len(layers))(*[
            _Layer(pointer(layer.weight), pointer(layer.bias), pointer(layer.bounds), pointer(layer.residual),
                   pointer(y), bits, layer.weight.shape[1])
            for layer, y, bits in zip(layers, outputs, self.bits)])
        inputs = self.x.shape[-1]
        return [pointer(self.x), self.x.size // inputs, inputs, pointer(self.scale), pointer(self.shift),
                self.epsilon, ctypes.addressof(structures), len(layers)], structures


def _group(flat):
    return [_Arguments(*flat[i:i + 4]) for i in range(0, len(flat), 4)]


def _forward(call, layers):
    outputs = [paddle.empty([*call.x.shape[:-1], layer.weight.shape[1]]) for layer in layers]
    arguments, structures = call.arguments(layers, outputs)
    status = native.function("token_linear_forward", *_COMMON)(*arguments)
    if status:
        names = {"x": call.x, "norm.weight": call.scale, "norm.bias": call.shift}
        for i, layer in enumerate(layers):
            names.update({f"weight of layer {i}": layer.weight, f"bias of layer {i}": layer.bias,
                          f"residual of layer {i}": layer.residual})
        native.check(status, call.operator, names, {f"input of layer {i}": layer.bounds
                                                    for i, layer in enumerate(layers)})
    return outputs


class _TokenLinear(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, operator, x, scale, shift, epsilon, bits, *flat):
        given = (x, scale, shift, *flat)
        ctx.present = [t is not None for t in given]
        ctx.needs = [t is not None and not t.stop_gradient for t in given]
        ctx.save_for_backward(*[t for t in given if t is not None])
        ctx.settings = (operator, epsilon, bits)
        return tuple(_forward(_Call(operator, x, scale, shift, epsilon, bits), _group(flat)))

    @staticmethod
    def backward(ctx, *grads):
        saved = iter(ctx.saved_tensor())
        x, scale, shift, *flat = [next(saved) if present else None for present in ctx.present]
        operator, epsilon, bits = ctx.settings
        call, layers = _Call(operator, x, scale, shift, epsilon, bits), _group(flat)
        grads = [native.contiguous(grad) for grad in grads]
        given = (x, scale, shift, *flat)
        results = [paddle.empty_like(t) if needed else None for t, needed in zip(given, ctx.needs)]
        if scale is not None:  # the kernel computes these three together
            results[:3] = [paddle.empty_like(t) if r is None else r for t, r in zip(given, results[:3])]
        wanted = _group(results[3:])
        structures = (_Gradient * len(layers))(*[
            _Gradient(pointer(grad), pointer(own.weight), pointer(own.bias), pointer(own.bounds))
            for grad, own in zip(grads, wanted)])
        arguments, layer_structures = call.arguments(layers, [None] * len(layers))
        run = native.function("token_linear_backward", *_COMMON, *(POINTER,) * 4)
        native.check(run(*arguments, ctypes.addressof(structures), *map(pointer, results[:3])), operator, {})
        for i, grad in enumerate(grads):
            if ctx.needs[3 + 4 * i + 3]:
                results[3 + 4 * i + 3] = grad  # the residual's
        return tuple(result if needed else None
                     for result, needed, present in zip(results, ctx.needs, ctx.present) if present)


def _run(operator, x, norm, layers):
    """layers: [(weight, bias, (bounds, bits), residual)]."""
    x = native.contiguous(x)
    flat = []
    for weight, bias, (bounds, _), residual in layers:
        flat += [native.contiguous(t) for t in (weight, bias, bounds, residual)]
    bits = tuple(n for _, _, (_, n), _ in layers)
    scale, shift, epsilon = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm._epsilon)
    _check_shapes(operator, x, _group(flat))
    if native.needs_gradient(x, scale, shift, *flat):
        return list(_TokenLinear.apply(operator, x, scale, shift, epsilon, bits, *flat))
    return _forward(_Call(operator, x, scale, shift, epsilon, bits), _group(flat))


def _check_shapes(operator, x, layers):
    for layer in layers:
        if layer.weight.shape[0] != x.shape[-1]:
            raise ValueError(f"{operator}: x of shape {list(x.shape)} does not fit a weight of shape "
                             f"{list(layer.weight.shape)}, [d_in, d_out]")
        expected = [*x.shape[:-1], layer.weight.shape[1]]
        if layer.residual is not None and list(layer.residual.shape) != expected:
            raise ValueError(
                f"{operator}: residual must have shape {expected}, got {list(layer.residual.shape)}")


def _token_mean(x, norm):
    """Detached mean over tokens of x, or of LayerNorm(x): (B, ..., d_in) -> (B, d_in)."""
    x = native.contiguous(x.detach())
    batch, channels = (x.shape[0], x.shape[-1])
    mean = paddle.empty([batch, channels])
    scale, shift, epsilon = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm._epsilon)
    run = native.function("token_mean", POINTER, SIZE, SIZE, INT, POINTER, POINTER, FLOAT, POINTER)
    tokens = x.size // (batch * channels)
    status = run(pointer(x), batch, tokens, channels, pointer(scale), pointer(shift), epsilon, pointer(mean))
    native.check(status, "token_mean", {})
    return mean


def linear(x, layer, residual=None):
    """Kernel form of :func:`ppsr2q.ops.linear`; one weight a sample goes to the reference."""
    weight = weight_matrix(layer, _token_mean(x, None) if needs_token_mean(layer) else None)
    if weight.ndim == 3:
        return linear_reference(x, layer, residual)
    return _run("linear", x, None, [(weight, layer.bias, point_arguments(input_point(layer)), residual)])[0]


def norm_linear(x, norm, layers):
    """Kernel form of :func:`ppsr2q.ops.norm_linear`; a norm without parameters or one weight a sample goes
    to the reference."""
    if norm.weight is None or norm.bias is None:
        return norm_linear_reference(x, norm, layers)
    mean = _token_mean(x, norm) if any(needs_token_mean(layer) for layer in layers) else None
    weights = [weight_matrix(layer, mean) for layer in layers]
    if any(weight.ndim == 3 for weight in weights):
        return norm_linear_reference(x, norm, layers)
    return _run("norm_linear", x, norm, [(weight, layer.bias, point_arguments(input_point(layer)), None)
                                         for weight, layer in zip(weights, layers)])
