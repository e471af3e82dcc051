"""The options of every tool: one dataclass per section, read from YAML files and ``-o key=value`` overrides.

A file may name others under ``_base_`` (text or list, relative to the file); later ones win over earlier ones
and the file itself over all. Paths in values stay as written, relative to the working directory, but for a leading ``~``.
"""
from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import yaml

from ppsr2q.core.errors import UserError
from ppsr2q.core.typed import build, check, leaf_type, option, options, section

_BASE = "_base_"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str = option("mambairv2_light", "architecture", choices=("mambairv2_light",))
    scale: int = option(2, "enlargement", choices=(2, 4))
    weights: Optional[str] = option(None, "full-precision weights (.safetensors, .pdparams), or: embedded")
    routing: str = option("argmax", "token routing: noise-free, or the authors' noisy one",
                         choices=("argmax", "gumbel"))
    routing_seed: int = option(0, "seed of the gumbel noise", low=0)
    init: str = option("official", "start of a pretraining from scratch", choices=("official", "bilinear"))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    root: Optional[str] = option(None, "folder that holds the benchmark sets (Set5, Set14, ...)")
    train: Optional[str] = option(None, "folder of training images")
    sets: List[str] = option(["Set5"], "benchmark sets to evaluate on")


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    bits: Optional[int] = option(4, "bits of weights and activations; null: not quantized", low=1, high=8)
    overrides: Dict[str, Optional[int]] = option(
        {}, "bits of single tensors: pattern -> bits, null for floating point; added to those of _base_", low=1, high=8)
    zero_point: str = option("float", "free lower bound (the paper's), or a whole multiple of the step",
                             choices=("float", "integer"))
    parametrization: str = option("absolute", "train the bounds themselves, or divided by their first range",
                                  choices=("absolute", "relative"))
    equalize: bool = option(False, "first fold scales, shifts and head matrices between layers, which leaves the "
                            "full-precision network unchanged and makes it easier to quantize")


@dataclasses.dataclass(frozen=True)
class CalibConfig:
    images: int = option(32, "crops of the calibration batch", low=1)
    lr_patch: int = option(64, "side of a low-resolution crop in pixels", low=8)
    dobi_mode: str = option("code", "search bounds as 2DQuant's paper does, as its code does, or as its code and then "
                            "fit them by least squares", choices=("paper", "code", "fit"))
    progressive: bool = option(False, "search layer by layer, each behind the already quantized ones")
    outliers: float = option(0.0, "share of a tensor's values, at either end, that the search moves to the rest's minimum "
                             "or maximum", low=0, below=0.5)
    candidates: int = option(100, "bounds tried per tensor", low=2)
    max_samples: int = option(65536, "values per tensor that a search looks at", low=256)


@dataclasses.dataclass(frozen=True)
class RectifierConfig:
    enabled: bool = option(True, "train rectifiers; false: bounds only")
    number: int = option(4, "rectifiers per layer (N)", low=1)
    rank: int = option(8, "rank of a rectifier (r)", low=1)
    gate: str = option("dynamic", "rectifier weights from the input, or one trained vector per layer",
                       choices=("dynamic", "static"))
    per_sample: bool = option(False, "a dynamic gate weighs each sample, not the mean of the batch")
    start: str = option("zero", "increments begin at zero, or at those that best correct each layer's output (runs "
                        "without train.start_from)", choices=("zero", "closed_form"))
    form: str = option("low_rank", "N mixed products B A, or one unconstrained increment a layer (needs number: 1)",
                       choices=("low_rank", "full_rank"))


@dataclasses.dataclass(frozen=True)
class LossConfig:
    feature_weight: float = option(5.0, "weight of the feature loss (lambda)", low=0)
    feature_norm: str = option("l2", "divide features by nothing, each by its own L2 norm, or both by the teacher's",
                               choices=("none", "l2", "teacher"))
    feature_reduction: str = option("sum", "over tokens and channels", choices=("sum", "mean"))
    route_weight: float = option(0.0, "weight of the cross-entropy of the routing to the teacher's classes", low=0)
    truth_weight: float = option(0.0, "weight of the L1 distance to ground truth in the final phase", low=0)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """What stage 1 and pretraining have in common; stage 2 goes by the options of stage 1."""

    accumulate: int = option(1, "micro-batches per update and process", low=1)
    epsilon: float = option(1e-8, "Adam's epsilon", above=0)
    recompute: bool = option(False, "recompute layers in the backward pass: less memory, more time")
    log_every: int = option(10, "steps between two log lines", low=1)
    save_every: int = option(200, "steps between two resume checkpoints", low=1)
    validate_every: int = option(500, "steps between two validations; 0: never", low=0)
    validation_crops: int = option(8, "held-out crops per validation", low=1)
    augment: bool = option(True, "random flips and 90-degree rotations")


