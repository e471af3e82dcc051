"""Measuring and using a network: ``tools/evaluate.py`` and ``tools/predict.py``."""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import cv2
import numpy as np
from paddle import nn

from ppsr2q.core.config import Config
from ppsr2q.core.errors import UserError
from ppsr2q.data.datasets import TestSet
from ppsr2q.data.image_io import Picture, list_images, read_picture, write_picture
from ppsr2q.evaluation.evaluator import bicubic_upscaler, evaluate
from ppsr2q.evaluation.tiling import check_tiling, run_official_tiles, run_tiled
from ppsr2q.workflow.exporting import load_calibrated, mean_gate_student
from ppsr2q.workflow.networks import build_network, build_quantized, load_fused, upscaler
from ppsr2q.workflow.progress import Progress
from ppsr2q.workflow.training import load_searched_bounds, load_trained, paths, require_stage

Upscale = Callable[[np.ndarray], np.ndarray]


def _searched(config: Config, config_path: str) -> nn.Layer:
    path = paths(config)["bounds"]
    require_stage(path, "train", config_path)
    quantized = build_quantized(config)
    load_searched_bounds(config, quantized)
    return quantized.student


def _fused(config: Config, config_path: str) -> nn.Layer:
    path = paths(config)["fused"]
    require_stage(path, "export", config_path)
    return load_fused(path, config.model.routing, config.model.routing_seed)


def network_of_stage(config: Config, config_path: str, stage: Optional[str] = None) -> nn.Layer:
    """The network of a config after a stage: ``fp``, ``searched`` bounds, trained ``bounds`` (without rectifiers),
    ``rgt`` (mean gates), ``osrc`` (before fusing) or ``fused``; default ``fused``, or ``fp`` with ``quant.bits: null``.

    Raises:
        UserError: naming the tool that makes what is missing.
    """
    stage = stage or ("fp" if config.quant.bits is None else "fused")
    if stage == "fp":
        return build_network(config)
    if stage == "bounds":
        return load_trained(config, config_path).student
    if stage == "rgt":
        return mean_gate_student(config, config_path).student
    if stage == "osrc":
        return load_calibrated(config, config_path).student
    return {"searched": _searched, "fused": _fused}[stage](config, config_path)


def load_upscaler(config: Config, config_path: Optional[str], model: Optional[str],
                  stage: Optional[str]) -> "tuple[Upscale, int]":
    """(callable image -> image, scale) from a fused file, or from the config's stage.

    Raises:
        UserError: neither a config nor a file was given, or both a file and a stage.
    """
    if config_path is None and model is None:
        raise UserError("give -c CONFIG or --model FILE")
    if model is not None and stage is not None:
        raise UserError(f"--stage {stage} is a state of a config's run; leave --model {model} out, or the stage")
    if model is not None:
        network = load_fused(model, config.model.routing, config.model.routing_seed)
        return upscaler(network), network.scale
    if stage == "bicubic":
        return bicubic_upscaler(config.model.scale), config.model.scale
    network = network_of_stage(config, config_path, stage)
    return upscaler(network), network.scale


def measure(config: Config, upscale: Upscale, scale: int, sets: List[str]) -> Dict[str, Any]:
    """Evaluate on test sets under ``data.root``; returns the JSON of ``tools/evaluate.py``."""
    if config.data.root is None:
        raise UserError("data.root is not set: give the folder that holds the test sets (-o data.root=FOLDER)")
    test_sets = [TestSet(config.data.root, name, scale) for name in sets]
    if config.eval.mode == "official_tiles":
        upscale = partial(run_official_tiles, upscale, scale=scale)
    progress = Progress("evaluating", sum(len(test_set) for test_set in test_sets))
    results = evaluate(upscale, test_sets, lambda *_: progress.advance())
    progress.close()
    results["protocol"].update(mode=config.eval.mode, routing=config.model.routing,
                               routing_seed=config.model.routing_seed)
    return results


def predict_picture(upscale: Upscale, scale: int, picture: Picture, tile: int, overlap: int) -> Picture:
    """Super-resolve a picture; grey stays grey, alpha is enlarged by plain bicubic (a mask is no photograph)."""
    run = partial(run_tiled, upscale, tile=tile, overlap=overlap, scale=scale) if tile else upscale
    rgb = np.clip(run(picture.rgb), 0, 1)
    if picture.gray:
        rgb = np.repeat(rgb.mean(axis=2, keepdims=True), 3, axis=2)
    alpha = picture.alpha
    if alpha is not None:
        alpha = np.clip(cv2.resize(alpha, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), 0, 1)
    return Picture(rgb, alpha, picture.gray, picture.depth)


def _output_name(file: Path) -> str:
    # JPEG and BMP hold no alpha, and re-encoding with losses would blur what was gained
    return file.name if file.suffix.lower() in (".png", ".tif", ".tiff", ".webp") else f"{file.stem}.png"


def predict(upscale: Upscale, scale: int, source: Path, target: Path, tile: int, overlap: int) -> List[Path]:
    """Super-resolve a file or all images of a folder into a folder.

    Raises:
        UserError: nothing to read, or unreadable files; the readable images of a folder are done first. Before
            anything is computed: tiles that do not overlap properly, a folder that cannot be written to, or two
            images that would be written to one file.
    """
    if tile:
        check_tiling(tile, overlap)
    files = list_images(source) if source.is_dir() else [source]
    if not files:
        raise UserError(f"{source}: no images in this folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: expected a folder to write to, this is a file")
    if target.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise UserError(f"{target}: is where the input lies; its images would be overwritten")
    names: Dict[str, Path] = {}
    for file in files:
        other = names.setdefault(_output_name(file), file)
        if other is not file:
            raise UserError(f"{other} and {file} would both be written to {target / _output_name(file)}; rename one")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target}: this folder cannot be made ({error.strerror})") from error
    progress, written, failed = Progress("super-resolving", len(files)), [], []
    for name, file in names.items():
        try:
            result = predict_picture(upscale, scale, read_picture(file), tile, overlap)
            write_picture(target / name, result)
            written.append(target / name)
        except UserError as error:
            failed.append(str(error))
        progress.advance()
    progress.close()
    if failed:
        raise UserError("\n".join(failed) + (f"\n({len(written)} other images were written)" if written else ""))
    return written
