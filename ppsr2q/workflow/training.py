"""Stages 0 to 2 as the tools run them: bounds, rectifier group training, offline static routing calibration."""
from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence, Tuple, Union

import paddle
from paddle import nn

from ppsr2q.core import distributed
from ppsr2q.core.config import PATH_OPTIONS, Config, PretrainConfig, TrainConfig, config_to_dict, flatten, is_reporting
from ppsr2q.core.dashboard import Dashboard
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import make_writable, tensors_sha256
from ppsr2q.core.resume import Comparison
from ppsr2q.core.trainer import Batches, Trainer, TrainerSettings, TrainResult
from ppsr2q.spr2q.finetune import finetuned_parameters
from ppsr2q.spr2q.group_training import GroupTraining
from ppsr2q.spr2q.rectifier import freeze_gates, rectified_tensors
from ppsr2q.spr2q.routing_calibration import RoutingCalibration
from ppsr2q.spr2q.routing_guide import expect_guidable
from ppsr2q.spr2q.routing_table import RECTIFIERS_KIND, load_rectifiers, save_rectifiers, save_table
from ppsr2q.workflow.batches import Validation, calibration_batch, images_sha256, phased_batches, training_batches
from ppsr2q.workflow.networks import Quantized, build_quantized, load_folded, provenance
from ppsr2q.workflow.paths import checkpoint_path, paths, require_stage, set_aside
from ppsr2q.workflow.starting import add_rectifiers, begin, pieces, start_artifact


def trainer_settings(section: Union[TrainConfig, PretrainConfig], iterations: int, **more: Any) -> TrainerSettings:
    """Of a stage that runs by the options of ``train`` or ``pretrain``; ``more`` is its own."""
    return TrainerSettings(iterations=iterations, accumulate=section.accumulate, betas=tuple(section.betas),
                           epsilon=section.epsilon, min_lr_ratio=section.min_lr_ratio, grad_clip=section.grad_clip,
                           log_every=section.log_every, save_every=section.save_every,
                           validate_every=section.validate_every, **more)


PICTURES = 4  # crops that the dashboard shows


def _watchers(config: Config, teacher) -> Tuple:
    """Validation, and pictures of its first crops for the dashboard; the teacher's are computed once. Crops are as large as
    the largest that are trained on: smaller ones would not show what these bring."""
    train = config.train
    side = max(train.lr_patch, train.final_lr_patch) if train.final_share else train.lr_patch
    validation = Validation(config, side, train.validation_crops)
    teacher_outputs = validation.outputs(teacher, PICTURES) if train.validate_every else []
    return validation, lambda student: validation.pictures(student, teacher_outputs)


# What a resumed run may change: where things lie, and what does not touch the iterates. The weights, the images and the run
# that is started from may lie elsewhere because their hashes are compared; so may what stage 2 notes about stage 1 change.
_FREE = ("run.config.device", *(f"run.config.{key}" for key in PATH_OPTIONS), "run.config.data.*", "run.config.eval.*",
         "run.trained_otherwise.*")
_UNREAD = {"rgt": ("route_calib", "pretrain"), "osrc": ("pretrain",),
           "pretrain": ("quant", "calib", "rectifier", "loss", "train", "route_calib")}  # sections, by stage
_ADVICE = {
    "images_sha256": "the files under data.train are others; bring them back",
    "weights_sha256": "model.weights holds other weights; name the file that it was",
    "start_sha256": "train.start_from holds another network; name the file that it was",
    "rectifiers_sha256": "rectifiers.safetensors is another; bring it back",
    "begun_sha256": "stage 0 has left other bounds since; remove searched_bounds.safetensors or start.safetensors to have them "
                    "made again",
}


def _comparison(stage_name: str) -> Comparison:
    return Comparison((*_FREE, *(f"run.config.{section}.*" for section in _UNREAD[stage_name])), ("run.begun_sha256",),
                      advice=_ADVICE)


def start_over(config: Config, stage_name: str, resume: bool, made: Sequence[Path] = ()) -> None:
    """Unless a stage goes on from its checkpoint, set aside what an earlier run of it has left (``paths.set_aside``)."""
    going_on = resume and checkpoint_path(config, stage_name).exists()
    kept = [] if going_on or not distributed.is_main() else set_aside(config, stage_name, made)
    if kept:
        print(f"[{stage_name}] starting over; an earlier run is kept in {', '.join(map(str, kept))}. To go on with it, move "
              "these back to their names and use --resume")


@contextlib.contextmanager
def open_dashboard(config: Config, stage: str) -> Iterator[Dashboard]:
    """VisualDL log of a stage (rank 0 writes it), with the config as its hyper-parameters."""
    dashboard = Dashboard(paths(config)["log"] / stage if distributed.is_main() else None)
    dashboard.hyperparameters(config_to_dict(config), ["train/loss", "validation/psnr_y"])
    try:
        yield dashboard
    finally:
        dashboard.close()


def training_provenance(config: Config, network: nn.Layer) -> Dict[str, Any]:
    """``provenance`` with the training images: what a resumed run must have in common with its first part."""
    return {**provenance(config, network), "images_sha256": images_sha256(config)}


