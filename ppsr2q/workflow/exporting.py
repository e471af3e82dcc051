"""Stage 3 as ``tools/export.py`` runs it: fuse, check parity, write what ships."""
from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.config import Config, without_folders
from ppsr2q.core.errors import ParityError, UserError
from ppsr2q.core.files import atomic_folder, atomic_path, load_artifact, save_artifact, tensors_sha256
from ppsr2q.deploy.onnx_export import TARGETS, OnnxUpscaler, import_package, write_onnx
from ppsr2q.deploy.openvino import OpenvinoUpscaler, write_openvino
from ppsr2q.deploy.packed import PackedModel, write_packed
from ppsr2q.deploy.packing import pack
from ppsr2q.deploy.torch_export import TORCH_KIND, write_torch
from ppsr2q.models.convert_torch import to_paddle_layout
from ppsr2q.quant import Plan, get_bounds, named_quantizers
from ppsr2q.quant.fake_quantizer import fix_bounds
from ppsr2q.spr2q.finetune import snapshot
from ppsr2q.spr2q.fuse import FUSED_KIND, fuse, fused_state
from ppsr2q.spr2q.routing_table import TABLE_KIND, load_table
from ppsr2q.workflow.networks import (Quantized, build_quantized, fused_network, load_folded, load_fused, load_packed,
                                      parameters_of_official)
from ppsr2q.workflow.paths import paths, require_current, require_stage
from ppsr2q.workflow.training import has_routing, load_trained

TOLERANCE = 1e-5  # of an output in [0, 1], largest difference: both networks run the same float32 operators
#: Root mean square difference of what adds in another order (inference model, ONNX) or has its parameters rounded to
#: float16. A value within rounding of a threshold then gets the next code, which may change a routing and with it the
#: whole scan. So what is accepted is a grey level or, where a student answers such noise more strongly, NOISE_FACTOR
#: times as much as it differs from itself when noise of the size of rounding is added to its input.
GRAPH_TOLERANCE = 1 / 255
ROUNDING_NOISE, NOISE_FACTOR = 1e-6, 3
PROBE_SIZES = ((24, 40), (33, 17))


@dataclass(frozen=True)
class Written:
    """A file (or folder) of an export.

    Attributes:
        size: bytes.
        difference: to the calibrated student on probe images, as ``measure`` says.
    """

    path: Path
    size: int
    difference: float
    measure: str


def load_calibrated(config: Config, config_path: str) -> Quantized:
    """The student that will be fused: from the SPR²Q Table, or, where there is nothing to route, as stage 1 left it."""
    if not has_routing(config):
        return load_trained(config, config_path)
    path = paths(config)["table"]
    require_stage(path, "route_calib", config_path)
    quantized = build_quantized(config)
    table = load_folded(quantized, config, path, TABLE_KIND)
    require_current(path, table.metadata["rectifiers_sha256"], paths(config)["rectifiers"], "route_calib")
    load_table(quantized.student, table, path)
    return quantized


def probe(size: Tuple[int, int]) -> paddle.Tensor:
    """A smooth image with edges, float32 (1, 3, h, w), for comparing two forms of one network."""
    y, x = np.meshgrid(np.linspace(0, 6, size[0]), np.linspace(0, 9, size[1]), indexing="ij")
    planes = [0.5 + 0.4 * np.sin(x + phase) * np.cos(y - phase) + 0.1 * (x * y % 2 > 1) for phase in (0, 1, 2)]
    return paddle.to_tensor(np.clip(planes, 0, 1)[None].astype(np.float32))


def save_inference_model(network: nn.Layer, folder: Path) -> None:
    """Paddle inference model for one image of any height and width: a folder with ``model.json`` (or ``.pdmodel``) and
    ``model.pdiparams``."""
    fix_bounds(named_quantizers(network).values())
    spec = [paddle.static.InputSpec([1, 3, None, None], "float32", "lr")]
    graph = paddle.jit.to_static(network, input_spec=spec, full_graph=True)
    with atomic_folder(folder) as temporary:
        paddle.jit.save(graph, str(temporary / "model"))


