"""Decides for every operator call whether the CPU kernel or the pure-Paddle reference computes it."""
from __future__ import annotations

import contextlib
from typing import Iterable, Iterator, Optional, Sequence, Union

import paddle

from ppsr2q.ops import native

# Tensor arguments of every operator that has a kernel, as the operators pass them to :func:`serves`.
ARGUMENTS = {
    "convolution": ("x", "residual"),
    "fake_quantize": ("x", "bounds"),
    "feature_distance": ("student", "teacher"),
    "linear": ("x", "residual", "skip"),
    "norm_linear": ("x",),
    "window_attention": ("q", "k", "v", "table"),
    "gated_mixing": ("x",),
    "positional_gate": ("x",),
    "route": ("logits",),
    "gather_rows": ("x", "residual"),
    "routed_prompt": ("logits", "table"),
    "state_space": ("u", "prompt", "x_proj_weight", "dt_proj_weight", "A", "D", "dt_bias"),
    "selective_scan": ("u", "delta", "A", "B", "C", "D", "delta_bias"),
}

SCAN_STATES = (4, 8, 16)  # the kernel keeps one register a state, so their number is compiled in

_policy: Union[str, frozenset] = "auto"


@contextlib.contextmanager
def use(policy: Union[str, Iterable[str]]) -> Iterator[None]:
    """Within the block: ``"auto"`` (kernels where they serve), ``"reference"`` (none), or a set of operator
    names (kernels for these, which raise ValueError where they do not serve, and references for all others)."""
    global _policy
    if isinstance(policy, str):
        if policy not in ("auto", "reference"):
            raise ValueError(f"policy must be 'auto', 'reference' or a set of operators, got {policy!r}")
    else:
        policy = frozenset(policy)
        unknown = policy - set(ARGUMENTS)
        if unknown:
            raise ValueError(f"no operator is called {sorted(unknown)}, known are {sorted(ARGUMENTS)}")
    previous, _policy = _policy, policy
    try:
        yield
    finally:
        _policy = previous


def limits(operator: str) -> str:
    """What the operator's kernel does not serve beyond float32 on the CPU, in words; empty when nothing."""
    if operator in ("selective_scan", "state_space"):
        return f"states a channel: {SCAN_STATES}" + \
            ("; with return_states only without gradients" if operator == "selective_scan" else "")
    return ""


def _beyond_limits(operator, tensors) -> Optional[str]:
    if operator in ("selective_scan", "state_space"):
        states = tensors[ARGUMENTS[operator].index("A")].shape[-1]
        if states not in SCAN_STATES:
            return f"{states} states a channel, compiled are {SCAN_STATES}"
    return None


def _validate(operator, tensors) -> None:
    for name, tensor in zip(ARGUMENTS[operator], tensors):
        if tensor is None:
            continue
        if tensor.dtype != paddle.float32 and not tensor.is_floating_point():  # the first is twice as fast
            raise ValueError(f"{operator}: {name} of shape {list(tensor.shape)} must be floating point, "
                             f"got {tensor.dtype}")
        if 0 in tensor.shape:
            raise ValueError(f"{operator}: {name} is empty, shape {list(tensor.shape)}")


def why_reference(operator: str, tensors: Sequence[Optional[paddle.Tensor]] = (), points: Sequence = (),
                  beyond: Optional[str] = None) -> Optional[str]:
    """Why the reference computes this call; None when the kernel does. Without tensors: any ordinary call."""
    if not paddle.in_dynamic_mode():
        return "a graph is being traced"
    forced = isinstance(_policy, frozenset)
    if _policy == "reference" or (forced and operator not in _policy):
        return "the policy says so"
    reason = beyond or _unserved(operator, tensors, points)
    if forced:
        native.library()  # raises where there are none
        if reason is not None:
            raise ValueError(f"{operator}: the policy asks for the kernel, but {reason}")
    return reason or native.why_unavailable()


def _unserved(operator: str, tensors: Sequence[Optional[paddle.Tensor]], points: Sequence) -> Optional[str]:
    for tensor in tensors:
        if tensor is not None and (tensor.dtype != paddle.float32 or not tensor.place.is_cpu_place()):
            return f"{tensor.dtype} on {tensor.place}, kernels take float32 on the CPU"
    if any(point is not None and point.observing for point in points):
        return "a range search observes a tensor inside"
    return _beyond_limits(operator, tensors) if tensors else None


def serves(operator: str, tensors: Sequence[Optional[paddle.Tensor]], points: Sequence = (),
           beyond: Optional[str] = None) -> bool:
    """Whether the kernel computes this call.

    Args:
        tensors: the operator's tensor arguments in the order of :data:`ARGUMENTS`; None where absent.
        points: its quantizers (``QuantPoint`` or None).
        beyond: what of this call no kernel does, as the operator itself knows.

    Raises:
        ValueError: a tensor is empty or not floating point, or the kernel is asked for (:func:`use`) and does not serve.
    """
    if paddle.in_dynamic_mode():
        _validate(operator, tensors)
    return why_reference(operator, tensors, points, beyond) is None
