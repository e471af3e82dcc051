"""The selective scan of a state space model (Mamba; MambaIRv2's ASSM has one direction and N = 8 states a channel)."""
from __future__ import annotations

from typing import Optional

import paddle
from paddle.nn import functional as F

from ppsr2q.ops import dispatch, native
from ppsr2q.ops.points import QuantPoint, point_arguments, quantize

_CHUNK_DOUBLINGS = 8
_CHUNK = 2**_CHUNK_DOUBLINGS


def _doubling(decay, state, doublings):
    """Hillis-Steele scan of pairs (decay, increment) along axis 1 of (B, L, F), L <= 2**doublings."""
    for i in range(doublings):
        steps = 2**i
        state = state + decay * _shift(state, steps, 0.0)
        decay = decay * _shift(decay, steps, 1.0)
    return decay, state


def _shift(x, steps, fill):
    """x moved ``steps`` later along axis 1, the start filled with ``fill``."""
    return F.pad(x, [steps, 0], value=fill, data_format="NLC")[:, :-steps]


def _recurrence(decay, increment):
    """h_t = decay_t h_{t-1} + increment_t, h_0 = 0, along axis 1 of (B, L, D, N): inside chunks, then over the ends of
    chunks, whose states are handed to the chunks after them."""
    batch, length, channels, states = decay.shape
    features, padding = channels * states, (-length) % _CHUNK
    decay = F.pad(decay.flatten(2), [0, padding], value=1.0, data_format="NLC").reshape([-1, _CHUNK, features])
    state = F.pad(increment.flatten(2), [0, padding], value=0.0, data_format="NLC").reshape([-1, _CHUNK, features])
    decay, state = _doubling(decay, state, _CHUNK_DOUBLINGS)
    _, ends = _doubling(decay[:, -1].reshape([batch, -1, features]), state[:, -1].reshape([batch, -1, features]),
                        max((length - 1) // _CHUNK, 0).bit_length())
    before = F.pad(ends, [1, 0], value=0.0, data_format="NLC")[:, :-1]
    state = state + decay * before.reshape([-1, 1, features])
    return state.reshape([batch, -1, channels, states])[:, :length]


def _recurrence_in_graph(decay, increment):
    """:func:`_recurrence` for an exported graph, whose L is not known: doubling as a loop of few operators."""
    length = decay.shape[1]
    position = paddle.arange(length)

    def double(steps, decay, state):
        source = position - steps
        kept = (source >= 0).astype("float32").unsqueeze(-1)
        source = paddle.clip(source, min=0)
        state = state + decay * paddle.index_select(state, source, axis=1) * kept
        decay = decay * (paddle.index_select(decay, source, axis=1) * kept + (1 - kept))
        return steps * 2, decay, state

    _, _, states = paddle.static.nn.while_loop(lambda steps, *_: steps < length, double,
                                               [paddle.full([1], 1, "int64"), decay.flatten(2), increment.flatten(2)])
    return states.reshape([decay.shape[0], -1] + list(decay.shape[2:]))


class _LinearRecurrence(paddle.autograd.PyLayer):
    """The gradient of h_t = a_t h_{t-1} + b_t is the same recurrence run backwards (mambairv2 spec, section 10)."""

    @staticmethod
    def forward(ctx, decay, increment):
        states = _recurrence(decay, increment)
        ctx.save_for_backward(decay, states)
        ctx.needed = (not decay.stop_gradient, not increment.stop_gradient)
        return states

    @staticmethod
    def backward(ctx, grad):
        decay, states = ctx.saved_tensor()
        next_decay = paddle.concat([decay[:, 1:], paddle.zeros_like(decay[:, :1])], axis=1)
        reversed_grad = _recurrence(paddle.flip(next_decay, [1]), paddle.flip(grad, [1]))
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
    recurrence = _LinearRecurrence.apply if paddle.in_dynamic_mode() else _recurrence_in_graph
    states = recurrence(decay, increment)
    y = _read_out(quantize(states, state_point), C, D, u)
    return (y, states) if return_states else y


def _read_out(states, C, D, u):
    return paddle.matmul(states, C.unsqueeze(-1)).squeeze(-1) + D * u


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
    if state_point is not None and state_point.observing:  # it sees the kernel's states: those of the reference take minutes
        y, states = selective_scan(*tensors, return_states=True)
        seen = state_point(states)
        if seen is not states:
            y = _read_out(seen, C, D, u)
        return (y, states) if return_states else y
    kept = return_states and native.needs_gradient(*tensors, point_arguments(state_point)[0])
    if dispatch.serves("selective_scan", tensors, (state_point,), "states are returned with gradients" if kept else None):
        from ppsr2q.ops import kernels
        return kernels.selective_scan(*tensors, state_point=state_point, return_states=return_states)
    return selective_scan_reference(*tensors, state_point=state_point, return_states=return_states)