@dataclasses.dataclass(frozen=True)
class TrainConfig(LoopConfig):
    iterations: int = option(12000, "steps of stage 1", low=1)
    batch: int = option(8, "crops per micro-batch and process", low=1)
    lr_patch: int = option(64, "side of a low-resolution crop in pixels", low=8)
    lr_bounds: float = option(1e-2, "learning rate of the bounds", low=0)
    lr_rectifier: float = option(1e-2, "learning rate of the rectifiers", low=0)
    lr_gate: float = option(1e-2, "learning rate of the gates", low=0)
    start_from: Optional[str] = option(None, "rectifiers.safetensors of another run to begin with, of any bit width")
    finetune: str = option("none", "what learns beside bounds and rectifiers: nothing; quantized weights that have no "
                           "rectifier; these and all floating-point parameters", choices=("none", "latent", "all"))
    lr_latent: float = option(2e-4, "learning rate of quantized weights without a rectifier", low=0)
    lr_float: float = option(1e-4, "learning rate of floating-point parameters", low=0)
    teacher_routing: float = option(0.0, "first share of the steps in which the student routes as its teacher", low=0,
                                    high=1)
    final_share: float = option(0.0, "last share of the steps with their own crops, and ground truth", low=0, high=1)
    final_lr_patch: int = option(64, "side of a low-resolution crop in the final phase", low=8)
    final_batch: int = option(8, "crops per micro-batch and process in the final phase", low=1)
    average_last: int = option(0, "the result is the mean of the last iterates, this many; 0: the last one", low=0)
    betas: List[float] = option([0.9, 0.999], "Adam's decay rates", low=0, below=1, length=2)
    min_lr_ratio: float = option(0.0, "last learning rate / first", low=0, high=1)
    warmup: int = option(0, "steps of linear warm-up", low=0)
    grad_clip: Optional[float] = option(None, "largest norm of the whole gradient; null: any", above=0)


@dataclasses.dataclass(frozen=True)
class RouteCalibConfig:
    iterations: int = option(500, "steps of stage 2", low=1)
    batch: int = option(8, "crops per micro-batch and process", low=1)
    lr: float = option(1e-2, "learning rate of the routing weights", low=0)
    weights_space: str = option("softmax", "weights on the simplex, or free real numbers",
                               choices=("softmax", "free"))


@dataclasses.dataclass(frozen=True)
class PretrainConfig(LoopConfig):
    iterations: int = option(3000, "steps", low=1)
    batch: int = option(4, "crops per micro-batch and process", low=1)
    lr_patch: int = option(32, "side of a low-resolution crop in pixels", low=8)
    lr: float = option(5e-4, "learning rate", above=0)
    betas: List[float] = option([0.9, 0.99], "Adam's decay rates", low=0, below=1, length=2)
    warmup: int = option(100, "steps of linear warm-up", low=0)
    schedule: str = option("cosine", "how the learning rate falls", choices=("cosine", "multistep"))
    milestones: List[int] = option([], "steps at which multistep multiplies the rate by gamma", low=1)
    gamma: float = option(0.5, "factor of multistep", above=0, high=1)
    min_lr_ratio: float = option(0.01, "last learning rate / first, of cosine", low=0, high=1)
    grad_clip: Optional[float] = option(1.0, "largest norm of the whole gradient; null: any", above=0)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    mode: str = option("whole", "test sets as whole images, or as tiles as MambaIR's official tester cuts them",
                       choices=("whole", "official_tiles"))


@dataclasses.dataclass(frozen=True)
class Config:
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "gpu"))
    seed: int = option(10, "of everything random", low=0, high=2**31 - 1)
    output_dir: str = option("output", "folder for everything a run writes")
    model: ModelConfig = section(ModelConfig)
    data: DataConfig = section(DataConfig)
    quant: QuantConfig = section(QuantConfig)
    calib: CalibConfig = section(CalibConfig)
    rectifier: RectifierConfig = section(RectifierConfig)
    loss: LossConfig = section(LossConfig)
    train: TrainConfig = section(TrainConfig)
    route_calib: RouteCalibConfig = section(RouteCalibConfig)
    pretrain: PretrainConfig = section(PretrainConfig)
    eval: EvalConfig = section(EvalConfig)


