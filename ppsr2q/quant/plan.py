"""The quantization plan of Paddle networks: rules (``core.plan``) applied to layers; each architecture's rules."""
from __future__ import annotations

from typing import Dict, List

from paddle import nn

from ppsr2q import ops
from ppsr2q.core.plan import CONV, LINEAR, POINT, PlanEntry, PlannedTensor, PlanRules

__all__ = ["PLAN_ENTRIES", "Plan", "PlanEntry", "PlannedTensor", "layer_kinds"]


def layer_kinds(model: nn.Layer) -> Dict[str, str]:
    """Sublayer name -> kind, in the order of the network; a kind that cannot be quantized is its class's name."""
    def kind(layer: nn.Layer) -> str:
        for name, layer_type in ((POINT, ops.QuantPoint), (LINEAR, nn.Linear), (CONV, nn.Conv2D)):
            if isinstance(layer, layer_type):
                return name
        return type(layer).__name__
    return {name: kind(layer) for name, layer in model.named_sublayers()}


class Plan(PlanRules):
    """Rules that can be applied to a Paddle network."""

    def resolve(self, model: nn.Layer) -> List[PlannedTensor]:
        """The quantizers of ``model`` in the order of its sublayers; errors as :meth:`PlanRules.resolve_kinds`."""
        return self.resolve_kinds(layer_kinds(model), type(model).__name__)


_RECTIFIED = ("q", "k", "v", "win_mhsa.proj", "convffn1.fc1", "convffn1.fc2", "convffn2.fc1", "convffn2.fc2",
              "assm.out_proj", "assm.route.0", "assm.route.2")
_UNRECTIFIED = ("convffn1.sg.conv", "convffn2.sg.conv", "assm.in_proj.0", "assm.CPE.0")
_SCAN_ACTIVATIONS = ("u", "dt", "delta", "B", "C", "states")
_SCAN_SOURCES = {"A": "A_logs", "dt_bias": "dt_projs_bias"}


def _mambairv2_entries() -> List[PlanEntry]:
    layer = "layers.*.residual_group.layers.*"
    scan = f"{layer}.assm.selectiveScan.points"
    return ([PlanEntry(f"{layer}.{name}", rectifier=True) for name in _RECTIFIED]
            + [PlanEntry(f"{layer}.{name}") for name in _UNRECTIFIED]
            + [PlanEntry(f"{layer}.win_mhsa.points.{name}") for name in ("q", "k", "v")]
            + [PlanEntry(f"{layer}.win_mhsa.points.map", one_sided=True)]
            + [PlanEntry(f"{scan}.{name}", parameter=name) for name in ("x_proj_weight", "dt_projs_weight")]
            + [PlanEntry(f"{scan}.{name}") for name in _SCAN_ACTIVATIONS]
            + [PlanEntry(f"{scan}.{name}", source=source) for name, source in _SCAN_SOURCES.items()]
            + [PlanEntry(f"{layer}.points.embeddingA", parameter="embeddingA.weight"),
               PlanEntry(f"{layer}.assm.points.embeddingB", parameter="embeddingB.weight"),
               PlanEntry(f"{layer}.assm.points.prompt_table"),
               PlanEntry(f"{layer}.assm.points.one_hot", fixed=(0.0, 1.0))])


#: spr2q.md section 2: 48 quantizers in each of 20 AttentiveLayers, 11 of the weights rectified; everything outside
#: the AttentiveLayers, LayerNorm, biases, bias tables, scales, Ds and the recurrence stay in floating point.
PLAN_ENTRIES = {"mambairv2_light": _mambairv2_entries()}
