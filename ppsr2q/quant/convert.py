"""Apply a plan to a network: one walk over its layers."""
from __future__ import annotations

import copy
from typing import Dict, List, Optional, Tuple

import paddle
from paddle import nn

from ppsr2q import ops
from ppsr2q.ops.norm import FrozenLayerNorm
from ppsr2q.quant.fake_quantizer import FakeQuantizer
from ppsr2q.quant.layers import QuantConv2D, QuantLinear
from ppsr2q.quant.plan import Plan, PlannedTensor


def get_sublayer(model: nn.Layer, name: str) -> nn.Layer:
    """The sublayer with a dotted name."""
    for part in name.split("."):
        model = getattr(model, part) if not part.isdigit() else model[int(part)]
    return model


def set_sublayer(model: nn.Layer, name: str, layer: nn.Layer) -> None:
    """Put a layer in the place of the sublayer with a dotted name."""
    parent, _, leaf = name.rpartition(".")
    owner = get_sublayer(model, parent) if parent else model
    owner._sub_layers[leaf] = layer  # the one place that also serves Sequential and LayerList


def _quantizer(tensor: Optional[PlannedTensor], plan: Plan) -> ops.QuantPoint:
    if tensor is None or tensor.bits is None:
        return ops.QuantPoint()
    return FakeQuantizer(tensor.bits, plan.options, tensor.entry.one_sided, tensor.entry.fixed)


def _places(model: nn.Layer) -> Dict[int, List[Tuple[nn.Layer, str]]]:
    """id -> (owner, attribute) of every sublayer; several where a layer is shared."""
    places: Dict[int, List[Tuple[nn.Layer, str]]] = {}
    for owner in model.sublayers(include_self=True):
        for leaf, layer in owner._sub_layers.items():
            places.setdefault(id(layer), []).append((owner, leaf))
    return places


def quantize(model: nn.Layer, plan: Plan) -> nn.Layer:
    """A copy of ``model`` whose planned layers and points are quantized; ``model`` itself is left alone.

    The bounds are unset until ``calibrate`` (or a loaded state) sets them. All parameters of the copy are frozen
    except the bounds; LayerNorms get the right gradient of their input nevertheless. A layer that has several places in
    the network has one quantizer for all of them.

    Raises:
        UserError: from :meth:`Plan.resolve`.
    """
    tensors = plan.resolve(model)
    student = copy.deepcopy(model)
    for parameter in student.parameters():
        parameter.stop_gradient = True
    for layer in student.sublayers():
        if type(layer) is nn.LayerNorm:
            layer.__class__ = FrozenLayerNorm
    places = _places(student)
    by_layer: Dict[str, Dict[str, PlannedTensor]] = {}
    for tensor in tensors:
        by_layer.setdefault(tensor.layer, {})[tensor.role] = tensor
    for name, roles in by_layer.items():
        layer = get_sublayer(student, name)
        if "point" in roles:
            replacement = _quantizer(roles["point"], plan)
        else:
            kind = QuantLinear if isinstance(layer, nn.Linear) else QuantConv2D
            replacement = kind(layer, _quantizer(roles["weight"], plan), _quantizer(roles["input"], plan))
        for owner, leaf in places[id(layer)]:
            owner._sub_layers[leaf] = replacement
    student.eval()
    return student


def named_quantizers(model: nn.Layer) -> Dict[str, FakeQuantizer]:
    """The quantizers of a network by their plan names (``….q.weight``, ``….q.input``, ``….points.map``)."""
    return {plan_name(name): layer for name, layer in model.named_sublayers() if isinstance(layer, FakeQuantizer)}


def parameters_without_bounds(model: nn.Layer) -> Dict[str, paddle.Tensor]:
    """Name -> parameter of all that are not a quantizer's bounds."""
    bounds = {id(quantizer.bounds) for quantizer in named_quantizers(model).values()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in bounds}


def plan_name(sublayer: str) -> str:
    """Plan name of a quantizer's sublayer name."""
    for role in ("weight", "input"):
        suffix = f".{role}_quantizer"
        if sublayer.endswith(suffix):
            return sublayer[:-len(suffix)] + f".{role}"
    return sublayer

