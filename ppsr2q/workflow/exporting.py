"""Stage 3 as ``tools/export.py`` runs it: fuse, check parity, write what ships."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.config import Config
from ppsr2q.core.errors import ParityError
from ppsr2q.core.files import load_artifact, save_artifact
from ppsr2q.quant import get_bounds, named_quantizers
from ppsr2q.quant.fake_quantizer import fix_bounds
from ppsr2q.spr2q.fuse import FUSED_KIND, fuse, fused_state
from ppsr2q.spr2q.rectifier import freeze_gates
from ppsr2q.spr2q.routing_table import TABLE_KIND, load_table
from ppsr2q.workflow.batches import calibration_batch
from ppsr2q.workflow.networks import Quantized, build_quantized, check_weights, load_fused, provenance
from ppsr2q.workflow.training import load_trained, paths, require_stage

TOLERANCE = 1e-5  # of an output in [0, 1]; both networks run the same float32 operators


@dataclass(frozen=True)
class Exported:
    """Files written, and the largest output difference to the calibrated student."""

    fused: Path
    inference: Path
    fused_difference: float
    inference_difference: float


def load_calibrated(config: Config, config_path: str) -> Quantized:
    """The student that will be fused: from the SPR²Q Table, or, without rectifiers, from the trained bounds."""
    if not config.rectifier.enabled:
        return load_trained(config, config_path)
    path = paths(config)["table"]
    require_stage(path, "route_calib", config_path)
    quantized = build_quantized(config)
    check_weights(load_artifact(path, TABLE_KIND), quantized.teacher, path)
    load_table(quantized.student, path)
    return quantized


def mean_gate_student(config: Config, config_path: str) -> Quantized:
    """Stage 1 without stage 2: gates at their mean over the calibration batch ("RGT" rows of the paper)."""
    quantized = load_trained(config, config_path)
    freeze_gates(quantized.student, paddle.to_tensor(calibration_batch(config)))
    return quantized


def probe(size: Tuple[int, int]) -> paddle.Tensor:
    """A smooth image with edges, float32 (1, 3, h, w), for comparing two forms of one network."""
    y, x = np.meshgrid(np.linspace(0, 6, size[0]), np.linspace(0, 9, size[1]), indexing="ij")
    planes = [0.5 + 0.4 * np.sin(x + phase) * np.cos(y - phase) + 0.1 * (x * y % 2 > 1) for phase in (0, 1, 2)]
    return paddle.to_tensor(np.clip(planes, 0, 1)[None].astype(np.float32))


def _difference(one: nn.Layer, other, sizes) -> float:
    with paddle.no_grad():
        return max(float((one(probe(size)) - other(probe(size))).abs().max()) for size in sizes)


def save_inference_model(network: nn.Layer, prefix: Path) -> None:
    """Paddle inference model for one image of any height and width: ``<prefix>.json`` (or ``.pdmodel``) and
    ``<prefix>.pdiparams``."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    fix_bounds(named_quantizers(network).values())
    spec = [paddle.static.InputSpec([1, 3, None, None], "float32", "lr")]
    paddle.jit.save(paddle.jit.to_static(network, input_spec=spec, full_graph=True), str(prefix))


def export(config: Config, config_path: str, inference: bool = True) -> Exported:
    """Write ``fused.safetensors`` and ``inference/``.

    Raises:
        ParityError: a written form answers differently from the calibrated student.
    """
    quantized = load_calibrated(config, config_path)
    student, where = quantized.student, paths(config)
    with paddle.no_grad():
        sizes = [(24, 40), (33, 17)]
        expected = [student(probe(size)) for size in sizes]
    bounds = get_bounds(student)
    fuse(student, quantized.tensors)
    metadata = {**provenance(config, quantized.teacher), "plan": quantized.plan.describe()}
    save_artifact(where["fused"], fused_state(student, bounds), FUSED_KIND, metadata)
    fused = load_fused(where["fused"])
    with paddle.no_grad():
        difference = max(float((fused(probe(s)) - e).abs().max()) for s, e in zip(sizes, expected))
    _require_parity("fused.safetensors", difference)
    inference_difference = 0.0
    if inference:
        save_inference_model(fused, where["inference"] / "model")
        inference_difference = _difference(fused, paddle.jit.load(str(where["inference"] / "model")), sizes)
        _require_parity("the inference model", inference_difference)
    return Exported(where["fused"], where["inference"], difference, inference_difference)


def _require_parity(what: str, difference: float) -> None:
    if not difference <= TOLERANCE:
        raise ParityError(f"{what} differs from the calibrated student by {difference:.3g} (at most {TOLERANCE:g} of "
                          "an output in [0, 1] is accepted)")