def run_stage(config: Config, stage, batches: Batches, settings: TrainerSettings, metadata: dict,
              resume: bool) -> TrainResult:
    """Train a stage with its checkpoint and log under ``output_dir``."""
    with open_dashboard(config, stage.name) as dashboard:
        return Trainer(stage, batches, settings, checkpoint_path(config, stage.name), dashboard, metadata,
                       _comparison(stage.name)).run(resume)


def train(config: Config, resume: bool = False) -> TrainResult:
    """Stages 0 and 1; writes ``searched_bounds.safetensors``, ``start.safetensors`` with a start in closed form, and
    ``rectifiers.safetensors``."""
    train = config.train
    make_writable(config.output_dir)
    batches = phased_batches(config)  # mistakes in what follows are named before the search begins
    if train.average_last > train.iterations:
        raise UserError(f"train.average_last is {train.average_last}, but there are only {train.iterations} iterations")
    quantized = build_quantized(config)
    if config.rectifier.enabled:
        rectified_tensors(quantized.tensors, config.rectifier)
    if config.loss.route_weight or train.teacher_routing:
        expect_guidable(quantized.student)
    validation, pictures = _watchers(config, quantized.teacher)
    student, metadata = quantized.student, training_provenance(config, quantized.teacher)
    start = start_artifact(config, quantized)
    if start is not None:
        metadata.update(start_sha256=tensors_sha256(start.tensors), earlier=pieces(start))
    start_over(config, GroupTraining.name, resume, [paths(config)[name] for name in ("bounds", "start")])
    metadata["begun_sha256"] = begin(config, quantized, start, resume)
    rates = {"bounds": train.lr_bounds, "rectifiers": train.lr_rectifier, "gates": train.lr_gate,
             "latent": train.lr_latent, "float": train.lr_float}
    stage = GroupTraining(student, quantized.teacher, config.loss, validation, pictures,
                          round(train.teacher_routing * train.iterations), learning_rates=rates,
                          finetuned=finetuned_parameters(student, quantized.tensors, train.finetune))
    settings = trainer_settings(train, train.iterations, warmup=train.warmup, average_last=train.average_last)
    result = run_stage(config, stage, batches, settings, metadata, resume)
    if distributed.is_main():
        save_rectifiers(student, paths(config)["rectifiers"], metadata, quantized.changed())
    distributed.barrier()  # the launcher ends all processes as soon as one has left
    return result


def load_trained(config: Config, config_path: str) -> Quantized:
    """The student as stage 1 left it.

    Raises:
        UserError: stage 1 has not run, or ran for other weights, another plan or other rectifiers.
    """
    path = paths(config)["rectifiers"]
    require_stage(path, "train", config_path)
    quantized = build_quantized(config)
    add_rectifiers(config, quantized)
    load_rectifiers(quantized.student, load_folded(quantized, config, path, RECTIFIERS_KIND), path)
    return quantized


def mean_gate_student(config: Config, config_path: str) -> Quantized:
    """Stage 1 without stage 2: gates at their mean over the calibration batch ("RGT" rows of the paper)."""
    quantized = load_trained(config, config_path)
    freeze_gates(quantized.student, paddle.to_tensor(calibration_batch(config)))
    return quantized


def has_routing(config: Config) -> bool:
    """Whether stage 2 has something to calibrate: several rectifiers a layer, which a gate mixes."""
    return config.rectifier.enabled and config.rectifier.number > 1


def calibrate_routing(config: Config, config_path: str, resume: bool = False) -> TrainResult:
    """Stage 2; writes ``spr2q_table.safetensors``, which also says which rectifiers it is of, and which options of
    stage 1 were others than now."""
    if not has_routing(config):
        reason = (f"rectifier.number is {config.rectifier.number}" if config.rectifier.enabled
                  else "rectifier.enabled is false")
        raise UserError(f"{reason}: there is no routing to calibrate; go on with tools/export.py")
    make_writable(config.output_dir)
    quantized = load_trained(config, config_path)
    freeze_gates(quantized.student, paddle.to_tensor(calibration_batch(config)), config.route_calib.weights_space)
    validation, pictures = _watchers(config, quantized.teacher)
    settings = config.route_calib
    loss = dataclasses.replace(config.loss, route_weight=0.0, truth_weight=0.0)  # stage 2 is the paper's
    stage = RoutingCalibration(quantized.student, quantized.teacher, loss, validation, pictures,
                               learning_rate=settings.lr)
    batches = training_batches(config, settings.batch, config.train.lr_patch, config.train.augment)
    trained, now = flatten(quantized.origin.metadata["config"]), flatten(config_to_dict(config))
    otherwise = {key: value for key, value in trained.items() if value != now.get(key) and key not in PATH_OPTIONS}
    noted = [f"{key} was {value!r}" for key, value in otherwise.items()
             if key.partition(".")[0] not in ("device", "data", "eval", "route_calib", "pretrain") and not is_reporting(key)]
    if noted and distributed.is_main():
        print(f"{paths(config)['rectifiers']}: trained with other options than these: {', '.join(noted)}", file=sys.stderr)
    metadata = {**training_provenance(config, quantized.teacher), "rectifiers_sha256": tensors_sha256(quantized.origin.tensors),
                "trained_otherwise": otherwise}
    start_over(config, stage.name, resume)
    result = run_stage(config, stage, batches, trainer_settings(config.train, settings.iterations), metadata, resume)
    if distributed.is_main():
        save_table(quantized.student, paths(config)["table"], metadata, quantized.changed())
    distributed.barrier()
    return result
