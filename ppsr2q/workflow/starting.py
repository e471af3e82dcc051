"""What stage 1 begins with: folds and bounds (stage 0), rectifiers at zero, in closed form, or of another run."""
from __future__ import annotations

from typing import Any, Dict, List, Optional

import numpy as np
import paddle

from ppsr2q.core import distributed
from ppsr2q.core.config import Config
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import Artifact, load_artifact, save_artifact, tensors_sha256
from ppsr2q.quant import CalibrationSettings, calibrate, get_bounds, set_bounds
from ppsr2q.quant.calibrate import stored_bounds
from ppsr2q.quant.equalize import choose_folds
from ppsr2q.spr2q.closed_form import closed_form_start
from ppsr2q.spr2q.group_training import GroupTraining
from ppsr2q.spr2q.rectifier import attach_rectifiers, rectifier_groups
from ppsr2q.spr2q.routing_table import RECTIFIERS_KIND, load_adapters, load_bounds, load_rectifiers, save_rectifiers
from ppsr2q.workflow.batches import calibration_batch
from ppsr2q.workflow.networks import (Quantized, build_quantized, check_origin, differing_quantizers, load_folded,
                                      provenance)
from ppsr2q.workflow.paths import checkpoint_path, paths
from ppsr2q.workflow.progress import Progress

BOUNDS_KIND = "searched bounds"


def equalize(config: Config, quantized: Quantized) -> None:
    """Fold the student as ``quant.equalize`` asks for; all ranks take rank 0's choice."""
    if not config.quant.equalize:
        return
    progress = Progress("equalizing", len(quantized.student.blocks()), distributed.is_main())
    folds = choose_folds(quantized.student, config.model.name, paddle.to_tensor(calibration_batch(config)),
                         config.seed, progress.advance)
    progress.close()
    if not folds:
        raise UserError("quant.equalize: quant.overrides leave no edge to fold; set it to false")
    names = sorted(folds)
    flat = distributed.broadcast_(paddle.to_tensor(np.concatenate([folds[name].reshape(-1) for name in names])))
    parts = np.split(flat.numpy(), np.cumsum([folds[name].size for name in names])[:-1])
    quantized.fold({name: part.reshape(folds[name].shape) for name, part in zip(names, parts)})


def _calibration_settings(config: Config) -> CalibrationSettings:
    calib = config.calib
    return CalibrationSettings(calib.dobi_mode, calib.progressive, calib.outliers, calib.candidates, calib.max_samples,
                               config.seed)


def search_bounds(config: Config, quantized: Quantized) -> None:
    """Stage 0: bounds of all quantizers from one calibration batch.

    Every rank searches (dynamic gates of a run that starts from another one exchange token means); rank 0's are sent
    to all and written to ``searched_bounds.safetensors``.
    """
    progress = Progress("searching bounds", sum(t.bits is not None and t.entry.fixed is None
                                                for t in quantized.tensors), distributed.is_main())
    calibrate(quantized.student, paddle.to_tensor(calibration_batch(config)), _calibration_settings(config),
              lambda name: progress.advance())
    progress.close()
    _settle_bounds(config, quantized)


def _settle_bounds(config: Config, quantized: Quantized) -> None:
    """Give every rank the first bounds of rank 0 and write them; they are the units of relative bounds."""
    found = get_bounds(quantized.student)
    names = sorted(found)
    flat = distributed.broadcast_(paddle.to_tensor(np.stack([found[name] for name in names])))
    found = dict(zip(names, flat.numpy()))
    if distributed.is_main():
        save_artifact(paths(config)["bounds"], {**stored_bounds(found), **quantized.stored_folds()}, BOUNDS_KIND,
                      provenance(config, quantized.teacher))
    # also on one process: the search works in float64, and a resumed run starts from the float32 bounds of the file
    set_bounds(quantized.student, found)


def load_searched_bounds(config: Config, quantized: Quantized) -> None:
    """Fold the student and set its bounds as stage 0 left them.

    Raises:
        UserError: they are missing, or were searched for other weights or another plan.
    """
    path = paths(config)["bounds"]
    load_bounds(quantized.student, load_folded(quantized, config, path, BOUNDS_KIND), path)


