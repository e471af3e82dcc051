"""Networks as a config describes them, and as artifacts carry them."""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.config import Config, config_to_dict, default_values
from ppsr2q.core.environment import require_memory
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import Artifact, load_artifact
from ppsr2q.core.parameters import first_misfit
from ppsr2q.deploy.packed import PACKED_KIND, describe, read_packed
from ppsr2q.deploy.packing import unpack
from ppsr2q.models import ARCHITECTURES
from ppsr2q.models.checkpoint import load_state, load_weights, weights_sha256
from ppsr2q.quant import PLAN_ENTRIES, Plan, QuantizerOptions, quantize, set_bounds
from ppsr2q.quant.convert import named_quantizers, parameters_without_bounds
from ppsr2q.quant.folds import apply_folds
from ppsr2q.quant.plan import PlannedTensor
from ppsr2q.spr2q.finetune import changed_parameters, snapshot
from ppsr2q.spr2q.fuse import FUSED_KIND, split_fused_state, strip_weight_quantizers

EMBEDDED = "embedded"
BYTES_PER_PIXEL = 8500  # of working memory in a forward with our kernels, measured; the references take more
FOLDS = "folds/"  # prefix of what artifacts hold of them
_EMBEDDED_FILES = {("mambairv2_light", 2): "mambairv2_light_x2_embedded.safetensors"}


def embedded_weights(name: str, scale: int) -> Path:
    """Path of the small full-precision checkpoint that ships with the package.

    Raises:
        UserError: there is none for this architecture and scale.
    """
    import ppsr2q.models
    file = _EMBEDDED_FILES.get((name, scale))
    if file is None:
        raise UserError(f"model.weights: no checkpoint for {name} x{scale} ships with ppsr2q; give a file")
    return Path(ppsr2q.models.__file__).parent / "weights" / file


def build_network(config: Config, with_weights: bool = True) -> nn.Layer:
    """The full-precision network of a config, in eval mode.

    Raises:
        UserError: no weights given, or weights that do not fit.
    """
    model = ARCHITECTURES[config.model.name](config.model.scale, config.model.routing, config.train.recompute)
    model.routing_seed = config.model.routing_seed
    if with_weights:
        weights: Union[str, Path, None] = config.model.weights
        if weights is None:
            raise UserError("model.weights is not set: give a full-precision checkpoint "
                            f"(-o model.weights=FILE), or -o model.weights={EMBEDDED} for the small x2 network that "
                            "ships with ppsr2q")
        if weights == EMBEDDED:
            weights = embedded_weights(config.model.name, config.model.scale)
        load_weights(model, weights)
    model.eval()
    return model


def build_plan(config: Config) -> Plan:
    """The plan of a config.

    Raises:
        UserError: ``quant.bits`` is null.
    """
    if config.quant.bits is None:
        raise UserError("quant.bits is null in this config: there is nothing to quantize (use a *_w4a4 config or "
                        "-o quant.bits=4)")
    options = QuantizerOptions(config.quant.zero_point, config.quant.parametrization)
    return Plan(PLAN_ENTRIES[config.model.name], config.quant.bits, config.quant.overrides, options)


@dataclass
class Quantized:
    """A quantized student beside its teacher.

    Attributes:
        architecture: key of ``ARCHITECTURES``.
        before: the student's network parameters at its start: those of the teacher, folded if ``folds`` are.
        folds: what ``quant.equalize`` chose, or an artifact carries (``folds.apply_folds``); empty: not equalized.
        origin: the artifact that ``load_folded`` has read last.
    """

    architecture: str
    teacher: nn.Layer
    student: nn.Layer
    plan: Plan
    tensors: List[PlannedTensor]
    before: Dict[str, np.ndarray]
    folds: Dict[str, np.ndarray] = field(default_factory=dict)
    origin: Optional[Artifact] = None

    def changed(self) -> Dict[str, np.ndarray]:
        """What artifacts must carry of the network itself, because it differs from the full-precision weights:
        ``folds/<fold>``, and ``parameters/<name>`` of what then differs from the folded weights."""
        return {**self.stored_folds(), **changed_parameters(self.student, self.before)}

    def stored_folds(self) -> Dict[str, np.ndarray]:
        """The folds as artifacts hold them."""
        return {f"{FOLDS}{name}": value for name, value in self.folds.items()}

    def fold(self, folds: Mapping[str, np.ndarray]) -> None:
        """Fold the student, fresh from ``build_quantized``.

        Raises:
            ValueError: from ``apply_folds``.
        """
        apply_folds(self.student, self.architecture, folds)
        self.folds, self.before = dict(folds), snapshot(self.student)

    def fold_as(self, artifact: Artifact, path: Union[str, Path]) -> None:
        """Fold the student as an artifact says, before its other parts are loaded; nothing, if it is folded so already
        (``before`` stays: by now the student may differ from it).

        Raises:
            UserError: folds that this network has no place for, or others than it already has.
        """
        folds = artifact.part(FOLDS)
        if self.folds or not folds:
            if set(folds) != set(self.folds) or any((folds[key] != self.folds[key]).any() for key in folds):
                raise UserError(f"{path}: equalized otherwise than what this run has started from")
            return
        try:
            self.fold(folds)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None


