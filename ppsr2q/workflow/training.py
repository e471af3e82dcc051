"""Stages 0 to 2 as the tools run them: bounds, rectifier group training, offline static routing calibration."""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Dict, Iterator, Tuple

import numpy as np
import paddle

from ppsr2q.core import distributed
from ppsr2q.core.config import Config, config_to_dict
from ppsr2q.core.dashboard import Dashboard
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact, save_artifact
from ppsr2q.core.trainer import Trainer, TrainerSettings, TrainResult
from ppsr2q.quant import CalibrationSettings, calibrate, get_bounds, set_bounds
from ppsr2q.spr2q.group_training import GroupTraining
from ppsr2q.spr2q.losses import LossSettings
from ppsr2q.spr2q.rectifier import RectifierSettings, attach_rectifiers, freeze_gates
from ppsr2q.spr2q.routing_calibration import RoutingCalibration
from ppsr2q.spr2q.routing_table import (RECTIFIERS_KIND, load_bounds, load_rectifiers, save_rectifiers,
                                        save_table)
from ppsr2q.workflow.batches import Validation, calibration_batch, training_batches
from ppsr2q.workflow.networks import Quantized, build_quantized, check_origin, provenance
from ppsr2q.workflow.progress import Progress

BOUNDS_KIND = "searched bounds"


def paths(config: Config) -> Dict[str, Path]:
    """Where everything of a run lies under ``output_dir``."""
    out = Path(config.output_dir)
    return {"bounds": out / "searched_bounds.safetensors", "rectifiers": out / "rectifiers.safetensors",
            "table": out / "spr2q_table.safetensors", "fused": out / "fused.safetensors",
            "packed": out / "model.safetensors", "onnx": out / "model.onnx",
            "inference": out / "inference", "resume": out / "resume", "log": out / "log"}


def require_stage(path: Path, tool: str, config_path: str) -> None:
    """Raise the error that names the command which makes a missing file."""
    if not path.exists():
        raise UserError(f"{path} is missing; make it with\n  python tools/{tool}.py -c {config_path} (and the same -o "
                        "options)")


def search_bounds(config: Config, quantized: Quantized) -> None:
    """Stage 0: bounds of all quantizers from one calibration batch, searched on rank 0 and sent to all."""
    student = quantized.student
    names = sorted(t.name for t in quantized.tensors if t.bits is not None)
    flat = paddle.zeros([len(names), 2])
    if distributed.is_main():
        settings = CalibrationSettings(config.calib.dobi_mode, config.calib.progressive, config.calib.candidates,
                                       config.calib.max_samples, config.seed)
        progress = Progress("searching bounds", len(names) - sum(t.entry.fixed is not None for t in quantized.tensors))
        calibrate(student, paddle.to_tensor(calibration_batch(config)), settings, lambda name: progress.advance())
        progress.close()
        found = get_bounds(student)
        save_artifact(paths(config)["bounds"], {f"bounds/{name}": value for name, value in found.items()}, BOUNDS_KIND,
                      provenance(config, quantized.teacher))
        flat = paddle.to_tensor(np.stack([found[name] for name in names]))
    # also on one process: the search works in float64, and a resumed run starts from the float32 bounds of the file
    set_bounds(student, dict(zip(names, distributed.broadcast_(flat).numpy())))


def load_searched_bounds(config: Config, quantized: Quantized) -> None:
    """Set the bounds that stage 0 wrote.

    Raises:
        UserError: they are missing, or were searched for other weights or another plan.
    """
    path = paths(config)["bounds"]
    artifact = load_artifact(path, BOUNDS_KIND)
    check_origin(artifact, config, quantized.teacher, path)
    load_bounds(quantized.student, artifact, path)


def _trainer_settings(config: Config, iterations: int) -> TrainerSettings:
    train = config.train
    return TrainerSettings(iterations=iterations, accumulate=train.accumulate, betas=tuple(train.betas),
                           epsilon=train.epsilon, warmup=train.warmup, min_lr_ratio=train.min_lr_ratio,
                           grad_clip=train.grad_clip, log_every=train.log_every, save_every=train.save_every,
                           validate_every=train.validate_every)


def _loss(config: Config) -> LossSettings:
    return LossSettings(config.loss.feature_weight, config.loss.feature_norm, config.loss.feature_reduction)