def add_rectifiers(config: Config, quantized: Quantized) -> None:
    """Give the student the configured rectifiers, at zero."""
    if config.rectifier.enabled:
        attach_rectifiers(quantized.student, quantized.tensors, config.rectifier, config.seed)


def start_artifact(config: Config, quantized: Quantized) -> Optional[Artifact]:
    """What ``train.start_from`` names, after the check that it belongs to the same full-precision weights."""
    path = config.train.start_from
    if path is None:
        return None
    artifact = load_artifact(path, RECTIFIERS_KIND)
    check_origin(artifact, config, quantized.teacher, path, other_quantizers=True)
    return artifact


#: options of ``train`` that say how much was trained
PIECE = ("iterations", "batch", "lr_patch", "final_share", "final_batch", "final_lr_patch")


def pieces(start: Artifact) -> List[Dict[str, Any]]:
    """What was trained before a run that begins with ``start``: bits, iterations, batches and crops of every run, oldest
    first."""
    options = start.metadata["config"]
    return [*start.metadata.get("earlier", []),
            {"bits": options["quant"]["bits"],
             **{key: options["train"][key] for key in PIECE}}]


def _load_start(config: Config, quantized: Quantized) -> None:
    path = paths(config)["start"]
    load_rectifiers(quantized.student, load_folded(quantized, config, path, RECTIFIERS_KIND), path)


def _start_in_closed_form(config: Config, quantized: Quantized) -> None:
    """Rectifiers, biases and bounds of weights; rank 0's are written to ``start.safetensors`` and read by all."""
    progress = Progress("starting rectifiers", len(rectifier_groups(quantized.student)), distributed.is_main())
    closed_form_start(quantized.student, paddle.to_tensor(calibration_batch(config)), _calibration_settings(config),
                      progress.advance)
    progress.close()
    if distributed.is_main():
        save_rectifiers(quantized.student, paths(config)["start"], provenance(config, quantized.teacher),
                        quantized.changed())
    distributed.barrier()
    _load_start(config, quantized)  # also on one process: a resumed run starts from the float32 bounds of the file


def begin(config: Config, quantized: Quantized, start: Optional[Artifact], resume: bool) -> str:
    """Bring the student, fresh from ``build_quantized``, to where stage 1 begins.

    Args:
        start: :func:`start_artifact`. Its folds, rectifiers and fine-tuned parameters are taken, and its bounds if its
            quantizers are the same; ``rectifier.start`` is for runs without one.
        resume: where stage 1 has a checkpoint, take what its first part began with instead of making it again.

    Returns:
        SHA-256 (hex) of the bounds, which are the units of relative ones, and of what of the network was changed: a
        checkpoint goes on from the same ones only.
    """
    closed_form = start is None and config.rectifier.enabled and config.rectifier.start == "closed_form"
    made = paths(config)["start" if closed_form else "bounds"]
    going_on = resume and checkpoint_path(config, GroupTraining.name).exists() and made.exists()
    if start is not None:
        quantized.fold_as(start, config.train.start_from)
    elif not going_on:
        equalize(config, quantized)
    add_rectifiers(config, quantized)
    if start is not None:
        load_adapters(quantized.student, start, config.train.start_from)
    if going_on:
        (_load_start if closed_form else load_searched_bounds)(config, quantized)
    elif start is not None and differing_quantizers(start, config) is None:
        load_bounds(quantized.student, start, config.train.start_from)
        _settle_bounds(config, quantized)
    else:
        search_bounds(config, quantized)
        if closed_form:
            _start_in_closed_form(config, quantized)
    return tensors_sha256({**stored_bounds(get_bounds(quantized.student)), **quantized.changed()})


def search_only(config: Config) -> None:
    """Stage 0 alone; writes ``searched_bounds.safetensors``."""
    quantized = build_quantized(config)
    equalize(config, quantized)
    search_bounds(config, quantized)
