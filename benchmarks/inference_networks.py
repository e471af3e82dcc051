"""Makes the packed models that ``speed_inference.py`` runs, with Paddle."""
from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Dict, Optional, Sequence

import numpy as np
import paddle

from benchmarks import runs
from benchmarks.inference_plan import NETWORKS, Network
from ppsr2q.core.config import Config, load_config
from ppsr2q.core.errors import UserError
from ppsr2q.deploy.packed import PackedModel, read_packed, write_packed
from ppsr2q.deploy.packing import pack
from ppsr2q.quant import PLAN_ENTRIES, CalibrationSettings, Plan, calibrate, get_bounds, quantize
from ppsr2q.spr2q.fuse import fuse
from ppsr2q.workflow.batches import calibration_batch
from ppsr2q.workflow.networks import EMBEDDED, build_network

NAME, SCALE = "mambairv2_light", 4


def _config(weights: Optional[str], train: Path) -> Config:
    """Of the calibration; without x4 weights the x2 network that ships with the package stands in."""
    scale = SCALE if weights else 2
    return load_config(runs.CONFIGS / f"{NAME}_x{scale}_fp.yml", [
        f"model.weights={weights or EMBEDDED}", f"data.train={train}", "calib.images=4", "calib.lr_patch=32"])


def make_networks(folder: Path, names: Sequence[str], weights: Optional[str], given: Optional[Path], train: Path,
                  quick: bool) -> Dict[str, str]:
    """Write ``<folder>/<name>.safetensors`` (x4, to be timed) and ``<folder>/quality/<name>.safetensors`` (whose PSNR
    tells); they are the same files with x4 weights.

    Args:
        names: of NETWORKS.
        weights: full-precision x4 checkpoint, or None.
        given: folder that holds some of the packed models already.
        train: folder of training images, for the search of bounds.

    Returns:
        name -> where it comes from.

    Raises:
        UserError: a given model that is not x4 or whose bits are not those of its name.
    """
    config = _config(weights, train)
    network, batch = build_network(config), paddle.to_tensor(calibration_batch(config))
    # coarse: minutes are for the timing
    settings = CalibrationSettings("fit", candidates=4 if quick else 8, max_samples=4096)
    origins = {}
    for name in names:
        wanted = NETWORKS[name]
        path, quality = (folder / part / f"{name}.safetensors" for part in ("", "quality"))
        source = _given(given, name)
        if source is not None:
            _check(source, wanted)
            quality.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
            shutil.copyfile(source, quality)
            origins[name] = f"given: {source.name}"
            continue
        model = _quantized(network, wanted, batch, settings)
        write_packed(quality, model)
        write_packed(path, model if model.architecture["scale"] == SCALE else enlarged(model))
        origins[name] = "full precision" if wanted.bits is None else "bounds searched on embedded images, not trained"
    return origins


def _given(folder: Optional[Path], name: str) -> Optional[Path]:
    """The packed model of that name in a folder, or the fine-tuned x4 one if the folder is Table 1's."""
    names = [name, f"x{SCALE}_{name}_fine-tuned"] if folder is not None else []
    return next((path for path in (folder / f"{stem}.safetensors" for stem in names) if path.is_file()), None)


def _check(path: Path, wanted: Network) -> None:
    model = read_packed(path)
    bits = max((quantizer.bits for quantizer in model.quantizers.values()), default=None)
    if model.architecture["scale"] != SCALE or bits != wanted.bits:
        raise UserError(f"{path}: x{model.architecture['scale']} with {bits or 32} bits, expected x{SCALE} with "
                        f"{wanted.bits or 32}")


def _quantized(network, wanted: Network, batch: paddle.Tensor, settings: CalibrationSettings) -> PackedModel:
    architecture = {"name": NAME, "scale": network.scale}
    if wanted.bits is None:
        floats = {name: parameter.numpy() for name, parameter in network.named_parameters()}
        return PackedModel(architecture, {}, {}, floats, {"plan": Plan([]).describe()})
    plan = Plan(PLAN_ENTRIES[NAME], wanted.bits, dict(wanted.overrides))
    student = quantize(network, plan)
    calibrate(student, batch, settings)
    bounds = get_bounds(student)
    fuse(student, plan.resolve(network))
    return pack(student, architecture, plan, bounds, {})


def enlarged(model: PackedModel) -> PackedModel:
    """The x4 network whose output is that of an x2 network with every pixel doubled: as fast as any x4 network."""
    floats = dict(model.floats)
    for name in ("upsample.0.weight", "upsample.0.bias"):
        value = floats[name]
        blocks = value.reshape(3, 2, 2, *value.shape[1:])  # channel, row and column of the pixel shuffle
        doubled = np.repeat(np.repeat(blocks, 2, axis=1), 2, axis=2)
        floats[name] = np.ascontiguousarray(doubled.reshape(3 * SCALE**2, *value.shape[1:]))
    return dataclasses.replace(model, architecture={**model.architecture, "scale": SCALE}, floats=floats)
