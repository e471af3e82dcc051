"""Stage 3 as ``tools/export.py`` runs it: fuse, check parity, write what ships."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.config import Config
from ppsr2q.core.errors import ParityError
from ppsr2q.core.files import save_artifact
from ppsr2q.quant import get_bounds, named_quantizers
from ppsr2q.quant.fake_quantizer import fix_bounds
from ppsr2q.spr2q.fuse import FUSED_KIND, fuse, fused_state
from ppsr2q.spr2q.rectifier import freeze_gates
from ppsr2q.spr2q.routing_table import load_table
from ppsr2q.workflow.batches import calibration_batch
from ppsr2q.workflow.networks import Quantized, build_quantized, check_origin, load_fused, provenance
from ppsr2q.workflow.training import load_trained, paths, require_stage

TOLERANCE = 1e-5  # of an output in [0, 1], largest difference: both networks run the same float32 operators
#: Root mean square difference of the inference model. Its scan adds in another order, and a value that lies within
#: rounding of a threshold then gets the next code and may change a routing: more than rounding, less than a grey level.
GRAPH_TOLERANCE = 1 / 255


@dataclass(frozen=True)
class Exported:
    """Files written, and their difference to the calibrated student on probe images: the largest of the fused file,
    the root mean square of the inference model (None when it was not written)."""

    fused: Path
    inference: Path
    fused_difference: float
    inference_difference: Optional[float]


def load_calibrated(config: Config, config_path: str) -> Quantized:
    """The student that will be fused: from the SPR²Q Table, or, where there is nothing to route, as stage 1 left it."""
    if not config.rectifier.enabled or config.rectifier.form == "full_rank":
        return load_trained(config, config_path)
    path = paths(config)["table"]
    require_stage(path, "route_calib", config_path)
    quantized = build_quantized(config)
    check_origin(load_table(quantized.student, path), config, quantized.teacher, path)
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


def save_inference_model(network: nn.Layer, prefix: Path) -> None:
    """Paddle inference model for one image of any height and width: ``<prefix>.json`` (or ``.pdmodel``) and
    ``<prefix>.pdiparams``."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    fix_bounds(named_quantizers(network).values())
    spec = [paddle.static.InputSpec([1, 3, None, None], "float32", "lr")]
    paddle.jit.save(paddle.jit.to_static(network, input_spec=spec, full_graph=True), str(prefix))


def _outputs(network, sizes) -> List[np.ndarray]:
    with paddle.no_grad():
        return [network(probe(size)).numpy() for size in sizes]


def export(config: Config, config_path: str, inference: bool = True) -> Exported:
    """Write ``fused.safetensors`` and ``inference/``.

    Raises:
        ParityError: a written form answers differently from the calibrated student.
    """
    quantized = load_calibrated(config, config_path)
    student, where, sizes = quantized.student, paths(config), [(24, 40), (33, 17)]
    expected, bounds = _outputs(student, sizes), get_bounds(student)
    fuse(student, quantized.tensors)
    metadata = {**provenance(config, quantized.teacher), "plan": quantized.plan.describe()}
    save_artifact(where["fused"], fused_state(student, bounds), FUSED_KIND, metadata)
    fused = load_fused(where["fused"])
    difference = max(float(np.abs(a - b).max()) for a, b in zip(_outputs(fused, sizes), expected))
    _require_parity("fused.safetensors", difference, TOLERANCE)
    graph_difference = None
    if inference:
        save_inference_model(fused, where["inference"] / "model")
        written = paddle.jit.load(str(where["inference"] / "model"))
        graph_difference = max(float(((a - b)**2).mean()**0.5) for a, b in zip(_outputs(written, sizes), expected))
        _require_parity("the inference model", graph_difference, GRAPH_TOLERANCE)
    return Exported(where["fused"], where["inference"], difference, graph_difference)


def _require_parity(what: str, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:
        raise ParityError(f"{what} differs from the calibrated student by {difference:.3g} (at most {tolerance:.3g} of "
                          "an output in [0, 1] is accepted)")