def _watchers(config: Config, teacher) -> Tuple:
    """Validation and pictures for the dashboard; the teacher's outputs are computed once."""
    validation = Validation(config, config.train.lr_patch, config.train.validation_crops)
    teacher_outputs = validation.outputs(teacher) if config.train.validate_every else []
    return validation, lambda student: validation.pictures(student, teacher_outputs)


@contextlib.contextmanager
def open_dashboard(config: Config, stage: str) -> Iterator[Dashboard]:
    """VisualDL log of a stage (rank 0 writes it), with the config as its hyper-parameters."""
    dashboard = Dashboard(paths(config)["log"] / stage if distributed.is_main() else None)
    dashboard.hyperparameters(config_to_dict(config), ["train/loss", "validation/psnr_y"])
    try:
        yield dashboard
    finally:
        dashboard.close()


def _checkpoint(config: Config, stage_name: str) -> Path:
    return paths(config)["resume"] / f"{stage_name}.safetensors"


def _run(config: Config, stage, batch: int, iterations: int, lr_patch: int, teacher, resume: bool) -> TrainResult:
    with open_dashboard(config, stage.name) as dashboard:
        trainer = Trainer(stage, training_batches(config, batch, lr_patch, config.train.augment),
                          _trainer_settings(config, iterations), _checkpoint(config, stage.name), dashboard,
                          provenance(config, teacher))
        return trainer.run(resume)


def _add_rectifiers(config: Config, quantized: Quantized) -> None:
    if config.rectifier.enabled:
        settings = RectifierSettings(config.rectifier.number, config.rectifier.rank, config.rectifier.gate,
                                     config.rectifier.per_sample)
        attach_rectifiers(quantized.student, quantized.tensors, settings, config.seed)


def search_only(config: Config) -> None:
    """Stage 0 alone; writes ``searched_bounds.safetensors``."""
    search_bounds(config, build_quantized(config))


def train(config: Config, resume: bool = False) -> TrainResult:
    """Stages 0 and 1; writes ``searched_bounds.safetensors`` and ``rectifiers.safetensors``."""
    quantized = build_quantized(config)
    if resume and _checkpoint(config, GroupTraining.name).exists() and paths(config)["bounds"].exists():
        load_searched_bounds(config, quantized)
    else:
        search_bounds(config, quantized)
    _add_rectifiers(config, quantized)  # not before: rank 0 searches alone, and dynamic gates exchange token means
    rates = {"bounds": config.train.lr_bounds, "rectifiers": config.train.lr_rectifier, "gates": config.train.lr_gate}
    validation, pictures = _watchers(config, quantized.teacher)
    stage = GroupTraining(quantized.student, quantized.teacher, _loss(config), validation, pictures,
                          learning_rates=rates)
    result = _run(config, stage, config.train.batch, config.train.iterations, config.train.lr_patch,
                  quantized.teacher, resume)
    if distributed.is_main():
        save_rectifiers(quantized.student, paths(config)["rectifiers"], provenance(config, quantized.teacher))
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
    _add_rectifiers(config, quantized)
    artifact = load_artifact(path, RECTIFIERS_KIND)
    check_origin(artifact, config, quantized.teacher, path)
    load_rectifiers(quantized.student, artifact, path)
    return quantized


def calibrate_routing(config: Config, config_path: str, resume: bool = False) -> TrainResult:
    """Stage 2; writes ``spr2q_table.safetensors``."""
    if not config.rectifier.enabled:
        raise UserError("rectifier.enabled is false: without rectifiers there is no routing to calibrate; go on with "
                        "tools/export.py")
    quantized = load_trained(config, config_path)
    freeze_gates(quantized.student, paddle.to_tensor(calibration_batch(config)), config.route_calib.weights_space)
    validation, pictures = _watchers(config, quantized.teacher)
    stage = RoutingCalibration(quantized.student, quantized.teacher, _loss(config), validation, pictures,
                               learning_rate=config.route_calib.lr)
    result = _run(config, stage, config.route_calib.batch, config.route_calib.iterations, config.train.lr_patch,
                  quantized.teacher, resume)
    if distributed.is_main():
        save_table(quantized.student, paths(config)["table"], provenance(config, quantized.teacher))
    distributed.barrier()
    return result