def build_quantized(config: Config) -> Quantized:
    """Teacher and freshly quantized student (no bounds yet) of a config."""
    teacher = build_network(config)
    plan = build_plan(config)
    for parameter in teacher.parameters():
        parameter.stop_gradient = True
    student, tensors = quantize(teacher, plan), plan.resolve(teacher)
    if all(tensor.bits is None for tensor in tensors):
        raise UserError("quant.overrides leave every tensor in floating point: there is nothing to quantize")
    return Quantized(config.model.name, teacher, student, plan, tensors, snapshot(student))


def provenance(config: Config, teacher: nn.Layer) -> Dict[str, Any]:
    """What every artifact says of where it comes from."""
    return {"config": config_to_dict(config),
            "seed": config.seed, "weights_sha256": weights_sha256(teacher),
            "architecture": _architecture(config)}


def _architecture(config: Config) -> Dict[str, Any]:
    return {"name": config.model.name, "scale": config.model.scale}


_SAME_QUANTIZERS = ("bits", "overrides", "zero_point", "equalize")


def check_origin(artifact: Artifact, config: Config, teacher: nn.Layer, path: Union[str, Path],
                 other_quantizers: bool = False) -> None:
    """Refuse an artifact of :func:`provenance` that was made for other full-precision weights or, unless
    ``other_quantizers`` may be, other quantizers.

    Raises:
        UserError: naming ``path`` and what differs.
    """
    expected = weights_sha256(teacher)
    found = artifact.metadata.get("weights_sha256")
    if found != expected:
        raise UserError(f"{path}: made for full-precision weights {str(found)[:12]}…, but model.weights has "
                        f"{expected[:12]}…")
    check_quantizers(artifact, config, path, ("equalize",) if other_quantizers else _SAME_QUANTIZERS)


def check_architecture(artifact: Artifact, config: Config, path: Union[str, Path]) -> None:
    """Refuse, with a UserError that names ``path``, an artifact of another architecture or scale than the config's."""
    found, wanted = artifact.metadata["architecture"], _architecture(config)
    if found != wanted:
        raise UserError(f"{path}: holds {found['name']} x{found['scale']}, but the config is of {wanted['name']} "
                        f"x{wanted['scale']} (another output_dir?)")


def load_folded(quantized: Quantized, config: Config, path: Union[str, Path], kind: str) -> Artifact:
    """An artifact of this run; the student, fresh from ``build_quantized``, is folded as it says.

    Raises:
        UserError: it is missing, or was made for other weights, another plan or other folds.
    """
    artifact = load_artifact(path, kind)
    check_origin(artifact, config, quantized.teacher, path)
    quantized.fold_as(artifact, path)
    quantized.origin = artifact
    return artifact


def _quant_options(artifact: Artifact) -> Dict[str, Any]:
    """Section ``quant`` of an artifact's config; what it does not name was not there yet when it was written."""
    defaults = {key.partition(".")[2]: value for key, value in default_values().items() if key.startswith("quant.")}
    return {**defaults, **artifact.metadata["config"]["quant"]}


def differing_quantizers(artifact: Artifact, config: Config,
                         options: Sequence[str] = _SAME_QUANTIZERS) -> Optional[str]:
    """None when an artifact's bounds mean the same under this config, else the first option of ``quant`` that differs
    (bounds of other quantizers would load, and mean something else)."""
    before, now = _quant_options(artifact), config_to_dict(config)["quant"]
    # as JSON: of overrides the order counts, the last match wins
    return next((key for key in options if json.dumps(before[key]) != json.dumps(now[key])), None)


def check_quantizers(artifact: Artifact, config: Config, path: Union[str, Path],
                     options: Sequence[str] = _SAME_QUANTIZERS) -> None:
    """Refuse, with a UserError that names ``path``, an artifact of other quantizers (:func:`differing_quantizers`)."""
    key = differing_quantizers(artifact, config, options)
    if key is not None:
        raise UserError(f"{path}: made with quant.{key} = {_quant_options(artifact)[key]!r}, now it is "
                        f"{config_to_dict(config)['quant'][key]!r}; restore it, or make the file again")


