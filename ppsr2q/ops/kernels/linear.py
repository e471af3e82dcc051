"""Paddle binding of ``csrc/token_linear.h``."""
from __future__ import annotations

import ctypes
import math
from typing import NamedTuple, Optional

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.native import FLOAT, INT, POINTER, SIZE, pointer
from ppsr2q.ops.norm import check_norm
from ppsr2q.ops.points import input_point, needs_token_mean, point_arguments, weight_matrix

_COMMON = (POINTER, SIZE, INT, POINTER, POINTER, FLOAT, POINTER, INT)


class _Layer(ctypes.Structure):
    """LinearLayer of csrc/linear.h."""

    _fields_ = [("weight", POINTER), ("bias", POINTER), ("bounds", POINTER), ("residual", POINTER),
                ("skip", POINTER), ("skip_scale", POINTER), ("y", POINTER), ("bits", INT), ("outputs", INT)]


class _Gradient(ctypes.Structure):
    """LinearGradient of csrc/linear.h."""

    _fields_ = [("y", POINTER), ("weight", POINTER), ("bias", POINTER), ("bounds", POINTER),
                ("skip", POINTER), ("skip_scale", POINTER)]


class _Arguments(NamedTuple):
    """One layer's weight [d_in, d_out], bias [d_out], bounds of its input quantizer [2], and what is added to its
    result: residual, and skip times skip_scale [d_out]."""

    weight: paddle.Tensor
    bias: Optional[paddle.Tensor]
    bounds: Optional[paddle.Tensor]
    residual: Optional[paddle.Tensor]
    skip: Optional[paddle.Tensor]
    skip_scale: Optional[paddle.Tensor]


_FIELDS = len(_Arguments._fields)
_RESIDUAL = _Arguments._fields.index("residual")


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
                   pointer(layer.skip), pointer(layer.skip_scale), pointer(y), bits, layer.weight.shape[1])
            for layer, y, bits in zip(layers, outputs, self.bits)])
        inputs = self.x.shape[-1]
        return [pointer(self.x), math.prod(self.x.shape[:-1]), inputs, pointer(self.scale), pointer(self.shift),
                self.epsilon, ctypes.addressof(structures), len(layers)], structures


def _group(flat):
    return [_Arguments(*flat[i:i + _FIELDS]) for i in range(0, len(flat), _FIELDS)]


def _residuals(count):
    """Places of the layers' residuals among ``count`` tensors: x, scale, shift and the layers'."""
    return range(3 + _RESIDUAL, count, _FIELDS)


def _forward(call, layers):
    outputs = [native.empty([*call.x.shape[:-1], layer.weight.shape[1]]) for layer in layers]
    arguments, structures = call.arguments(layers, outputs)
    status = native.function("token_linear_forward", *_COMMON)(*arguments)
    if status:
        names = {"x": call.x, "norm.weight": call.scale, "norm.bias": call.shift}
        for i, layer in enumerate(layers):
            names.update({f"weight of layer {i}": layer.weight, f"bias of layer {i}": layer.bias,
                          f"residual of layer {i}": layer.residual, f"skip of layer {i}": layer.skip,
                          f"scale of skip of layer {i}": layer.skip_scale})
        native.check(status, call.operator, names, {f"input of layer {i}": layer.bounds
                                                    for i, layer in enumerate(layers)})
    return outputs


