"""Stages 0 to 2 as the tools run them: bounds, rectifier group training, offline static routing calibration."""
from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Dict, Iterator, Optional, Tuple

import numpy as np
import paddle

from ppsr2q.core import distributed
from ppsr2q.core.config import Config, config_to_dict
from ppsr2q.core.dashboard import Dashboard
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import Artifact, load_artifact, save_artifact, tensors_sha256
from ppsr2q.core.trainer import Batches, Trainer, TrainerSettings, TrainResult
from ppsr2q.quant import CalibrationSettings, calibrate, get_bounds, set_bounds
from ppsr2q.spr2q.finetune import finetuned_parameters
from ppsr2q.spr2q.group_training import GroupTraining
from ppsr2q.spr2q.losses import LossSettings
from ppsr2q.spr2q.rectifier import RectifierSettings, attach_rectifiers, freeze_gates
from ppsr2q.spr2q.routing_calibration import RoutingCalibration
from ppsr2q.spr2q.routing_table import (RECTIFIERS_KIND, load_adapters, load_bounds, load_rectifiers, save_rectifiers,
                                        save_table)
from ppsr2q.workflow.batches import Validation, calibration_batch, final_start, phased_batches, training_batches
from ppsr2q.workflow.networks import Quantized, build_quantized, check_origin, provenance, differing_quantizers
from ppsr2q.workflow.progress import Progress

BOUNDS_KIND = "searched bounds"


def paths(config: Config) -> Dict[str, Path]:
    """Where everything of a run lies under ``output_dir``."""
    out = Path(config.output_dir)
    return {"bounds": out / "searched_bounds.safetensors", "rectifiers": out / "rectifiers.safetensors",
            "table": out / "spr2q_table.safetensors", "fused": out / "fused.safetensors",
            "packed": out / "model.safetensors", "onnx": out / "model.onnx", "torch": out / "torch.safetensors",
            "openvino": out / "openvino",
            "inference": out / "inference", "resume": out / "resume", "log": out / "log"}


def require_stage(path: Path, tool: str, config_path: str) -> None:
    """Raise the error that names the command which makes a missing file."""
    if not path.exists():
        raise UserError(f"{path} is missing; make it with\n  python tools/{tool}.py -c {config_path} (and the same -o "
                        "options)")


def search_bounds(config: Config, quantized: Quantized) -> None:
    """Stage 0: bounds of all quantizers from one calibration batch.

    Every rank searches (dynamic gates of a run that starts from another one exchange token means); rank 0's are sent
    to all and written to ``searched_bounds.safetensors``.
    """
    settings = CalibrationSettings(config.calib.dobi_mode, config.calib.progressive, config.calib.candidates,
                                   config.calib.max_samples, config.seed)
    progress = Progress("searching bounds", sum(t.bits is not None and t.entry.fixed is None
                                                for t in quantized.tensors))
    calibrate(quantized.student, paddle.to_tensor(calibration_batch(config)), settings,
              (lambda name: progress.advance()) if distributed.is_main() else None)
    progress.close()
    _settle_bounds(config, quantized)


def _settle_bounds(config: Config, quantized: Quantized) -> None:
    """Give every rank the first bounds of rank 0 and write them; they are the units of relative bounds."""
    found = get_bounds(quantized.student)
    names = sorted(found)
    flat = distributed.broadcast_(paddle.to_tensor(np.stack([found[name] for name in names])))
    found = dict(zip(names, flat.numpy()))
    if distributed.is_main():
        save_artifact(paths(config)["bounds"], {f"bounds/{name}": value for name, value in found.items()}, BOUNDS_KIND,
                      provenance(config, quantized.teacher))
    # also on one process: the search works in float64, and a resumed run starts from the float32 bounds of the file
    set_bounds(quantized.student, found)


def load_searched_bounds(config: Config, quantized: Quantized) -> None:
    """Set the bounds that stage 0 wrote.

    Raises:
        UserError: they are missing, or were searched for other weights or another plan.
    """
    path = paths(config)["bounds"]
    artifact = load_artifact(path, BOUNDS_KIND)
    check_origin(artifact, config, quantized.teacher, path)
    load_bounds(quantized.student, artifact, path)


def _trainer_settings(config: Config, iterations: int, average_last: int = 0) -> TrainerSettings:
    train = config.train
    return TrainerSettings(iterations=iterations, average_last=average_last, accumulate=train.accumulate, betas=tuple(train.betas),
                           epsilon=train.epsilon, warmup=train.warmup, min_lr_ratio=train.min_lr_ratio,
                           grad_clip=train.grad_clip, log_every=train.log_every, save_every=train.save_every,
                           validate_every=train.validate_every)


