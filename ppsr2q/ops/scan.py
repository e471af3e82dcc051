"""The selective scan of a state space model (Mamba; MambaIRv2's ASSM has one direction and N = 8 states a channel)."""
from __future__ import annotations

from typing import Optional

import paddle
from paddle.nn import functional as F

from ppsr2q.ops import dispatch
from ppsr2q.ops.points import QuantPoint, quantize

_DOUBLINGS = 6
_CHUNK = 2**_DOUBLINGS
_EXPORT_LEVELS = 4  # an exported graph has a fixed depth: 64^4 tokens, an image of 4096 x 4096


def _shift(x, steps, fill):
    """x moved ``steps`` later along axis 2, the start filled with ``fill``."""
    return paddle.concat([paddle.full_like(x[:, :, :steps], fill), x[:, :, :-steps]], axis=2)


def _scan_chunks(decay, increment):
    """Hillis-Steele doubling inside chunks of axis 1 of (B, L, F): (B, chunks, _CHUNK, F) products and states."""
    length = decay.shape[1]
    padding = (length + _CHUNK - 1) // _CHUNK * _CHUNK - length
    decay = F.pad(decay, [0, padding], value=1.0, data_format="NLC")
    state = F.pad(increment, [0, padding], value=0.0, data_format="NLC")
    decay = decay.reshape([-1, (length + padding) // _CHUNK, _CHUNK, decay.shape[2]])
    state = state.reshape([-1, (length + padding) // _CHUNK, _CHUNK, state.shape[2]])
    for doubling in range(_DOUBLINGS):
        steps = 2**doubling
        state = state + decay * _shift(state, steps, 0.0)
        decay = decay * _shift(decay, steps, 1.0)
    return decay, state


def _recurrence(decay, increment, levels):
    """h_t = decay_t h_{t-1} + increment_t, h_0 = 0, along axis 1 of (B, L, F), L <= _CHUNK**levels: inside chunks, then
    over the ends of chunks, and so on; on the way back every chunk gets the state before it."""
    scanned = []
    for _ in range(levels):
        scanned.append((decay.shape[1], _scan_chunks(decay, increment)))
        decay, increment = scanned[-1][1][0][:, :, -1], scanned[-1][1][1][:, :, -1]
    length, (_, state) = scanned[-1]
    ends = state.flatten(1, 2)[:, :length]
    for length, (products, state) in scanned[-2::-1]:
        before = paddle.concat([paddle.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
        ends = (state + products * before.unsqueeze(2)).flatten(1, 2)[:, :length]
    return ends


def _recurrence_of_states(decay, increment, levels=None):
    """:func:`_recurrence` over (B, L, D, N), as deep as L needs."""
    length, channels, states = decay.shape[1:]
    if levels is None:
        levels = 1
        while _CHUNK**levels < length:
            levels += 1
    return _recurrence(decay.flatten(2), increment.flatten(2), levels).reshape([-1, length, channels, states])


class _LinearRecurrence(paddle.autograd.PyLayer):
    """The gradient of h_t = a_t h_{t-1} + b_t is the same recurrence run backwards (mambairv2 spec, section 10)."""

    @staticmethod
    def forward(ctx, decay, increment):
        states = _recurrence_of_states(decay, increment)
        ctx.save_for_backward(decay, states)
        ctx.needed = (not decay.stop_gradient, not increment.stop_gradient)
        return states

    @staticmethod
    def backward(ctx, grad):
        decay, states = ctx.saved_tensor()
        next_decay = paddle.concat([decay[:, 1:], paddle.zeros_like(decay[:, :1])], axis=1)
        reversed_grad = _recurrence_of_states(paddle.flip(next_decay, [1]), paddle.flip(grad, [1]))
        grad_increment = paddle.flip(reversed_grad, [1])
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
        states = _recurrence_of_states(decay, increment, _EXPORT_LEVELS)
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
