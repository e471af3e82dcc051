"""The selective scan of a state space model (Mamba; MambaIRv2's ASSM has one direction and N = 8 states a channel)."""
from __future__ import annotations

from typing import Optional

import paddle
from paddle.nn import functional as F

from ppsr2q.ops import dispatch
from ppsr2q.ops.points import QuantPoint, quantize

_CHUNK = 64
_EXPORT_LEVELS = 4  # an exported graph has a fixed depth: 64^4 tokens, an image of 4096 x 4096


def _shift(x, steps, fill):
    """x moved ``steps`` later along axis 2, the start filled with ``fill``."""
    head = paddle.full_like(x[:, :, :steps], fill)
    return paddle.concat([head, x[:, :, :-steps]], axis=2)


def _recurrence(decay, increment, levels):
    """h_t = decay_t h_{t-1} + increment_t, h_0 = 0, along axis 1 of (B, L, ...): chunks by Hillis-Steele doubling,
    then the same over the chunks' ends; as deep as needed, or exactly ``levels`` deep."""
    length, tail = decay.shape[1], list(decay.shape[2:])
    padding = (-length) % _CHUNK
    decay = F.pad(decay.flatten(2), [0, padding], value=1.0, data_format="NLC")
    increment = F.pad(increment.flatten(2), [0, padding], value=0.0, data_format="NLC")
    chunks = (length + padding) // _CHUNK
    decay = decay.reshape([-1, chunks, _CHUNK, decay.shape[-1]])
    state = increment.reshape([-1, chunks, _CHUNK, increment.shape[-1]])
    steps = 1
    while steps < _CHUNK:
        state = state + decay * _shift(state, steps, 0.0)
        decay = decay * _shift(decay, steps, 1.0)
        steps *= 2
    if chunks > 1 if levels is None else levels > 1:
        ends = _recurrence(decay[:, :, -1], state[:, :, -1], None if levels is None else levels - 1)
        before = paddle.concat([paddle.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
        state = state + decay * before.unsqueeze(2)
    return state.flatten(1, 2)[:, :length].reshape([-1, length] + tail)


class _LinearRecurrence(paddle.autograd.PyLayer):
    """The gradient of h_t = a_t h_{t-1} + b_t is the same recurrence run backwards (mambairv2 spec, section 10)."""

    @staticmethod
    def forward(ctx, decay, increment):
        states = _recurrence(decay, increment, None)
        ctx.save_for_backward(decay, states)
        ctx.needed = (not decay.stop_gradient, not increment.stop_gradient)
        return states

    @staticmethod
    def backward(ctx, grad):
        decay, states = ctx.saved_tensor()
        next_decay = paddle.concat([decay[:, 1:], paddle.zeros_like(decay[:, :1])], axis=1)
        grad_increment = paddle.flip(_recurrence(paddle.flip(next_decay, [1]), paddle.flip(grad, [1]), None), [1])
        previous = paddle.concat([paddle.zeros_like(states[:, :1]), states[:, :-1]], axis=1)
        grads = (grad_increment * previous, grad_increment)
        return tuple(grad if needed else None for grad, needed in zip(grads, ctx.needed))


def selective_scan_reference(u, delta, A, B, C, D, delta_bias, state_point=None, return_states=False):
    """Pure-Paddle :func:`selective_scan`."""
    x = delta + delta_bias
    step = F.relu(x) + paddle.log(1 + paddle.exp(-paddle.abs(x)))  # softplus without a threshold, exportable
    decay = paddle.exp(step.unsqueeze(-1) * A)
    increment = (step * u).unsqueeze(-1) * B.unsqueeze(2)
    if paddle.in_dynamic_mode():
        states = _LinearRecurrence.apply(decay, increment)
    else:
        states = _recurrence(decay, increment, _EXPORT_LEVELS)
    y = paddle.matmul(quantize(states, state_point), C.unsqueeze(-1)).squeeze(-1) + D * u
    return (y, states) if return_states else y


def selective_scan(u: paddle.Tensor, delta: paddle.Tensor, A: paddle.Tensor, B: paddle.Tensor, C: paddle.Tensor,
                   D: paddle.Tensor, delta_bias: paddle.Tensor, state_point: Optional[QuantPoint] = None,
                   return_states: bool = False):
    """Selective scan with softplus: δ = softplus(delta + delta_bias), h_t = exp(δ_t A) h_{t-1} + δ_t u_t B_tᵀ, h_0 = 0,
    y_t = Q(h_t) C_t + D u_t.

    Args:
        u, delta: float32 (B, L, D).
        A: float32 (D, N), negative.
        B, C: float32 (B, L, N).
        D, delta_bias: float32 (D,).
        state_point: quantizer of the states before their product with C; the recurrence itself stays in float32.
        return_states: also return the unquantized states.

    Returns:
        y float32 (B, L, D), or (y, states float32 (B, L, D, N)).
    """
    tensors = (u, delta, A, B, C, D, delta_bias)
    if dispatch.serves("selective_scan", tensors, (state_point,)):
        from ppsr2q.ops import kernels
        return kernels.selective_scan(*tensors, state_point=state_point, return_states=return_states)
    return selective_scan_reference(*tensors, state_point=state_point, return_states=return_states)