def load_config(path: Optional[Union[str, Path]] = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (None: defaults only) with its bases, then apply ``key.sub=value`` overrides in order.

    Raises:
        UserError: unreadable file, a cycle of bases, an unknown key, a wrong type or a value out of range;
            the message names file or override, key, and what is accepted.
    """
    tree = _read_file(Path(path), ()) if path is not None else {}
    for text in overrides:
        tree = _merge(tree, _read_override(text))
    return build(_map_paths(tree, os.path.expanduser), Config)


def config_to_dict(config: Config) -> Dict[str, Any]:
    """Nested dict of plain values, fit for JSON and YAML."""
    return dataclasses.asdict(config)


def default_values() -> Dict[str, Any]:
    """Dotted key -> default of every option."""
    return {key: default for key, default, _, _ in options(Config)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Dict[str, Any]:
    """Nested dictionaries as one: dotted key -> value, tuples as lists."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


#: options of training sections that change what a run reports or how it computes, not what it computes
REPORTING_OPTIONS = ("log_every", "save_every", "validate_every", "validation_crops", "recompute")
PATH_OPTIONS = ("output_dir", "model.weights", "data.root", "data.train", "train.start_from")


def is_reporting(key: str) -> bool:
    """Whether an option, by its dotted key, is one of ``REPORTING_OPTIONS``."""
    return key.rpartition(".")[2] in REPORTING_OPTIONS


def without_folders(tree: Mapping[str, Any]) -> Dict[str, Any]:
    """A config as plain data, for files that are given away: paths are reduced to their last part."""
    return _map_paths(tree, lambda path: Path(path).name)


def _map_paths(tree: Mapping[str, Any], change: Callable[[str], str]) -> Dict[str, Any]:
    """A copy of a nested dict with every given path option changed."""
    tree = copy.deepcopy(dict(tree))
    for option_name in PATH_OPTIONS:
        section_name, _, key = option_name.rpartition(".")
        values = tree.get(section_name, {}) if section_name else tree
        if isinstance(values.get(key), str):
            values[key] = change(values[key])
    return tree


def describe_options() -> str:
    """One line per key: default, what is accepted, what it means."""
    return "\n".join(f"{key} = {yaml.safe_dump(default, default_flow_style=True).splitlines()[0]}"
                     f"  ({accepted}): {help}" for key, default, accepted, help in options(Config))


_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)  # days that are none, other encodings, deep nesting


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without repeated keys: the plain loader lets the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} is given twice",
                                                    node.start_mark)
        return super().construct_mapping(node, deep)


def _read_file(path: Path, opened: Tuple[Path, ...]) -> Dict[str, Any]:
    resolved = path.resolve()
    if resolved in opened:
        raise UserError(f"{path}: {_BASE} goes in a circle: "
                        + " -> ".join(str(file) for file in (*opened[opened.index(resolved):], resolved)))
    content = _parse_file(path)
    bases = content.pop(_BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {_BASE} must be a file name or a list of them, got {bases!r}")
    tree: Dict[str, Any] = {}
    for base in bases:
        tree = _merge(tree, _read_file(path.parent / base, (*opened, resolved)))
    return _merge(tree, check(content, Config, str(path)))


def _parse_file(path: Path) -> Dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except _NO_YAML as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected 'key: value' lines, got {content!r}")
    return content


def _read_override(text: str) -> Dict[str, Any]:
    source = f"-o {text}"
    key, equals, value_text = text.partition("=")
    if not equals or not key:
        raise UserError(f"{source}: expected key=value, for example quant.bits=4")
    try:
        value = yaml.load(value_text, _UniqueKeyLoader)
    except _NO_YAML as error:
        raise UserError(f"{source}: {value_text!r} is not a valid YAML value ({error})") from error
    path = key.strip().split(".")
    depth, is_dict = leaf_type(Config, path)
    if is_dict and depth < len(path):  # dict names may hold dots: quant.overrides.layers.*.fc1=8
        path = [*path[:depth], ".".join(path[depth:])]
    for name in reversed(path):
        value = {name: value}
    return check(value, Config, source)


def _merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> Dict[str, Any]:
    """``update`` over ``base``. What it sets comes last: of two ``quant.overrides`` that match a tensor the later wins."""
    merged = dict(base)
    for key, value in update.items():
        before = merged.pop(key, None)
        merged[key] = _merge(before, value) if isinstance(value, dict) and isinstance(before, dict) else value
    return merged
