"""The quantization plan: which tensors of a network get how many bits, as data."""
from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from paddle import nn

from ppsr2q import ops
from ppsr2q.core.errors import UserError
from ppsr2q.quant.fake_quantizer import QuantizerOptions


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name matches: ``*`` stands for anything within one part, ``**`` for any number of parts."""
    expression = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^.]*")
    return re.fullmatch(expression, name) is not None


@dataclass(frozen=True)
class PlanEntry:
    """A rule for all sublayers whose name matches ``pattern`` (see :func:`matches`).

    A Linear or Conv2D gets a weight and an input quantizer, a QuantPoint one.

    Attributes:
        rectifier: the weight gets a rectifier group (Linear only).
        one_sided: the range search may keep the lower bound (``dobi_mode: paper``).
        fixed: bounds that are neither searched nor trained.
        parameter: of a point through which a parameter passes unchanged, that parameter's name beside the points
            (its codes can be stored instead of its floats).
        source: of a point that sees a function of a parameter, that parameter's name beside the points (it can learn
            through the quantizer).
    """

    pattern: str
    rectifier: bool = False
    one_sided: bool = False
    fixed: Optional[Tuple[float, float]] = None
    parameter: Optional[str] = None
    source: Optional[str] = None


@dataclass(frozen=True)
class PlannedTensor:
    """One quantizer of a resolved plan.

    Attributes:
        name: ``<layer>.weight``, ``<layer>.input`` or the point's own name.
        layer: name of the sublayer that is replaced.
        role: ``weight``, ``input`` or ``point``.
        bits: 1 to 8, or None: left in floating point by an override.
        parameter: name of the parameter whose codes this quantizer makes, if any.
        source: name of the parameter that alone decides the quantized values, if any.
    """

    name: str
    layer: str
    role: str
    bits: Optional[int]
    entry: PlanEntry
    parameter: Optional[str]
    source: Optional[str] = None

    @property
    def rectified(self) -> bool:
        return self.entry.rectifier and self.role == "weight" and self.bits is not None


@dataclass(frozen=True)
class Plan:
    """Entries, the bits they get, exceptions, and how bounds are held.

    Attributes:
        overrides: pattern over tensor names -> bits, or None for floating point; the last match wins.
    """

    entries: Sequence[PlanEntry]
    bits: int = 4
    overrides: Mapping[str, Optional[int]] = field(default_factory=dict)
    options: QuantizerOptions = QuantizerOptions()

    def resolve(self, model: nn.Layer) -> List[PlannedTensor]:
        """The quantizers of ``model`` in the order of its sublayers.

        Raises:
            UserError: an entry or override matches nothing, a layer is matched twice or is of no kind that can be
                quantized, or a rectifier is asked for where there is no Linear.
        """
        layers = dict(model.named_sublayers())
        matched: Dict[str, PlanEntry] = {}
        for entry in self.entries:
            names = [name for name in layers if matches(name, entry.pattern)]
            if not names:
                raise UserError(f"plan entry {entry.pattern!r} matches no layer of {type(model).__name__}")
            for name in names:
                if name in matched:
                    raise UserError(f"layer {name} is matched by two plan entries: {matched[name].pattern!r} and "
                                    f"{entry.pattern!r}")
                matched[name] = entry
        tensors = [tensor for name, layer in layers.items() if name in matched
                   for tensor in _tensors(name, layer, matched[name], self.bits)]
        return _override(tensors, self.overrides)

    def describe(self) -> dict:
        """The rules as plain data, for files that a resolved network belongs to."""
        return {"entries": [vars(entry) for entry in self.entries], "bits": self.bits,
                "overrides": dict(self.overrides), "options": vars(self.options)}


def plan_from_description(description: dict) -> Plan:
    """Inverse of :meth:`Plan.describe` (lists from JSON become tuples again)."""
    entries = [PlanEntry(**{**entry, "fixed": tuple(entry["fixed"]) if entry["fixed"] else None})
               for entry in description["entries"]]
    return Plan(entries, description["bits"], description["overrides"], QuantizerOptions(**description["options"]))


def _tensors(name: str, layer: nn.Layer, entry: PlanEntry, bits: int) -> List[PlannedTensor]:
    if isinstance(layer, ops.QuantPoint):
        if entry.rectifier:
            raise UserError(f"plan entry {entry.pattern!r}: a rectifier needs a Linear layer, {name} is a point")
        owner = name.rpartition(".points.")[0]
        parameter = f"{owner}.{entry.parameter}" if entry.parameter else None
        source = f"{owner}.{entry.source}" if entry.source else parameter
        return [PlannedTensor(name, name, "point", bits, entry, parameter, source)]
    if not isinstance(layer, (nn.Linear, nn.Conv2D)):
        raise UserError(f"plan entry {entry.pattern!r} matches {name}, a {type(layer).__name__}; only Linear, Conv2D "
                        "and QuantPoint can be quantized")
    if entry.rectifier and not isinstance(layer, nn.Linear):
        raise UserError(f"plan entry {entry.pattern!r}: a rectifier needs a Linear layer, {name} is a Conv2D")
    weight = f"{name}.weight"
    return [PlannedTensor(weight, name, "weight", bits, entry, weight, weight),
            PlannedTensor(f"{name}.input", name, "input", bits, entry, None)]


def _override(tensors: List[PlannedTensor], overrides: Mapping[str, Optional[int]]) -> List[PlannedTensor]:
    for pattern, bits in overrides.items():
        if not any(matches(tensor.name, pattern) for tensor in tensors):
            raise UserError(f"override {pattern!r} (quant.overrides) matches no tensor of the plan; see --show-plan")
        tensors = [replace(tensor, bits=bits) if matches(tensor.name, pattern) else tensor for tensor in tensors]
    return tensors


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
