"""Paddle binding of ``csrc/routing.h``. Indices and permutations are int32."""
from __future__ import annotations

import math

import paddle

from ppsr2q.ops import native
from ppsr2q.ops.native import INT, POINTER, SIZE, pointer
from ppsr2q.ops.routing import Routing


def _int32(tensor):
    return native.contiguous(tensor if tensor.dtype == paddle.int32 else tensor.astype("int32"))


def _check_rank(operator, name, tensor):
    if tensor.ndim != 3:
        raise ValueError(f"{operator}: {name} must have three axes (B, L, C), got shape {list(tensor.shape)}")


def route(logits):
    """Kernel form of :func:`ppsr2q.ops.route`."""
    logits = native.contiguous(logits)
    _check_rank("route", "logits", logits)
    batch, tokens, classes = logits.shape
    routing = Routing(*(native.empty([batch, tokens], paddle.int32) for _ in range(3)))
    run = native.function("route", POINTER, SIZE, SIZE, INT, POINTER, POINTER, POINTER)
    status = run(pointer(logits), batch, tokens, classes, *map(pointer, routing))
    native.check(status, "route", {"logits": logits})
    return routing


def _gather(x, order, residual=None):
    y = native.empty_like(x)
    batch, tokens, channels = x.shape
    run = native.function("gather_rows", POINTER, POINTER, POINTER, SIZE, SIZE, INT, POINTER)
    status = run(pointer(x), pointer(order), pointer(residual), batch, tokens, channels, pointer(y))
    native.check(status, "gather_rows", {})
    return y


class _GatherRows(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, residual, order, inverse):
        ctx.save_for_backward(inverse)
        ctx.needs = [None if t is None else not t.stop_gradient for t in (x, residual)]
        return _gather(x, order, residual)

    @staticmethod
    def backward(ctx, grad):
        grad = native.contiguous(grad)
        needs_x, needs_residual = ctx.needs
        grads = [_gather(grad, ctx.saved_tensor()[0]) if needs_x else None]
        if needs_residual is not None:
            grads.append(grad.clone() if needs_residual else None)  # Paddle adds other gradients of it in place
        return (*grads, None, None)


def gather_rows(x, order, inverse, residual=None):
    """Kernel form of :func:`ppsr2q.ops.gather_rows`."""
    x, residual = native.contiguous(x), native.contiguous(residual)
    _check_rank("gather_rows", "x", x)
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"gather_rows: residual must have shape {list(x.shape)}, got {list(residual.shape)}")
    for name, permutation in (("order", order), ("inverse", inverse)):
        if list(permutation.shape) != list(x.shape[:2]):
            raise ValueError(f"gather_rows: {name} must have shape {list(x.shape[:2])}, "
                             f"got {list(permutation.shape)}")
    order, inverse = _int32(order), _int32(inverse)
    if native.needs_gradient(x, residual):
        return _GatherRows.apply(x, residual, order, inverse)
    return _gather(x, order, residual)


def _prompt(table, index):
    classes, width = table.shape
    prompt = native.empty([*index.shape, width])
    run = native.function("routed_prompt_forward", POINTER, POINTER, SIZE, INT, INT, POINTER)
    status = run(pointer(table), pointer(index), math.prod(index.shape), classes, width, pointer(prompt))
    native.check(status, "routed_prompt", {})
    return prompt


class _RoutedPrompt(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, logits, index, table):
        ctx.save_for_backward(logits, index, table)
        ctx.needs_logits, ctx.needs_table = not logits.stop_gradient, not table.stop_gradient
        return _prompt(table, index)

    @staticmethod
    def backward(ctx, grad):
        logits, index, table = ctx.saved_tensor()
        grad = native.contiguous(grad)
        grad_logits = native.empty_like(logits) if ctx.needs_logits else None
        grad_table = native.empty_like(table) if ctx.needs_table else None
        run = native.function("routed_prompt_backward", *(POINTER,) * 4, SIZE, INT, INT, POINTER, POINTER)
        status = run(pointer(logits), pointer(table), pointer(index), pointer(grad), math.prod(index.shape), *table.shape,
                     pointer(grad_logits), pointer(grad_table))
        native.check(status, "routed_prompt", {})
        return grad_logits, None, grad_table


def routed_prompt(logits, index, table):
    """Kernel form of :func:`ppsr2q.ops.routed_prompt`."""
    logits, table, index = native.contiguous(logits), native.contiguous(table), _int32(index)
    _check_rank("routed_prompt", "logits", logits)
    if list(index.shape) != list(logits.shape[:2]) or table.shape[0] != logits.shape[-1]:
        raise ValueError(f"routed_prompt: logits of shape {list(logits.shape)}, index of shape "
                         f"{list(index.shape)} and table of shape {list(table.shape)} do not fit (B, L, T), "
                         f"(B, L) and (T, N)")
    if native.needs_gradient(logits, table):
        return _RoutedPrompt.apply(logits, index, table)
    return _prompt(table, index)
