"""Stage 3: increments and weight quantizers are computed once and vanish from the network."""
from __future__ import annotations

from typing import Dict, Iterable, Mapping, Tuple

import numpy as np
import paddle
from paddle import nn

from ppsr2q import ops
from ppsr2q.quant.calibrate import BOUNDS, stored_bounds
from ppsr2q.quant.convert import get_sublayer, set_sublayer
from ppsr2q.quant.plan import PlannedTensor
from ppsr2q.spr2q.finetune import snapshot

FUSED_KIND = "fused model"


def _get_parameter(model: nn.Layer, name: str) -> paddle.Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(get_sublayer(model, owner), leaf)


def _without_quantizer(model: nn.Layer, tensor: PlannedTensor) -> None:
    if tensor.role == "weight":
        layer = get_sublayer(model, tensor.layer)
        layer.weight_delta, layer.weight_quantizer = None, ops.QuantPoint()
    else:
        set_sublayer(model, tensor.layer, ops.QuantPoint())


def strip_weight_quantizers(model: nn.Layer, tensors: Iterable[PlannedTensor]) -> None:
    """Remove increments and the quantizers of parameters: the form that fused weights are loaded into."""
    for tensor in tensors:
        if tensor.parameter:
            _without_quantizer(model, tensor)


def fuse(student: nn.Layer, tensors: Iterable[PlannedTensor]) -> None:
    """Replace, in place, every quantized parameter by Q(W + ΔW), and its quantizer by nothing.

    Activations keep their quantizers. The student must not have dynamic gates any more.
    """
    with paddle.no_grad():
        for tensor in tensors:
            if tensor.parameter is None:
                continue
            if tensor.role == "weight":
                value = get_sublayer(student, tensor.layer).quantized_weight()
            else:
                value = get_sublayer(student, tensor.layer)(_get_parameter(student, tensor.parameter))
            _get_parameter(student, tensor.parameter).set_value(value)
            _without_quantizer(student, tensor)


def fused_state(student: nn.Layer, bounds: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """Arrays of a fused model file: all parameters but bounds, and ``bounds/<plan name>`` of every quantizer, those
    of the weights included so that their codes can be read off the fused values.

    Args:
        student: after :func:`fuse`.
        bounds: ``get_bounds`` of the student before it.
    """
    return {**snapshot(student), **stored_bounds(bounds)}


def split_fused_state(state: Mapping[str, np.ndarray]) -> Tuple[Dict[str, np.ndarray], Dict[str, np.ndarray]]:
    """(parameters by name, bounds by plan name) of :func:`fused_state`."""
    return ({name: value for name, value in state.items() if not name.startswith(BOUNDS)},
            {name[len(BOUNDS):]: value for name, value in state.items() if name.startswith(BOUNDS)})