def fused_network(architecture: Dict[str, Any], plan: Plan, state: Dict[str, np.ndarray],
                  bounds: Dict[str, np.ndarray], source: str, routing: str = "argmax",
                  routing_seed: int = 0) -> nn.Layer:
    """A fused network from its parameters and the bounds of (at least) its activations.

    Raises:
        UserError: naming ``source``; arrays that do not fit the architecture and plan.
    """
    network = ARCHITECTURES[architecture["name"]](architecture["scale"], routing)
    network.routing_seed = routing_seed
    plan = Plan(plan.entries, plan.bits, plan.overrides)  # stored bounds are what acts; nothing is trained any more
    tensors = plan.resolve(network)
    student = quantize(network, plan)
    strip_weight_quantizers(student, tensors)
    quantizers, parameters = named_quantizers(student), parameters_without_bounds(student)
    first = first_misfit(parameters, state) or min(set(quantizers) - set(bounds), default=None)
    if first is not None:
        raise UserError(f"{source}: its arrays do not fit {architecture['name']} x{architecture['scale']}, "
                        f"first {first}")
    for name, parameter in parameters.items():
        parameter.set_value(state[name])
    set_bounds(student, {name: bounds[name] for name in quantizers})
    return student


def parameters_of_official(architecture: Dict[str, Any], arrays: Dict[str, np.ndarray],
                           source: str) -> Dict[str, np.ndarray]:
    """Arrays under the official keys -> parameters by our names.

    Raises:
        UserError: naming ``source``; see ``models.checkpoint.load_state``.
    """
    network = ARCHITECTURES[architecture["name"]](architecture["scale"])
    load_state(network, arrays, source)
    return {name: parameter.numpy() for name, parameter in network.named_parameters()}


def load_fused(path: Union[str, Path], routing: str = "argmax", routing_seed: int = 0) -> nn.Layer:
    """A fused network from its file alone: architecture, plan, weights and bounds are all in it.

    Raises:
        UserError: damaged file, or one whose arrays do not fit the architecture and plan that it names.
    """
    return network_of_fused(load_artifact(path, FUSED_KIND), path, routing, routing_seed)


def network_of_fused(artifact: Artifact, path: Union[str, Path], routing: str = "argmax",
                     routing_seed: int = 0) -> nn.Layer:
    """:func:`load_fused` of a file that has been read."""
    architecture, plan = (artifact.metadata.get(key) for key in ("architecture", "plan"))
    describe(architecture, str(path))  # refuses what this version does not know
    state, bounds = split_fused_state(artifact.tensors)
    return fused_network(architecture, Plan.from_description(plan, str(path)), state, bounds, str(path), routing,
                         routing_seed)


def load_packed(path: Union[str, Path], routing: str = "argmax", routing_seed: int = 0) -> nn.Layer:
    """The fused network that a packed file holds, as a Paddle network: the same answers bit for bit (float32 rest).

    Raises:
        UserError: from ``read_packed``.
    """
    model = read_packed(path)
    bounds = {name: np.array([q.lower, q.upper], np.float32) for name, q in model.quantizers.items()}
    return fused_network(model.architecture, Plan.from_description(model.metadata["plan"], str(path)), unpack(model),
                         bounds, str(path), routing, routing_seed)


def load_model(path: Union[str, Path], routing: str = "argmax", routing_seed: int = 0) -> nn.Layer:
    """:func:`load_fused` or :func:`load_packed`, whichever the file is.

    Raises:
        UserError: neither of them, or from these.
    """
    artifact = load_artifact(path)
    if artifact.kind == FUSED_KIND:
        return network_of_fused(artifact, path, routing, routing_seed)
    if artifact.kind == PACKED_KIND:
        return load_packed(path, routing, routing_seed)
    raise UserError(f"{path}: holds {artifact.kind!r}, expected {FUSED_KIND!r} or {PACKED_KIND!r} (made by "
                    "tools/export.py)")


def upscaler(network: nn.Layer):
    """The network as a callable image -> image, float32 (h, w, 3) RGB in [0, 1] -> (scale h, scale w, 3), unclamped; a
    UserError where the image needs more memory than is free."""
    def upscale(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if paddle.get_device() == "cpu":
            require_memory((BYTES_PER_PIXEL + 12 * network.scale**2) * height * width,
                           f"an image of {width} x {height} pixels")
        x = paddle.to_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
        with paddle.no_grad():
            return network(x)[0].numpy().transpose(1, 2, 0)
    return upscale