class _TokenLinear(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, operator, x, scale, shift, epsilon, bits, *flat):
        given = [x, scale, shift, *flat]
        ctx.needs = [None if t is None else not t.stop_gradient for t in given]
        kept = [t for i, t in enumerate(given) if t is not None and i not in _residuals(len(given))]
        ctx.save_for_backward(*kept)
        ctx.settings = (operator, epsilon, bits)
        return tuple(_forward(_Call(operator, x, scale, shift, epsilon, bits), _group(flat)))

    @staticmethod
    def backward(ctx, *grads):
        saved, residuals = iter(ctx.saved_tensor()), _residuals(len(ctx.needs))
        given = [None if need is None or i in residuals else next(saved) for i, need in enumerate(ctx.needs)]
        x, scale, shift, *flat = given
        operator, epsilon, bits = ctx.settings
        call, layers = _Call(operator, x, scale, shift, epsilon, bits), _group(flat)
        grads = [native.contiguous(grad) for grad in grads]
        wanted = [t is not None and need for t, need in zip(given, ctx.needs)]
        together = [range(3)] if scale is not None else []  # x, scale and shift; skip and skip_scale
        together += [range(i + 1, i + 3) for i in residuals if given[i + 1] is not None]
        for members in together:
            any_wanted = any(wanted[i] for i in members)
            for i in members:
                wanted[i] = any_wanted
        results = [native.empty_like(t) if want else None for t, want in zip(given, wanted)]
        structures = (_Gradient * len(layers))(*[
            _Gradient(pointer(grad), pointer(own.weight), pointer(own.bias), pointer(own.bounds),
                      pointer(own.skip), pointer(own.skip_scale))
            for grad, own in zip(grads, _group(results[3:]))])
        arguments, layer_structures = call.arguments(layers, [None] * len(layers))
        run = native.function("token_linear_backward", *_COMMON, *(POINTER,) * 4)
        native.check(run(*arguments, ctypes.addressof(structures), *map(pointer, results[:3])), operator, {})
        for i, grad in zip(residuals, grads):
            results[i] = grad.clone() if ctx.needs[i] else None  # Paddle adds other gradients of it in place
        return tuple(result if need else None for result, need in zip(results, ctx.needs) if need is not None)


def _run(operator, x, norm, layers, residual=None, skip=None):
    """layers: [(weight, bias, (bounds, bits))]; residual and skip belong to the only one."""
    x = native.contiguous(x)
    flat = []
    for weight, bias, (bounds, _) in layers:
        flat += map(native.contiguous, (weight, bias, bounds, residual, *(skip or (None, None))))
    bits = tuple(n for _, _, (_, n) in layers)
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
        for name, tensor, shape in (("residual", layer.residual, expected), ("skip", layer.skip, expected),
                                    ("scale of skip", layer.skip_scale, expected[-1:])):
            if tensor is not None and list(tensor.shape) != shape:
                raise ValueError(f"{operator}: {name} must have shape {shape}, got {list(tensor.shape)}")


def _token_mean(x, norm):
    """Detached mean over tokens of x, or of LayerNorm(x): (B, ..., d_in) -> (B, d_in)."""
    x = native.contiguous(x.detach())
    batch, channels = (x.shape[0], x.shape[-1])
    mean = native.empty([batch, channels])
    scale, shift, epsilon = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm._epsilon)
    run = native.function("token_mean", POINTER, SIZE, SIZE, INT, POINTER, POINTER, FLOAT, POINTER)
    tokens = math.prod(x.shape[1:-1])
    status = run(pointer(x), batch, tokens, channels, pointer(scale), pointer(shift), epsilon, pointer(mean))
    native.check(status, "token_mean", {})
    return mean


def linear(x, layer, residual=None, skip=None):
    """Kernel form of :func:`ppsr2q.ops.linear`."""
    weight = weight_matrix(layer, _token_mean(x, None) if needs_token_mean(layer) else None)
    own = (weight, layer.bias, point_arguments(input_point(layer)))
    return _run("linear", x, None, [own], residual, skip)[0]


def norm_linear(x, norm, layers):
    """Kernel form of :func:`ppsr2q.ops.norm_linear`."""
    check_norm("norm_linear", norm, x.shape[-1])
    mean = _token_mean(x, norm) if any(needs_token_mean(layer) for layer in layers) else None
    return _run("norm_linear", x, norm, [(weight_matrix(layer, mean), layer.bias, point_arguments(input_point(layer)))
                                         for layer in layers])
