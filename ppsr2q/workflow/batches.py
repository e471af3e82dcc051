"""Training, calibration and validation images of a config."""
from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import paddle

from ppsr2q.core.config import Config
from ppsr2q.core.errors import UserError
from ppsr2q.data.datasets import training_split
from ppsr2q.data.image_io import image_size
from ppsr2q.data.patches import PatchSampler, validation_crops
from ppsr2q.evaluation.metrics import psnr_y, to_uint8

_CALIBRATION = 2**31 - 1  # an iteration number that no training reaches


def _folder(config: Config) -> Path:
    if config.data.train is None:
        raise UserError("data.train is not set: give a folder of training images (-o data.train=FOLDER)")
    return Path(config.data.train)


def _split(config: Config, lr_patch: int) -> Tuple[List[Path], List[Path]]:
    """(training files, validation files) of ``data.train`` that hold a crop of ``lr_patch``.

    A file is in one of the two for any ``lr_patch``, or in neither.
    """
    return _large_enough(_folder(config), lr_patch * config.model.scale)


@functools.lru_cache(maxsize=None)  # a run asks several times, and every answer opens all files
def _large_enough(folder: Path, side: int) -> Tuple[List[Path], List[Path]]:
    """Says on stderr how many files are too small."""
    parts, kept = training_split(folder), []
    for paths, purpose in zip(parts, ("to train on", "for validation")):
        kept.append([path for path in paths if min(image_size(path)) >= side])
        if not kept[-1]:
            raise UserError(f"data.train: none of the {len(paths)} images {purpose} in {folder} (first {paths[0].name}) "
                            f"is at least {side} x {side} pixels; choose a smaller lr_patch or other images")
    small = sum(map(len, parts)) - sum(map(len, kept))
    if small:
        print(f"{folder}: {small} of {sum(map(len, parts))} images are smaller than {side} x {side} pixels and are not "
              "used", file=sys.stderr)
    return tuple(kept)


def images_sha256(config: Config) -> str:
    """SHA-256 (hex) over the relative names and sizes of all training images, which decide every draw of a run."""
    folder = _folder(config)
    files = [path for part in training_split(folder) for path in part]
    listing = sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def training_batches(config: Config, batch: int, lr_patch: int, augment: bool, with_hr: bool = False) -> Callable:
    """``batches(iteration, index, count)`` of the trainer: slice ``index`` of ``count`` of the global batch, each of
    ``batch`` samples, and the seed of its routing noise."""
    sampler = PatchSampler(_split(config, lr_patch)[0], config.model.scale, lr_patch, config.seed, augment, with_hr)

    def batches(iteration: int, index: int, count: int) -> Dict[str, Any]:
        noise = np.random.SeedSequence([config.model.routing_seed, iteration, index]).generate_state(1)
        return {**sampler.batch(iteration, index * batch, batch), "iteration": iteration, "routing_seed": int(noise[0])}
    return batches


def phased_batches(config: Config) -> Callable:
    """:func:`training_batches` of stage 1: the last ``train.final_share`` of the iterations has crops and a batch size
    of its own, and ground truth where the loss asks for it."""
    train = config.train
    start = final_start(config)
    first = None if start == 0 else training_batches(config, train.batch, train.lr_patch, train.augment)
    if start == train.iterations:
        return first
    last = training_batches(config, train.final_batch, train.final_lr_patch, train.augment,
                            with_hr=config.loss.truth_weight > 0)

    def batches(iteration: int, index: int, count: int) -> Dict[str, Any]:
        nonlocal first
        if iteration < start:
            return first(iteration, index, count)
        first = None  # and the images that it keeps
        return last(iteration, index, count)
    return batches


def final_start(config: Config) -> int:
    """The first iteration (0-based) of stage 1's final phase; ``train.iterations`` when there is none.

    Raises:
        UserError: ground truth is weighted, but there is no final phase.
    """
    if config.loss.truth_weight and not config.train.final_share:
        raise UserError("loss.truth_weight needs a final phase: set train.final_share above 0")
    return config.train.iterations - math.ceil(config.train.iterations * config.train.final_share)


def calibration_batch(config: Config) -> np.ndarray:
    """float32 (calib.images, 3, p, p): the fixed random crops that bounds and mean gates come from."""
    side = config.calib.lr_patch
    sampler = PatchSampler(_split(config, side)[0], config.model.scale, side, config.seed)
    return sampler.batch(_CALIBRATION, 0, config.calib.images)["lr"]


class Validation:
    """Y PSNR on fixed centre crops of the validation files, which are never trained on.

    The crops run one by one: a dynamic gate mixes for each of them, not for a batch, nor as the static one will.

    Called with a network it gives ``psnr_y`` in dB against ground truth.
    """

    def __init__(self, config: Config, lr_patch: int, count: int) -> None:
        self._scale, self._routing_seed = config.model.scale, config.model.routing_seed
        self._lr, hr = validation_crops(_split(config, lr_patch)[1], self._scale, lr_patch, count)
        self._hr = [_to_picture(image) for image in hr]

    def outputs(self, network, count: Optional[int] = None) -> List[np.ndarray]:
        """uint8 (H, W, 3) outputs of the network for the first ``count`` crops; None: all of them."""
        network.routing_seed = self._routing_seed  # training leaves that of its last batch
        with paddle.no_grad():
            return [_to_picture(network(paddle.to_tensor(crop[None])).numpy()[0]) for crop in self._lr[:count]]

    def __call__(self, network) -> Dict[str, float]:
        scores = [psnr_y(output, hr, self._scale) for output, hr in zip(self.outputs(network), self._hr)]
        return {"psnr_y": float(np.mean(scores))}

    def pictures(self, network, teacher_outputs: List[np.ndarray]) -> Dict[str, np.ndarray]:
        """Full precision on the left, quantized on the right, of as many crops as there are ``teacher_outputs``."""
        pairs = zip(teacher_outputs, self.outputs(network, len(teacher_outputs)))
        return {f"crop {i}: full precision, quantized": np.concatenate(pair, axis=1) for i, pair in enumerate(pairs)}


def _to_picture(image: np.ndarray) -> np.ndarray:
    return to_uint8(image.transpose(1, 2, 0))