def _outputs(network, noise: float = 0.0, sizes: Sequence[Tuple[int, int]] = PROBE_SIZES) -> List[np.ndarray]:
    random = np.random.default_rng(0)
    images = [probe(size) for size in sizes]
    noises = [noise * random.uniform(-1, 1, image.shape).astype(np.float32) for image in images]
    with paddle.no_grad():
        return [network(image + paddle.to_tensor(own)).numpy() for image, own in zip(images, noises)]


def graph_tolerance(network, outputs: List[np.ndarray], sizes: Sequence[Tuple[int, int]] = PROBE_SIZES) -> float:
    """Root mean square difference to a network's ``outputs`` on probes that a sound graph of it may show."""
    own = map(_root_mean_square, _outputs(network, ROUNDING_NOISE, sizes), outputs)
    return max(GRAPH_TOLERANCE, NOISE_FACTOR * max(own))


def export(config: Config, config_path: str, formats: Sequence[str], rest: str = "float32", target: str = "ort",
           optimize: bool = False, on_written: Callable[[Written], None] = lambda written: None) -> Dict[str, Written]:
    """Fuse, and write every format (a key of ``FORMATS``) under ``output_dir``.

    Args:
        rest: type of what is not quantized in a packed model, ``float32`` or ``float16``.
        target: of the ONNX file, a key of ``TARGETS``.
        optimize: OpenVINO's network has the scans as operators of our extension.
        on_written: called after each format, before the next one may fail.

    Raises:
        UserError: unknown format or target, an option of a format that is not written, a missing package (before anything
            is written), or a stage that has not run.
        ParityError: a written form answers differently from the calibrated student.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"--format {','.join(unknown)}: expected some of {', '.join(FORMATS)}, separated by commas")
    if target not in TARGETS:
        raise UserError(f"--target {target}: expected one of {', '.join(TARGETS)}")
    for option, given, form in (("--rest float16", rest != "float32", "packed"),
                                (f"--target {target}", target != "ort", "onnx"), ("--optimize", optimize, "openvino")):
        if given and form not in formats:
            raise UserError(f"{option} is of --format {form}, which is not among {','.join(formats)}")
    for package in sorted({package for name in formats for package in PACKAGES.get(name, ())}):
        import_package(package)
    quantized = load_calibrated(config, config_path)
    student = quantized.student
    student.routing = "argmax"  # whatever it was trained with: what ships draws no noise
    expected, bounds = _outputs(student), get_bounds(student)
    tolerance = graph_tolerance(student, expected)
    fuse(student, quantized.tensors)
    origin = {**quantized.origin.metadata, "config": without_folders(quantized.origin.metadata["config"]),
              "source_sha256": tensors_sha256(quantized.origin.tensors)}
    job = _Job(student, quantized.plan, bounds, origin, rest, target, optimize, expected, tolerance)
    done = {}
    for name, form in FORMATS.items():
        if name in formats:
            done[name] = _write(form, job, paths(config)[form.place])
            on_written(done[name])
    return done


@dataclass(frozen=True)
class _Job:
    """What a writer of a format gets: the fused student, and the outputs that its file must reproduce (a graph: to
    ``graph_tolerance``)."""

    student: nn.Layer
    plan: Plan
    bounds: Dict[str, np.ndarray]
    provenance: Dict[str, Any]
    rest: str
    target: str
    optimize: bool
    expected: List[np.ndarray]
    graph_tolerance: float

    @functools.cached_property
    def packed(self) -> PackedModel:
        metadata = dict(self.provenance)
        return pack(self.student, metadata.pop("architecture"), self.plan, self.bounds, metadata)


def _write(form: "_Format", job: _Job, path: Path) -> Written:
    """Write a format in place of what is at ``path``, but only once it has answered as it must."""
    with (atomic_folder if form.folder else atomic_path)(path) as temporary:
        try:
            return dataclasses.replace(form.write(job, temporary), path=path)
        except ParityError as error:
            raise ParityError(f"{path} {error}; it was not written") from None
        except UserError as error:  # users never see the temporary name
            raise UserError(str(error).replace(str(temporary), str(path))) from error


def _write_fused(job: _Job, path: Path) -> Written:
    save_artifact(path, fused_state(job.student, job.bounds), FUSED_KIND,
                  {**job.provenance, "plan": job.plan.describe()})
    return _checked(path, load_fused(path), job.expected, _LARGEST, TOLERANCE)


def _write_packed(job: _Job, path: Path) -> Written:
    write_packed(path, job.packed, job.rest)
    if job.rest == "float32":
        return _checked(path, load_packed(path), job.expected, _LARGEST, TOLERANCE)
    return _checked_graph(job, path, load_packed(path))


def _write_inference_model(job: _Job, folder: Path) -> Written:
    save_inference_model(job.student, folder)
    return _checked_graph(job, folder, paddle.jit.load(str(folder / "model")))


def _write_onnx(job: _Job, path: Path) -> Written:
    write_onnx(path, job.packed, job.target)
    session = OnnxUpscaler(path.read_bytes(), job.provenance["architecture"]["scale"])
    return _checked_graph(job, path, _of_arrays(session.run))


def _write_openvino(job: _Job, folder: Path) -> Written:
    write_openvino(folder, job.packed, job.optimize)
    network = OpenvinoUpscaler(folder, job.provenance["architecture"]["scale"])
    return _checked_graph(job, folder, _of_arrays(network.run))


def _write_torch(job: _Job, path: Path) -> Written:
    left = {name: q for name, q in job.packed.quantizers.items() if name in named_quantizers(job.student)}
    write_torch(path, snapshot(job.student), left, job.provenance)
    architecture = job.provenance["architecture"]
    read = parameters_of_official(architecture, to_paddle_layout(load_artifact(path, TORCH_KIND).tensors), str(path))
    return _checked(path, fused_network(architecture, job.plan, read, job.bounds, str(path)), job.expected, _LARGEST,
                    TOLERANCE)


@dataclass(frozen=True)
class _Format:
    """How a format is written, and its key among the ``paths`` of a run."""

    write: Callable[[_Job, Path], Written]
    place: str
    folder: bool = False


#: In the order in which they run: the last one turns the student into a graph.
FORMATS: Dict[str, _Format] = {"fused": _Format(_write_fused, "fused"), "packed": _Format(_write_packed, "packed"),
                               "onnx": _Format(_write_onnx, "onnx"),
                               "openvino": _Format(_write_openvino, "openvino", folder=True),
                               "torch": _Format(_write_torch, "torch"),
                               "paddle": _Format(_write_inference_model, "inference", folder=True)}

PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}  # of the extra "deploy"


def _root_mean_square(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b)**2).mean()**0.5)


_LARGEST = "largest difference"
_ROOT_MEAN_SQUARE = "root mean square difference"
_MEASURES = {_LARGEST: lambda a, b: float(np.abs(a - b).max()), _ROOT_MEAN_SQUARE: _root_mean_square}


def _of_arrays(run: Callable[[np.ndarray], np.ndarray]) -> Callable[[paddle.Tensor], paddle.Tensor]:
    """A network of another engine as one of tensors."""
    return lambda x: paddle.to_tensor(run(x.numpy()))


def _checked_graph(job: _Job, path: Path, network: Callable) -> Written:
    return _checked(path, network, job.expected, _ROOT_MEAN_SQUARE, job.graph_tolerance)


def _checked(path: Path, network: Callable, expected: List[np.ndarray], measure: str, tolerance: float) -> Written:
    difference = float(np.max([_MEASURES[measure](a, b) for a, b in zip(_outputs(network), expected)]))
    if not difference <= tolerance:  # NaN, which np.max hands on, is not
        raise ParityError(f"differs from the calibrated student by {difference:.3g} (at most {tolerance:.3g} of an "
                          "output in [0, 1] is accepted)")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Written(path, sum(file.stat().st_size for file in files), difference, measure)
