"""Between a fused Paddle network and its packed form (Paddle's side of ``packed.py``)."""
from __future__ import annotations

from typing import Any, Dict, Iterable, Mapping

import numpy as np
import paddle
from paddle import nn

from ppsr2q import ops
from ppsr2q.core.errors import UserError
from ppsr2q.deploy.architectures import mambairv2_layers
from ppsr2q.deploy.packed import PackedModel, TensorQuantizer, make_layout
from ppsr2q.quant.calibrate import Observer, observe
from ppsr2q.quant.plan import Plan


def read_off_codes(values: np.ndarray, quantizer: TensorQuantizer, name: str) -> np.ndarray:
    """The uint8 codes of float32 values that a quantizer made, in their shape.

    Raises:
        UserError: a value is no level of the quantizer (up to the rounding of r s + a), naming the tensor.
    """
    lower, upper, step = np.float64(quantizer.lower), np.float64(quantizer.upper), np.float64(quantizer.step)
    codes = np.clip(np.rint((values - lower) / step), 0, 2**quantizer.bits - 1)
    rounding = 2 * np.spacing(np.float32(max(abs(lower), abs(upper))))
    if not (np.abs(codes * step + lower - values) <= rounding).all():
        raise UserError(f"{name}: its values are not levels of its quantizer (bounds {lower:g}, {upper:g}; "
                        f"{quantizer.bits} bits); only fused networks can be packed")
    return codes.astype(np.uint8)


def _point_outputs(network: nn.Layer, names: Iterable[str]) -> Dict[str, np.ndarray]:
    """What the named quantizers of points make of tensors that depend on parameters alone."""
    found = {}

    def observer_of(name: str) -> Observer:
        def keep_output(quantizer, x):
            quantizer.observer = None
            y = quantizer(x)
            found[name] = y.numpy()
            return y
        return keep_output

    observe(network, paddle.zeros([1, 3, network.window, network.window]), {name: observer_of(name) for name in names})
    return found


def pack(network: nn.Layer, architecture: Dict[str, Any], plan: Plan, bounds: Mapping[str, np.ndarray],
         metadata: Dict[str, Any]) -> PackedModel:
    """The packed form of a fused network.

    Args:
        network: fused: its quantized parameters are levels, the quantizers of its activations are in place.
        bounds: plan name -> float32 [2] of every quantizer, those of the parameters included.
        metadata: provenance.

    Raises:
        UserError: the network is not fused, or not by this plan.
    """
    layout = make_layout(architecture, plan.describe(), "the network")
    quantizers = {name: TensorQuantizer(bits, *(float(bound) for bound in bounds[name]))
                  for name, bits in layout.bits.items()}
    values = {name: parameter.numpy() for name, parameter in network.named_parameters()}
    values.update(_point_outputs(network, [t.name for t in layout.coded if t.name not in values]))
    codes = {t.name: read_off_codes(values[t.name].reshape(t.shape), quantizers[t.quantizer], t.name)
             for t in layout.coded}
    return PackedModel(architecture, quantizers, codes, {name: values[name] for name in layout.rest},
                       {**metadata, "plan": plan.describe()})


def unpack(model: PackedModel) -> Dict[str, np.ndarray]:
    """The parameters of the fused network, float32, by name.

    Levels are computed by the operator that computed them when the network was fused, so that they have the same
    bits. In the place of folded parameters stand others that lead to the same codes.
    """
    state = dict(model.floats)
    layout = make_layout(model.architecture, model.metadata["plan"], "the packed model")
    for tensor in layout.coded:
        quantizer = model.quantizers[tensor.quantizer]
        bounds = paddle.to_tensor(np.array([quantizer.lower, quantizer.upper], np.float32))
        near = paddle.to_tensor(quantizer.dequantize(model.codes[tensor.name]))
        with paddle.no_grad():
            state[tensor.name] = ops.fake_quantize(near, bounds, quantizer.bits).numpy()
    return _UNFOLD[model.architecture["name"]](model, state)


def _unfold_mambairv2(model: PackedModel, state: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    for layer in mambairv2_layers():
        scan, table = f"{layer}.assm.selectiveScan", f"{layer}.assm.points.prompt_table"
        if f"{scan}.points.A" in state:
            levels, quantizer = state.pop(f"{scan}.points.A"), model.quantizers[f"{scan}.points.A"]
            state[f"{scan}.A_logs"] = np.log(-_negative(levels, model.codes[f"{scan}.points.A"], quantizer))
        if f"{scan}.points.dt_bias" in state:
            state[f"{scan}.dt_projs_bias"] = state.pop(f"{scan}.points.dt_bias")[None]
        if table in state:  # as the product of itself and an identity
            product = state.pop(table)
            rank = 32
            state[f"{layer}.assm.embeddingB.weight"] = np.pad(product, [(0, 0), (0, rank - product.shape[1])])
            state[f"{layer}.embeddingA.weight"] = np.eye(rank, product.shape[1], dtype=np.float32)
    return state


def _negative(levels: np.ndarray, codes: np.ndarray, quantizer: TensorQuantizer) -> np.ndarray:
    """Negative numbers that get the given codes: their levels, or, of levels that are not negative, numbers between
    0 and the threshold below the level."""
    lower, step = np.float64(quantizer.lower), np.float64(quantizer.step)
    between = np.where(codes > 0, (lower + (codes - 0.5) * step) / 2, -step)
    return np.where(levels < 0, levels, between).astype(np.float32)


_UNFOLD = {"mambairv2_light": _unfold_mambairv2}