def _loss(config: Config) -> LossSettings:
    return LossSettings(**dataclasses.asdict(config.loss))


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


def _run(config: Config, stage, batches: Batches, settings: TrainerSettings, metadata: dict,
         resume: bool) -> TrainResult:
    with open_dashboard(config, stage.name) as dashboard:
        return Trainer(stage, batches, settings, _checkpoint(config, stage.name), dashboard, metadata).run(resume)


def _add_rectifiers(config: Config, quantized: Quantized) -> None:
    if config.rectifier.enabled:
        settings = RectifierSettings(**{key: value for key, value in dataclasses.asdict(config.rectifier).items()
                                        if key != "enabled"})
        attach_rectifiers(quantized.student, quantized.tensors, settings, config.seed)


def search_only(config: Config) -> None:
    """Stage 0 alone; writes ``searched_bounds.safetensors``."""
    search_bounds(config, build_quantized(config))


def _start_artifact(config: Config, quantized: Quantized) -> Optional[Artifact]:
    """What ``train.start_from`` names, after the check that it belongs to the same full-precision weights."""
    path = config.train.start_from
    if path is None:
        return None
    artifact = load_artifact(path, RECTIFIERS_KIND)
    check_origin(artifact, config, quantized.teacher, path, other_quantizers=True)
    return artifact


def _first_bounds(config: Config, quantized: Quantized, start: Optional[Artifact], resume: bool) -> None:
    """Bounds that stage 1 begins with: of its own first part, of a start with equal quantizers, or searched."""
    if resume and _checkpoint(config, GroupTraining.name).exists() and paths(config)["bounds"].exists():
        load_searched_bounds(config, quantized)
    elif start is not None and differing_quantizers(start, config) is None:
        load_bounds(quantized.student, start, config.train.start_from)
        _settle_bounds(config, quantized)
    else:
        search_bounds(config, quantized)


def train(config: Config, resume: bool = False) -> TrainResult:
    """Stages 0 and 1; writes ``searched_bounds.safetensors`` and ``rectifiers.safetensors``."""
    train, start_of_final = config.train, final_start(config)
    if train.average_last > train.iterations:
        raise UserError(f"train.average_last is {train.average_last}, but there are only {train.iterations} iterations")
    quantized = build_quantized(config)
    student, metadata = quantized.student, provenance(config, quantized.teacher)
    start = _start_artifact(config, quantized)
    _add_rectifiers(config, quantized)
    if start is not None:
        load_adapters(student, start, train.start_from)
        metadata["start_sha256"] = tensors_sha256(start.tensors)
    _first_bounds(config, quantized, start, resume)
    rates = {"bounds": train.lr_bounds, "rectifiers": train.lr_rectifier, "gates": train.lr_gate,
             "latent": train.lr_latent, "float": train.lr_float}
    validation, pictures = _watchers(config, quantized.teacher)
    stage = GroupTraining(student, quantized.teacher, _loss(config), validation, pictures,
                          round(train.teacher_routing * train.iterations), learning_rates=rates,
                          finetuned=finetuned_parameters(student, quantized.tensors, train.finetune))
    result = _run(config, stage, phased_batches(config),
                  _trainer_settings(config, train.iterations, train.average_last), metadata, resume)
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
    if config.rectifier.form == "full_rank":
        raise UserError("rectifier.form is full_rank: one increment a layer has no routing to calibrate; go on with "
                        "tools/export.py")
    quantized = load_trained(config, config_path)
    freeze_gates(quantized.student, paddle.to_tensor(calibration_batch(config)), config.route_calib.weights_space)
    validation, pictures = _watchers(config, quantized.teacher)
    settings = config.route_calib
    loss = dataclasses.replace(_loss(config), route_weight=0.0, truth_weight=0.0)  # stage 2 is the paper's
    stage = RoutingCalibration(quantized.student, quantized.teacher, loss, validation, pictures,
                               learning_rate=settings.lr)
    batches = training_batches(config, settings.batch, config.train.lr_patch, config.train.augment)
    metadata = provenance(config, quantized.teacher)
    result = _run(config, stage, batches, _trainer_settings(config, settings.iterations), metadata, resume)
    if distributed.is_main():
        save_table(quantized.student, paths(config)["table"], metadata, quantized.changed())
    distributed.barrier()
    return result
